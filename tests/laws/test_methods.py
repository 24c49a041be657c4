"""Methods: a neutral one changes no output when it is attached; `absent` and `detach` are the base, bit for bit; what a method
stores rebuilds the tuned network; nothing outside it moves, and all of it does; blocks under its floor compute the base."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tiny import DECODERS, FAMILIES, LENGTHS, VOCABULARY, WRITERS, Letters, answer, batch_for, network, rows, stir, texts, writer
from tunesmith.core import Batch, Delta, Method, Ragged, Run, Stage
from tunesmith.engine import fit
from tunesmith.errors import Refusal
from tunesmith.methods import METHODS, Adapter, BitFit, Full, Fusion, Head, Layers, LoRA, Mixture, Prefix, Prompt
from tunesmith.networks.transformer import Transformer
from tunesmith.objectives import Supervised
from tunesmith.sources.table import Table
from tunesmith.updates import Descend

VARIANTS: dict[str, Method] = {
    "full": Full(),
    "head": Head(),
    "layers": Layers(last=2),
    "layers-0-2": Layers(blocks=(0, 2), unfreeze=1, decay=0.5),
    "layers-embeddings": Layers(last=1, embeddings=True),
    "lora": LoRA(rank=2),
    "lora-rs": LoRA(rank=4, rslora=True),
    "lora-qv": LoRA(rank=2, targets=("query", "value")),
    "lora-dropout": LoRA(rank=2, dropout=0.5),
    "dora": LoRA(rank=2, dora=True),
    "dora-dropout": LoRA(rank=2, dora=True, dropout=0.5),
    "pissa": LoRA(rank=2, start="pissa"),
    "houlsby": Adapter(placement="houlsby", width=4),
    "pfeiffer": Adapter(placement="pfeiffer", reduction=8, activation="relu"),
    "parallel": Adapter(placement="parallel", width=4, scale=4.0, activation="silu"),
    "prompt": Prompt(length=3),
    "prompt-text": Prompt(length=3, start="text", text="sort it"),
    "prompt-labels": Prompt(length=3, start="labels"),
    "prompt-random": Prompt(length=3, start="random"),
    "prompt-mlp": Prompt(length=3, reparametrise="mlp", hidden=8),
    "prompt-lstm": Prompt(length=3, reparametrise="lstm", hidden=8),
    "prefix": Prefix(length=3),
    "prefix-text": Prefix(length=3, text="sort it"),
    "prefix-random": Prefix(length=3, start="random"),
    "prefix-mlp": Prefix(length=3, reparametrise="mlp", hidden=8),
    "bitfit": BitFit(),
    "fusion": Fusion(parts=({"kind": "adapter", "width": 4}, {"kind": "adapter", "width": 3, "activation": "relu"})),
    "fusion-houlsby": Fusion(parts=({"kind": "adapter", "width": 4, "placement": "houlsby"},) * 2),
    **{
        f"mixture-{g}": Mixture(gate=g, parts=({"rank": 2}, {"rank": 3, "start": "pissa"}, {"rank": 2, "targets": ["query", "down"]}))
        for g in ("layer", "network", "token")
    },
}
NETWORKS = ("bert", "gpt2", "llama", "deberta-v2")  # plain, Conv1D, grouped heads without biases, padded
FEW = ("layers", "lora", "parallel", "prompt", "prefix", "bitfit")
REFUSED = {(v, n) for v in VARIANTS if v.startswith("prefix") for n in ("deberta-v2", "mpnet")}
PAIRS = [(v, n) for n in NETWORKS for v in VARIANTS] + [(v, n) for n in (*FAMILIES, *(f"{w}:lm" for w in WRITERS)) if n not in NETWORKS for v in FEW]
ATTACHED = pytest.mark.parametrize(("variant", "name"), [pair for pair in PAIRS if pair not in REFUSED])
TINY = (4, 7, 3)


def attached(variant: str, name: str, seed: int = 0) -> tuple[Transformer, Delta]:
    net = network(name)
    torch.manual_seed(seed)
    return net, VARIANTS[variant].attach(net)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in net.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def test_every_method_of_the_table_is_here() -> None:
    assert set(METHODS.values()) - {type(v) for v in VARIANTS.values()} <= {METHODS.get("peft"), METHODS["hard_prompt"]}


# ------------------------------------------------------------------------------------------------ attach and take away


@ATTACHED
@torch.no_grad()
def test_neutral(variant: str, name: str) -> None:
    """Only soft prompts and prefixes, and what others have learnt, change the network by being there. DoRA and PiSSA round."""
    net = network(name)
    batch = batch_for(net)
    before, method = answer(net, batch), VARIANTS[variant]
    method.attach(net)
    after = answer(net, batch)
    assert method.neutral == (not isinstance(method, Prompt | Prefix | Fusion | Mixture))
    if not method.neutral:
        assert not torch.allclose(after, before)
    elif isinstance(method, LoRA):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5 if method.dora or method.start == "pissa" else 2e-6)
    else:
        assert torch.equal(after, before)


@ATTACHED
@torch.no_grad()
def test_absent_and_detach_are_the_base(variant: str, name: str) -> None:
    net = network(name)
    batch, base = batch_for(net), state(net)
    before = answer(net, batch)
    delta = VARIANTS[variant].attach(net)
    stir(delta.parameters())
    tuned, held = answer(net, batch), state(net)
    assert not torch.allclose(tuned, before)
    with delta.absent() as plain:
        assert torch.equal(answer(plain, batch), before)
        assert all(torch.equal(t, base[n]) for n, t in plain.state_dict().items() if n in base)
    assert torch.equal(answer(net, batch), tuned)
    assert equal(state(net), held)
    delta.detach()
    assert equal(state(net), base)
    assert torch.equal(answer(net, batch), before)
    assert all(p.requires_grad for p in net.parameters())
    assert not any("forward" in m.__dict__ for m in net.modules() if type(m) is not nn.Dropout)


@torch.no_grad()
def test_absent_ends_when_what_it_surrounds_fails() -> None:
    net, delta = attached("lora", "bert")
    stir(delta.parameters())
    tuned = answer(net, texts(*TINY))
    with pytest.raises(ValueError, match="inside"), delta.absent():
        raise ValueError("inside")
    assert torch.equal(answer(net, texts(*TINY)), tuned)


def test_without_a_kept_base_there_is_no_way_back() -> None:
    net = network("bert")
    delta = Full().attach(net, keep=False)
    assert not delta.base
    with pytest.raises(RuntimeError, match="keep=False"):
        delta.detach()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_many_take_turns_on_one_base(name: str) -> None:
    net = network(name)
    base = state(net)
    for variant, method in VARIANTS.items():
        if (variant, name) not in REFUSED:
            delta = method.attach(net)
            stir(delta.parameters())
            delta.detach()
            assert equal(state(net), base), variant


@ATTACHED
@torch.no_grad()
def test_stored_delta_rebuilds_the_tuned_network(variant: str, name: str) -> None:
    net, delta = attached(variant, name)
    stir(delta.parameters())
    stored = {n: t.clone() for n, t in delta.state_dict().items()}
    fresh, other = attached(variant, name, seed=99)
    batch = batch_for(net)
    other.load_state_dict(stored)
    assert torch.equal(answer(fresh, batch), answer(net, batch))
    assert set(stored) == delta.added | delta.trains
    with pytest.raises(Refusal):
        other.load_state_dict(dict(list(stored.items())[1:]))


@ATTACHED
def test_a_copy_computes_the_same_and_is_its_own(variant: str, name: str) -> None:
    """After a training step, when the network still holds what the step left."""
    net, delta = attached(variant, name)
    batch = batch_for(net, *TINY)
    net.rest_below(delta.floor)
    answer(net, batch).sum().backward()
    stir(delta.parameters())
    net.eval()
    twin, mark = copy.deepcopy((net, delta))
    assert twin.room is not net.room
    assert all(m.seat.room is twin.room for m in twin.modules() if hasattr(m, "seat"))
    with torch.no_grad():
        before = answer(net, batch)
        assert torch.equal(answer(twin, batch), before)
        stir(mark.parameters(), seed=8)
        assert not torch.allclose(answer(twin, batch), before)
        assert torch.equal(answer(net, batch), before)
        with mark.absent():
            assert torch.equal(answer(net, batch), before)
            assert not torch.allclose(answer(twin, batch), before)


# ------------------------------------------------------------------------------------------------ training


def trained(net: Transformer, delta: Delta, steps: int = 3, period: int = 1) -> Run:
    """Real steps of the engine; an epoch is one batch, and weight decay is off, so that a gradient alone moves anything."""
    batch = batch_for(net, *TINY)
    kind = "single" if len(net.heads) else "generate"
    stage = Stage("main", Table(batch.columns, size=len(TINY)), steps, period)
    return fit(Run(net, delta, Supervised(kind), [stage], Descend(rate=1e-2, schedule="constant", warmup=0, decay=0)))


@ATTACHED
def test_what_trains_moves_and_nothing_else_does(variant: str, name: str) -> None:
    net, delta = attached(variant, name)
    before = state(net)
    trained(net, delta)
    after, moved = state(net), {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert moved == delta.trains
    ours = {id(p) for p in delta.parameters().values()}
    tied = {n for n, t in net.state_dict(keep_vars=True).items() if id(t) in ours}
    assert {n for n in before if not torch.equal(before[n], after[n])} == tied
    assert all(p.requires_grad == (n in delta.trains) for n, p in net.named_parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_stay_inside(name: str) -> None:
    """Nothing but what trains has a gradient after a backward pass, and all of it has one."""
    for variant, method in VARIANTS.items():
        if (variant, name) not in REFUSED and variant != "layers-0-2":
            net = network(name)
            delta = method.attach(net)
            net.rest_below(delta.floor)
            answer(net, batch_for(net, *TINY)).sum().backward()
            assert {n for n, p in net.named_parameters() if p.grad is not None} == delta.trains, variant


def test_blocks_wake_one_epoch_after_another() -> None:
    net, delta = attached("layers-0-2", "bert")
    low, high = ({n for n in delta.trains if net.anatomy.block_of(n) == i} for i in (0, 2))
    assert delta.trains == low | high | {n for n in delta.trains if n.startswith("heads.")}
    assert (delta.floor, delta.lowest) == (2, 0)
    before = state(net)
    trained(net, delta, steps=2, period=2)
    assert all(torch.equal(t, before[n]) != (n in delta.trains - low) for n, t in net.named_parameters())
    assert delta.floor == 2
    run = trained(net, delta, steps=4, period=2)
    assert not any(torch.equal(t, before[n]) for n, t in net.named_parameters() if n in delta.trains)
    assert delta.floor == 0
    assert {n: delta.pace[n] for n in delta.trains} == {n: 0.5 if n in low else 1.0 for n in delta.trains}
    groups = run.update.optimizer.param_groups
    assert {id(p) for g in groups if g["pace"] == 0.5 for p in g["params"]} == {id(p) for n, p in delta.parameters().items() if n in low}
    assert all(g["lr"] == pytest.approx(1e-2 * g["pace"]) for g in groups)


@ATTACHED
@torch.no_grad()
def test_floor(variant: str, name: str) -> None:
    """States up to what enters the block at the floor are the base's, bit for bit, and those behind it are not."""
    net, delta = attached(variant, name)
    if net.anatomy.kind == "seq2seq":
        return  # its blocks are not skipped
    delta.advance(5)
    batch, depth = batch_for(net), net.anatomy.depth
    with delta.absent():
        base = [net.trunk_states(batch, k).values for k in range(depth + 1)]
    stir(delta.parameters())
    tuned = [net.trunk_states(batch, k).values for k in range(depth + 1)]
    assert all(torch.equal(a, b) for a, b in zip(base[: delta.floor + 1], tuned, strict=False) if delta.floor)
    if delta.floor < depth:
        assert base[delta.floor + 1].shape != tuned[delta.floor + 1].shape or not torch.allclose(base[delta.floor + 1], tuned[delta.floor + 1])


def test_floors_by_hand() -> None:
    """Of three blocks."""
    floors = {v: attached(v, "bert")[1].lowest for v in VARIANTS}
    assert floors == dict.fromkeys(VARIANTS, 0) | {"head": 3, "layers": 1}
    assert Layers(last=1).attach(network("bert")).floor == 2
    assert Head().attach(writer(DECODERS["llama"])).floor == 3


TAILS = {
    "gpt2": "model.ln_f",
    "llama": "model.norm",
    "modernbert": "model.final_norm",
    "gpt-neox": "model.final_layer_norm",
    "t5": "model.encoder.final_layer_norm",
}


@pytest.mark.parametrize("name", TAILS)
def test_the_norm_behind_the_last_block_moves_with_it(name: str) -> None:
    weight = f"{TAILS[name]}.weight"
    for method, moves in ((Layers(last=1), True), (Layers(blocks=(0,)), False), (Head(), False)):
        delta = method.attach(network(name))
        assert (weight in delta.trains) == moves
        assert delta.floor == {Layers(last=1): 2, Layers(blocks=(0,)): 0, Head(): 3}[method]


@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "deberta-v2", "t5", "bart"])
def test_what_lies_under_the_floor_rests(name: str) -> None:
    """No dropout there, whoever switched the network to eval mode and back; above the floor there is."""
    net = network(name)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
        if isinstance(getattr(module, "dropout", None), float):  # BART
            module.dropout = 0.5
    delta, batch = Layers(last=1).attach(net), batch_for(net, *TINY)
    net.rest_below(delta.floor)
    for disturb in (lambda: None, net.train, lambda: net.eval().train(), net.eval):
        disturb()
        net.rest_below(delta.floor)
        with torch.no_grad():
            assert torch.equal(net.trunk_states(batch, 2).values, net.trunk_states(batch, 2).values)
            assert not torch.equal(net.states(batch).values, net.states(batch).values)
    delta.detach()
    Full().attach(net)
    net.rest_below(0)
    assert all(m.training for m in net.modules())


@ATTACHED
@torch.no_grad()
def test_attaching_keeps_the_mode(variant: str, name: str) -> None:
    """A network in eval mode is in eval mode with its inserts: predictions draw no dropout."""
    net, delta = attached(variant, name)
    assert not any(m.training for m in net.modules())
    stir(delta.parameters())
    assert torch.equal(answer(net, batch_for(net, *TINY)), answer(net, batch_for(net, *TINY)))


@pytest.mark.parametrize("variant", ["lora-dropout", "dora-dropout"])
@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_on_the_low_rank_branch(variant: str, name: str) -> None:
    """Drawn in training, unbiased, absent in eval mode, where the plain method with the same weights computes the same."""
    net, delta = attached(variant, name)
    stir(delta.parameters())
    plain, other = network(name), replace(VARIANTS[variant], dropout=0.0)
    other.attach(plain).load_state_dict(delta.state_dict())
    batch = batch_for(net, *TINY)
    with torch.no_grad():
        torch.testing.assert_close(answer(net, batch), answer(plain, batch), rtol=0, atol=1e-5)
        net.train()
        assert not torch.equal(answer(net, batch), answer(net, batch))
        layer = net.get_submodule(next(iter(net.anatomy.linears)))
        x = torch.randn(1, 6, 32)
        drawn = torch.stack([layer(x) for _ in range(3000)])
        net.eval()
        assert not torch.allclose(drawn[0], layer(x), atol=1e-3)
        torch.testing.assert_close(drawn.mean(0), layer(x), rtol=0, atol=6 * float(drawn.std(0).max()) / 3000**0.5)


# ------------------------------------------------------------------------------------------------ merge, cast


@ATTACHED
@torch.no_grad()
def test_merged_is_the_tuned_network_without_inserts(variant: str, name: str) -> None:
    net = network(name)
    keys, method = set(net.state_dict()), VARIANTS[variant]
    torch.manual_seed(0)
    delta = method.attach(net)
    if not method.merges:
        assert isinstance(method, Adapter | Prompt | Prefix | Fusion | Mixture)
        return
    stir(delta.parameters())
    batch, before = batch_for(net), state(net)
    tuned = answer(net, batch)
    plain = dict(delta.folded())
    assert equal(state(net), before)
    assert torch.equal(answer(net, batch), tuned)
    delta.merge()
    torch.testing.assert_close(answer(net, batch), tuned, rtol=1e-5, atol=1e-5)
    assert equal(plain, dict(net.model.named_parameters(remove_duplicate=False)))
    new = set(net.state_dict()) - keys
    assert keys <= set(net.state_dict())
    assert all(n.endswith(".bias") and n.removesuffix(".bias") in net.anatomy.linears for n in new)
    assert not new or isinstance(method, BitFit)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "variant", ["full", "head", "layers", "lora", "lora-dropout", "dora", "pissa", "parallel", "prompt", "prefix", "bitfit", "fusion", "mixture-token"]
)
def test_a_base_kept_in_half_precision(variant: str, name: str) -> None:
    """What trains stays fp32 and learns; what rests is bf16; `absent` and `detach` give the fp32 base back, bit for bit."""
    if (variant, name) in REFUSED:
        return
    net = network(name)
    base, batch = state(net), batch_for(net, *TINY)
    with torch.no_grad():
        before = answer(net, batch)
    torch.manual_seed(0)
    delta = VARIANTS[variant].attach(net)
    delta.cast(torch.bfloat16)
    net.compute = torch.bfloat16
    rests = {n: p for n, p in net.named_parameters() if n not in delta.trains}
    assert all(p.dtype == torch.float32 for p in delta.parameters().values())
    assert all(p.dtype == torch.bfloat16 for n, p in rests.items() if p.dim() > 1)
    losses = [record["loss"] for record in trained(net, delta, steps=6).log]
    assert losses[-1] < losses[0]
    net.eval()
    net.compute = torch.float32
    with torch.no_grad(), delta.absent():
        assert torch.equal(answer(net, batch), before)
    delta.detach()
    assert equal(state(net), base)


# ------------------------------------------------------------------------------------------------ what each one is


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_prompt_that_is_a_text_is_that_text(name: str) -> None:
    """Rows behind a prompt made of tokens are the rows of a longer text, without its first tokens."""
    net, batch = network(name), texts(*LENGTHS)
    ids = torch.tensor(Letters()("sort it")["input_ids"][:3])
    longer = [torch.cat([ids, row]) for row in batch.ragged("ids").rows()]
    wanted = net.states(Batch({"ids": Ragged(torch.cat(longer), tuple(map(len, longer)))}))
    VARIANTS["prompt-text"].attach(net)
    for mine, row in zip(net.states(batch).rows(), wanted.rows(), strict=True):
        torch.testing.assert_close(mine, row[3:], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "deberta-v2"])
@torch.no_grad()
def test_a_prompt_has_token_type_zero(name: str) -> None:
    net, batch = network(name), texts(*LENGTHS)
    types = [torch.arange(n) % 2 for n in LENGTHS]
    ids = torch.tensor(Letters()("sort it")["input_ids"][:3])
    longer = [torch.cat([ids, row]) for row in batch.ragged("ids").rows()]
    sizes = tuple(map(len, longer))
    wider = Batch({"ids": Ragged(torch.cat(longer), sizes), "types": Ragged(torch.cat([torch.cat([torch.zeros(3).long(), t]) for t in types]), sizes)})
    wanted = net.states(wider)
    VARIANTS["prompt-text"].attach(net)
    for mine, row in zip(net.states(batch.plus(types=Ragged(torch.cat(types), LENGTHS))).rows(), wanted.rows(), strict=True):
        torch.testing.assert_close(mine, row[3:], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_prefix_that_is_a_text_is_that_text(name: str) -> None:
    """Each token sees the prefix as it would see the text's own keys and values; rows are no longer than a window."""
    net, batch = network(name), texts(2, 4, 3)
    ids = torch.tensor(Letters()("sort it")["input_ids"][:3])
    longer = [torch.cat([ids, row]) for row in batch.ragged("ids").rows()]
    wanted = net.states(Batch({"ids": Ragged(torch.cat(longer), tuple(map(len, longer)))}))
    VARIANTS["prefix-text"].attach(net)
    for mine, row in zip(net.states(batch).rows(), wanted.rows(), strict=True):
        torch.testing.assert_close(mine, row[3:], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "llama", "gemma2", "bart", "t5:lm"])
@torch.no_grad()
def test_every_layer_reads_its_own_prefix(name: str) -> None:
    """Changing the keys, or the values, of one layer changes the answer."""
    net, _ = attached("prefix-random", name)
    batch, insert = batch_for(net), net.prefix
    before = answer(net, batch)
    assert len(insert.rows) == 2 * len(net.anatomy.attentions)
    for i in range(len(insert.rows)):
        kept = insert.rows[i].clone()
        insert.rows[i] += torch.randn_like(kept)
        assert not torch.allclose(answer(net, batch), before), i
        insert.rows[i] = kept


@pytest.mark.parametrize("start", ["vocabulary", "random"])
@pytest.mark.parametrize("name", ["electra", "gemma3", "bart"])
def test_a_prompt_has_the_size_of_embedded_tokens(name: str, start: str) -> None:
    """ELECTRA embeds in fewer dimensions than it thinks in; Gemma 3 multiplies its embeddings."""
    net = network(name)
    Prompt(length=20, start=start).attach(net)
    embedded = net.get_submodule(net.anatomy.embedding)(torch.arange(VOCABULARY))
    made = net.prompt.rows
    assert made.shape == (20, embedded.shape[1])
    assert 0.7 < (made.std() / embedded.std()).item() < 1.4


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_low_rank_by_hand(name: str) -> None:
    """W x + b + s B A x, with s = alpha / rank or alpha / sqrt(rank); DoRA: rows of the sum rescaled to length m."""
    for variant, scale in (("lora", 16 / 2), ("lora-rs", 16 / 4**0.5), ("dora", 16 / 2)):
        net = network(name)
        layer = net.get_submodule(next(iter(net.anatomy.linears)))
        torch.manual_seed(0)
        delta = VARIANTS[variant].attach(net)
        stir(delta.parameters(), 0.2)
        insert, x = layer.lora, torch.randn(7, 32)
        weight = layer.weight.T if name == "gpt2" else layer.weight
        total = weight + scale * insert.B @ insert.A
        if insert.dora:
            total = total * (insert.m / total.norm(dim=1))[:, None]
        bias = 0 if layer.bias is None else layer.bias
        torch.testing.assert_close(layer(x), x @ total.T + bias, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_pissa_starts_at_the_leading_singular_vectors() -> None:
    net, _ = attached("pissa", "bert")
    for path in net.anatomy.linears:
        layer = net.get_submodule(path)
        u, s, v = torch.linalg.svd(layer.weight)
        product = layer.lora.scale * layer.lora.B @ layer.lora.A
        torch.testing.assert_close(product, u[:, :2] @ torch.diag(s[:2]) @ v[:2], rtol=0, atol=5e-3)


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
@torch.no_grad()
def test_adapters_by_hand(placement: str) -> None:
    """One BERT block, computed step by step."""
    net = network("bert")
    torch.manual_seed(0)
    stir(Adapter(placement=placement, width=4, scale=2.0).attach(net).parameters(), 0.2)
    block, h = net.model.encoder.layer[0], torch.randn(1, 5, 32)
    net.room.layout = None
    base = {k: block.get_submodule(k) for k in ("attention.output.dense", "intermediate.dense", "output.dense")}

    def dense(path: str, x: Tensor) -> Tensor:
        return nn.functional.linear(x, base[path].weight, base[path].bias)

    def bottleneck(path: str, x: Tensor) -> Tensor:
        insert = base[path].adapter
        body = insert.body if placement == "parallel" else insert
        return 2.0 * body.up(nn.functional.gelu(body.down(x)))

    attended = block.attention.self(h)[0]
    out = dense("attention.output.dense", attended)
    out = out + bottleneck("attention.output.dense", out) if placement == "houlsby" else out
    h1 = block.attention.output.LayerNorm(out + h)
    inner = nn.functional.gelu(dense("intermediate.dense", h1))
    out = dense("output.dense", inner)
    out = out + bottleneck("output.dense", h1 if placement == "parallel" else out)
    wanted = block.output.LayerNorm(out + h1)
    got = block(h)
    torch.testing.assert_close(got[0] if isinstance(got, tuple) else got, wanted.view_as(got), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_bitfit_gives_a_bias_to_projections_without_one() -> None:
    net, delta = attached("bitfit", "llama")
    assert delta.added == {f"{path}.bitfit.bias" for path in net.anatomy.linears}
    assert not any(t.any() for n, t in delta.state_dict().items() if n in delta.added)
    assert VARIANTS["bitfit"].notes(net)
    assert not attached("bitfit", "bert")[1].added
    assert BitFit(add=False).attach(network("llama")).trains == {"heads.task.1.weight", "heads.task.1.bias"}


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("name", "method", "where"),
    [
        ("deberta-v2", Prefix(length=3), "method"),
        ("mpnet", Prefix(length=3), "method"),
        ("gpt2:lm", Head(), "method"),
        ("t5:lm", Head(), "method"),
        ("bert", LoRA(targets=("querry",)), "method.targets"),
        ("bert", LoRA(rank=33), "method.rank"),
        ("bert", Layers(last=4), "method.last"),
        ("bert", Layers(blocks=(0, 3)), "method.blocks"),
        ("bert", Prompt(length=64), "method.length"),
        ("roberta", Prompt(length=62), "method.length"),
        ("bert", Prefix(length=64), "method.length"),
        ("bert", Prompt(start="text"), "method.text"),
        ("gpt2:lm", Prompt(start="labels"), "method.start"),
        ("llama:lm", BitFit(add=False), "method"),
    ],
    ids=str,
)
def test_refusals(name: str, method: Method, where: str) -> None:
    """Each says where and what to do instead, and leaves the network as it was."""
    net = network(name)
    base = state(net)
    with pytest.raises(Refusal) as refused:
        method.attach(net)
    assert refused.value.where == where
    assert refused.value.fix
    assert equal(state(net), base)


@torch.no_grad()
def test_the_longest_prompt_that_is_allowed_runs() -> None:
    """Up to the last position, for families that count from 0 and from behind the padding."""
    for name, limit in (("bert", 64), ("roberta", 62), ("gpt2", 64), ("mpnet", 62)):
        net = network(name)
        assert net.anatomy.positions == limit
        Prompt(length=limit - 1).attach(net)
        net.states(Batch({"ids": rows(1, 1)}))
        with pytest.raises((IndexError, RuntimeError)):
            net.states(Batch({"ids": rows(2, 2)}))
