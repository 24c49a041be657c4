"""Networks: a packed batch is each row alone through the published class; the network above a stored state is the whole network;
log-probabilities, and all gradients, are those of the plain computation."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tiny import (
    DECODERS,
    FAMILIES,
    LENGTHS,
    SEQ2SEQ,
    SIZE,
    TYPED,
    VOCABULARY,
    WINDOWED,
    WRITERS,
    answer,
    answered,
    batch_for,
    built,
    network,
    plain,
    reader,
    rows,
    spoken,
    stir,
    texts,
    writer,
)
from tunesmith.advice.rehearsal import Live
from tunesmith.core import Batch, Method, Ragged
from tunesmith.errors import Refusal
from tunesmith.methods import Adapter, Full, Layers, LoRA, Prefix, Prompt
from tunesmith.networks import vocabulary
from tunesmith.networks.load import attention_for, look_over
from tunesmith.networks.parts import anatomy
from tunesmith.networks.transformer import Transformer

EVERY = pytest.mark.parametrize("name", FAMILIES)
LANGUAGE = pytest.mark.parametrize("name", DECODERS)


def near(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to the tolerance, of the largest value."""
    assert a.shape == b.shape
    gap, scale = (a - b).abs().max().item(), max(1.0, b.abs().max().item())
    assert gap <= tolerance * scale, f"{gap:.1e} apart, values up to {scale:.1e}"


def trunk_of(net: Transformer) -> nn.Module:
    """The published class, eager, that gives the states of one row."""
    model = plain(net)
    return model.get_encoder() if model.config.is_encoder_decoder else model


@torch.no_grad()
def one_by_one(net: Transformer, batch: Batch) -> Tensor:
    trunk = trunk_of(net)
    types = batch.ragged("types").rows() if "types" in batch else [None] * len(batch)
    extra = [{} if t is None else {"token_type_ids": t[None]} for t in types]
    return torch.cat([trunk(input_ids=row[None], **more).last_hidden_state[0] for row, more in zip(batch.ragged("ids").rows(), extra, strict=True)])


# ------------------------------------------------------------------------------------------------ rows


@EVERY
@torch.no_grad()
def test_rows_equal_alone(name: str) -> None:
    net, batch = network(name), texts(*LENGTHS)
    alone = one_by_one(net, batch)
    for kernel in ("matmul", "sdpa"):
        net.room.kernel = kernel
        near(net.states(batch).values, alone)


@EVERY
def test_packs_where_the_class_asks_for_its_attention(name: str) -> None:
    net = network(name)
    assert net.packs == (name not in ("deberta-v2", "mpnet", *SEQ2SEQ))
    assert net.takes_prefix == (name not in ("deberta-v2", "mpnet"))
    assert net.skips == (name != "t5")


@pytest.mark.parametrize("name", TYPED)
@torch.no_grad()
def test_token_types(name: str) -> None:
    net, batch = network(name), texts(*LENGTHS)
    batch = batch.plus(types=Ragged(torch.arange(sum(LENGTHS)) % 2, LENGTHS))
    near(net.states(batch).values, one_by_one(net, batch))
    assert not torch.equal(net.states(batch).values, net.states(texts(*LENGTHS)).values)


@EVERY
@torch.no_grad()
def test_other_rows_do_not_matter(name: str) -> None:
    net, batch = network(name), texts(*LENGTHS)
    here = net.states(batch).rows()
    for size, tolerance in ((LENGTHS[2], 1e-6), (LENGTHS[2] + 9, 1e-5)):
        parts = list(batch.ragged("ids").rows())
        parts[2] = rows(size, seed=9).values
        there = net.states(Batch({"ids": Ragged(torch.cat(parts), tuple(map(len, parts)))})).rows()
        for i in (0, 1, 3, 4):
            near(there[i], here[i], tolerance)
        assert size != LENGTHS[2] or not torch.allclose(there[2], here[2])


@EVERY
@torch.no_grad()
def test_order_of_rows_does_not_matter(name: str) -> None:
    net, batch = network(name), texts(*LENGTHS)
    order = sorted(range(len(batch)), key=LENGTHS.__getitem__)
    parts = [batch.ragged("ids").rows()[i] for i in order]
    tidy = net.states(Batch({"ids": Ragged(torch.cat(parts), tuple(map(len, parts)))})).rows()
    here = net.states(batch).rows()
    for i, row in zip(order, tidy, strict=True):
        near(row, here[i], 1e-6)


PACKED = [name for name in FAMILIES if name not in ("deberta-v2", "mpnet", *SEQ2SEQ)]


@pytest.mark.parametrize("method", [Layers(last=2), Prompt(length=4, start="random"), Prefix(length=4, start="random")], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("name", PACKED)
def test_filler_does_not_matter(name: str, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored states, outputs and gradients are those without it."""
    net = network(name)
    delta = method.attach(net)

    def computed(filler: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        monkeypatch.setattr(Transformer, "filler", lambda _net, _tokens: filler)
        batch = texts(*LENGTHS)
        stored = net.trunk_states(batch, 1).values
        batch = elsewhere(batch, net, delta.floor) if delta.floor else batch
        return stored, answer(net, batch).detach(), gradients(net, delta.floor, batch)

    (stored, out, grads), (stored_7, out_7, grads_7) = computed(0), computed(7)
    near(stored_7, stored, 1e-6)
    near(out_7, out, 1e-6)
    same(grads_7, grads, 1e-6)


def test_filler_makes_few_lengths() -> None:
    net = network("bert")
    assert net.filler(1001) == 0
    net.compute = torch.bfloat16
    assert len({n + net.filler(n) for n in range(512, 1025)}) <= 9
    assert all(net.filler(n) <= min(128, n // 8) for n in range(1, 5000))


@pytest.mark.parametrize("name", WINDOWED)
@torch.no_grad()
def test_windows_are_reached(name: str) -> None:
    """The rows above are longer than the window: without it the states differ."""
    net, batch = network(name), texts(*LENGTHS)
    wide = copy.deepcopy(FAMILIES[name])
    setattr(wide, "local_attention" if name == "modernbert" else "sliding_window", 60)
    other = reader(type(wide).from_dict(wide.to_dict()))
    other.model.load_state_dict(net.model.state_dict())
    here, there = net.states(batch).rows(), other.states(batch).rows()
    near(here[3], there[3])
    assert float((here[2] - there[2]).abs().max()) > 1e-3


@EVERY
@torch.no_grad()
def test_half_precision_is_near(name: str) -> None:
    net, batch = network(name), batch_for(network(name))
    exact = answer(net, batch)
    net.compute = torch.bfloat16
    near(answer(net, batch), exact, 0.1)


# ------------------------------------------------------------------------------------------------ where the parts are


@EVERY
def test_every_projection_of_a_block_has_a_role(name: str) -> None:
    for net in [network(name), *([network(f"{name}:lm")] if name in WRITERS else [])]:
        linear = {p for p, m in net.named_modules() if isinstance(m, nn.Linear | Conv1D) and 0 <= net.anatomy.block_of(p) < net.anatomy.depth}
        assert set(net.anatomy.linears) == linear
        assert {r for role in net.anatomy.linears.values() for r in role.split("+")} >= {"query", "key", "value", "out", "up", "down"}
        assert all(isinstance(net.get_submodule(path), nn.Module) for path in net.anatomy.attentions)
        assert len(net.anatomy.attentions) == net.anatomy.depth


ELSEWHERE: dict[str, hf.PretrainedConfig] = {
    "gpt-neox": FAMILIES["gpt-neox"],
    "data2vec-text": hf.Data2VecTextConfig(**SIZE, max_position_embeddings=64, pad_token_id=1),
    "roberta-prelayernorm": hf.RobertaPreLayerNormConfig(**SIZE, max_position_embeddings=64, pad_token_id=1),
    "bloom": hf.BloomConfig(hidden_size=32, n_layer=3, n_head=4, vocab_size=VOCABULARY),
    "opt": hf.OPTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        ffn_dim=48,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "olmo2": hf.Olmo2Config(**SIZE, max_position_embeddings=64),
}


@pytest.mark.parametrize("name", ELSEWHERE)
@torch.no_grad()
def test_architectures_outside_the_table(name: str) -> None:
    """Found by looking: rows equal alone, and nothing that moves lies under the floor."""
    net, batch = reader(ELSEWHERE[name]), texts(*LENGTHS)
    near(net.states(batch).values, one_by_one(net, batch))
    assert net.packs == net.takes_prefix == (name != "bloom")
    for method in (LoRA(rank=2), Layers(last=1)):
        delta = method.attach(net)
        before = [net.trunk_states(batch, k).values for k in range(delta.floor + 1)]
        stir(delta.parameters())
        assert all(torch.equal(net.trunk_states(batch, k).values, was) for k, was in enumerate(before))
        delta.detach()


def test_what_cannot_be_read_is_said() -> None:
    """An architecture without a list of blocks."""
    config = hf.AlbertConfig(embedding_size=16, **SIZE)
    with pytest.raises(Refusal, match="num_hidden_layers") as refused:
        anatomy(hf.AutoModel.from_config(config), config, "model", "encoder")
    assert refused.value.fix


@pytest.mark.parametrize(
    "config",
    [
        hf.GraniteConfig(**SIZE, num_key_value_heads=2, max_position_embeddings=64, logits_scaling=8.0),
        hf.CohereConfig(**SIZE, num_key_value_heads=2, max_position_embeddings=64, logit_scale=0.0625, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    ],
    ids=["granite", "cohere"],
)
def test_logits_that_are_scaled(config: hf.PretrainedConfig) -> None:
    agrees_with_the_class(writer(config))


def test_a_class_that_does_more_to_its_logits_is_refused() -> None:
    """Never silently wrong."""
    model = built(hf.AutoModelForCausalLM, FAMILIES["llama"], attention_for(FAMILIES["llama"]), 0)
    model.lm_head.register_forward_hook(lambda _module, _inputs, out: out.sigmoid())
    with pytest.raises(Refusal, match="logits") as refused:
        look_over(model, True)
    assert refused.value.fix


# ------------------------------------------------------------------------------------------------ the cached trunk


def elsewhere(batch: Batch, net: Transformer, floor: int) -> Batch:
    """The same rows as stored states, over a text that is not theirs."""
    stored, ids = net.trunk_states(batch, floor), batch.ragged("ids")
    return batch.plus(ids=Ragged(torch.full_like(ids.values, 7), ids.lengths), trunk=stored, floor=torch.full((len(batch),), floor))


@EVERY
@torch.no_grad()
def test_above_a_stored_state_is_the_whole_network(name: str) -> None:
    net, batch = network(name), texts(*LENGTHS)
    whole = net.states(batch).values
    for floor in range(1, net.anatomy.depth + 1) if net.skips else [net.anatomy.depth]:
        above = elsewhere(batch, net, floor)
        assert torch.equal(net.states(above).values, whole)
        assert torch.equal(net.logits(above), net.logits(batch))
    assert torch.equal(net.logits(batch.plus(pooled=net.pooled(batch), ids=above.ragged("ids"))), net.logits(batch))


@LANGUAGE
@torch.no_grad()
def test_tokens_above_a_stored_state(name: str) -> None:
    net, batch = network(f"{name}:lm"), spoken(*LENGTHS)
    for floor in range(1, net.anatomy.depth + 1):
        assert torch.equal(net.label_logp(elsewhere(batch, net, floor)), net.label_logp(batch))


@pytest.mark.parametrize("name", ["bert", "deberta-v2", "llama", "bart"])
def test_gradients_above_a_stored_state(name: str) -> None:
    net, batch = network(name), texts(*LENGTHS)
    delta = Layers(last=2).attach(net)
    direct = gradients(net, delta.floor, batch)
    assert delta.floor == 1
    same(gradients(net, delta.floor, elsewhere(batch, net, 1)), direct, 0)


# ------------------------------------------------------------------------------------------------ vocabulary


@torch.no_grad()
def agrees_with_the_class(net: Transformer) -> None:
    """Logits and log-probabilities at labelled positions are the model's own."""
    batch, model = spoken(*LENGTHS), plain(net)
    logits = torch.cat([model(input_ids=row[None]).logits[0] for row in batch.ragged("ids").rows()])[batch.labelled()]
    near(net.logits(batch), logits)
    near(net.label_logp(batch), logits.log_softmax(-1).gather(-1, batch["label"][:, None])[:, 0])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@LANGUAGE
def test_vocabulary_is_the_models_own(name: str, tied: bool) -> None:
    net = writer(DECODERS[name], tie_word_embeddings=tied)
    assert (net.anatomy.vocabulary is None) == tied
    agrees_with_the_class(net)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", SEQ2SEQ)
@torch.no_grad()
def test_targets_are_the_models_own(name: str, tied: bool) -> None:
    """Each row alone through model(labels=...), whose loss is the mean of what we sum."""
    net, batch = writer(SEQ2SEQ[name], tie_word_embeddings=tied), answered(*LENGTHS)
    model, target = plain(net), batch.ragged("target")
    outs = [model(input_ids=x[None], labels=y[None]) for x, y in zip(batch.ragged("ids").rows(), target.rows(), strict=True)]
    logp = torch.cat([out.logits[0].log_softmax(-1).gather(-1, y[:, None])[:, 0] for out, y in zip(outs, target.rows(), strict=True)])
    near(net.label_logp(batch), logp)
    for mine, out in zip(Ragged(net.label_logp(batch), target.lengths).rows(), outs, strict=True):
        near(-mine.mean(), out.loss)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "formed again"])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_label_logp_is_log_softmax(kept: bool, cap: float | None, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and all gradients, in chunks of three rows."""
    monkeypatch.setattr(vocabulary, "CHUNK", 3 * 17)
    monkeypatch.setattr(vocabulary, "KEEP", 10**9 if kept else 0)
    torch.manual_seed(0)
    inputs = [torch.randn(10, 6), torch.randn(17, 6), torch.randn(17)]
    label, weights = torch.randint(17, (10,)), torch.randn(10)
    ours = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.double().requires_grad_() for x in inputs]
    h, w, b = ours
    out = vocabulary.label_logp(h, w, b if biased else None, label, cap)
    (out * weights).sum().backward()
    h, w, b = theirs
    raw = h @ w.T + (b if biased else 0)
    raw = raw if cap is None else cap * torch.tanh(raw / cap)
    plainly = raw.log_softmax(-1).gather(-1, label[:, None])[:, 0]
    (plainly * weights).sum().backward()
    near(out.double(), plainly)
    for mine, other in zip(ours[: 2 + biased], theirs, strict=False):
        near(mine.grad.double(), other.grad)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "formed again"])
def test_gradients_through_the_vocabulary(name: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole language model, tied or not, with everything moving."""
    monkeypatch.setattr(vocabulary, "CHUNK", 4 * VOCABULARY)
    monkeypatch.setattr(vocabulary, "KEEP", 10**9 if kept else 0)
    net, batch = network(f"{name}:lm"), spoken(*LENGTHS)
    Full().attach(net)
    net.label_logp(batch).sum().backward()
    mine = {n: p.grad.clone() for n, p in net.named_parameters()}
    net.zero_grad()
    net.logits(batch).log_softmax(-1).gather(-1, batch["label"][:, None]).sum().backward()
    same(mine, {n: p.grad for n, p in net.named_parameters()}, 1e-5)


def test_nothing_is_kept_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of one chunk at a time, and no softmax of all rows."""
    monkeypatch.setattr(vocabulary, "CHUNK", 1)
    h, w, label = torch.randn(50, 4), torch.randn(1000, 4), torch.zeros(50, dtype=torch.long)

    def peak(learns: bool) -> int:
        with Live() as live, torch.set_grad_enabled(learns):
            vocabulary.label_logp(h.clone().requires_grad_(learns), w, None, label)
        return live.peak

    assert peak(True) - peak(False) >= 50 * 1000 * 4
    assert peak(False) < 5 * 1000 * 4 + 10_000


# ------------------------------------------------------------------------------------------------ gradients


def weighed(out: Tensor) -> Tensor:
    """A sum in which every output counts differently."""
    return (out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum()


def gradients(net: Transformer, floor: int, *batches: Batch) -> dict[str, Tensor]:
    """Of all batches together: every forward pass, then one backward pass. Dropout comes from one seed."""
    net.zero_grad()
    net.rest_below(floor)
    torch.manual_seed(5)
    torch.stack([weighed(answer(net, batch)) for batch in batches]).sum().backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def same(mine: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert mine.keys() == other.keys() != set()
    for name, grad in mine.items():
        near(grad, other[name], tolerance)


RECOMPUTED: dict[str, Method] = {
    "full": Full(),
    "lora": LoRA(rank=2),
    "lora-dropout": LoRA(rank=2, dropout=0.5),
    "parallel": Adapter(placement="parallel", width=4),
    "prompt": Prompt(length=3, start="random"),
    "prefix": Prefix(length=3, start="random"),
}


@pytest.mark.parametrize(
    ("name", "method"),
    [(n, m) for n in ("bert", "deberta-v2", "gpt2", "gemma2:lm", "bart", "t5:lm") for m in RECOMPUTED if (n, m) != ("deberta-v2", "prefix")],
)
def test_recomputed_activations_give_the_same_gradients(name: str, method: str) -> None:
    """Gradient checkpointing, over two forward passes of different lengths before the backward pass."""
    net = network(name)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    delta = RECOMPUTED[method].attach(net)
    stir(delta.parameters())
    batches = [batch_for(net, 4, 9, 6), batch_for(net, 9, 6, 4, seed=2)]
    direct = gradients(net, delta.floor, *batches)
    net.recompute(True)
    passes: list[int] = []
    net.get_submodule(next(iter(net.anatomy.linears))).register_forward_hook(lambda *_: passes.append(1))
    same(gradients(net, delta.floor, *batches), direct, 1e-5)
    assert len(passes) == 2 * len(batches)
