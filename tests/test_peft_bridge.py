"""Any PEFT method in our loop: neutral where PEFT's is, nothing outside it moves, taken away bit for bit, rebuilt from its state."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from tiny import answer, batch_for, network, stir
from tunesmith.core import Batch, Delta, Method, Ragged
from tunesmith.errors import Refusal
from tunesmith.methods import LoRA, Peft
from tunesmith.networks.transformer import Transformer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed: pip install 'tunesmith[peft]'")

METHODS = {
    "ia3": Peft(),
    "ln": Peft("LN_TUNING"),
    "vera": Peft("VERA", {"r": 8}),
    "oft": Peft("OFT", {"oft_block_size": 8}),
    "lora": Peft("LORA", {"r": 4}),
}
OTHERS = {
    "boft": Peft("BOFT"),
    "shira": Peft("SHIRA", {"r": 2}),
    "osf": Peft("OSF", {"effective_rank": 4}),
    "pissa": Peft("LORA", {"r": 4, "init_lora_weights": "pissa_niter_2"}),
    "biases": Peft("LORA", {"r": 4, "bias": "all", "target_modules": "all-linear", "modules_to_save": ["LayerNorm"]}),
}
NETWORKS = ("bert", "llama:lm", "distilbert", "t5:lm")
PAIRS = [(METHODS[m], n) for n in NETWORKS for m in METHODS] + [(method, "bert") for method in OTHERS.values()]
EVERY = pytest.mark.parametrize(("method", "name"), PAIRS, ids=[f"{m}-{n}" for n in NETWORKS for m in METHODS] + [*OTHERS])


def attached(method: Method, name: str, seed: int = 0) -> tuple[Transformer, Delta]:
    net = network(name)
    torch.manual_seed(seed)
    return net, method.attach(net)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in net.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(t, b[n]) for n, t in a.items())


def modules(net: nn.Module) -> list[tuple[str, int, frozenset[str]]]:
    """Every module under its name, as an object, with what it carries."""
    return [(n, id(m), frozenset(vars(m))) for n, m in net.named_modules()]


def train(net: Transformer, delta: Delta, batch: Batch, steps: int = 20) -> list[float]:
    optimizer, losses = torch.optim.AdamW(delta.parameters().values(), lr=1e-2), []
    for _ in range(steps):
        net.rest_below(delta.floor)
        loss = nn.functional.cross_entropy(net.logits(batch), batch["label"]) if len(net.heads) else -net.label_logp(batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    net.eval()
    return losses


# ------------------------------------------------------------------------------------------------ the laws of a method


@EVERY
@torch.no_grad()
def test_there_and_back(method: Peft, name: str) -> None:
    """Neutral at the start; `absent` is the base and comes back; `detach` leaves the modules and values there were before."""
    net = network(name)
    batch, base, parts = batch_for(net), state(net), modules(net)
    before = answer(net, batch)
    delta = method.attach(net)
    torch.testing.assert_close(answer(net, batch), before, rtol=0, atol=2e-5)
    stir(delta.parameters())
    tuned, flags = answer(net, batch), [p.requires_grad for p in net.parameters()]
    assert not torch.allclose(tuned, before)
    with delta.absent() as plain:
        assert torch.equal(answer(plain, batch), before)
    assert torch.equal(answer(net, batch), tuned)
    assert [p.requires_grad for p in net.parameters()] == flags
    delta.detach()
    assert torch.equal(answer(net, batch), before)
    assert equal(state(net), base)
    assert modules(net) == parts
    assert all(p.requires_grad for p in net.parameters())


@EVERY
def test_only_its_parameters_move_and_the_loss_falls(method: Peft, name: str) -> None:
    net, delta = attached(method, name)
    batch, before = batch_for(net), state(net)
    allowed = {n for n, p in net.named_parameters() if p.requires_grad}
    losses = train(net, delta, batch)
    moved = {n for n, t in net.state_dict().items() if not torch.equal(t, before[n])}
    assert losses[-1] < losses[0]
    assert moved <= delta.trains == allowed
    assert any(n.startswith("model.") for n in moved)
    assert all(".default" in n or n.endswith(".bias") for n in moved if n.startswith("model."))


@EVERY
@torch.no_grad()
def test_the_state_alone_rebuilds(method: Peft, name: str) -> None:
    """Whatever else PEFT drew at the first attachment (projections, indices, rewritten weights) is in the state, each tensor once."""
    net, delta = attached(method, name)
    stir(delta.parameters())
    stored = {n: t.clone() for n, t in delta.state_dict().items()}
    assert len(save({n: t.contiguous() for n, t in delta.state_dict().items()})) > 0  # safetensors takes no shared memory
    other, again = attached(method, name, seed=7)
    again.load_state_dict(stored)
    batch = batch_for(net)
    assert torch.equal(answer(other, batch), answer(net, batch))


@EVERY
@torch.no_grad()
def test_merging(method: Peft, name: str) -> None:
    """The plain network computes what the tuned one did, under its published names."""
    net, delta = attached(method, name)
    stir(delta.parameters())
    batch, names = batch_for(net), list(network(name).state_dict())
    tuned = answer(net, batch)
    delta.merge()
    torch.testing.assert_close(answer(net, batch), tuned, rtol=0, atol=5e-5)
    assert list(net.state_dict()) == names
    assert not [n for n, m in net.named_modules() if type(m).__module__.startswith("peft")]


@pytest.mark.parametrize("method", [*METHODS.values(), *OTHERS.values()], ids=[*METHODS, *OTHERS])
@torch.no_grad()
def test_rows_do_not_mix(method: Peft) -> None:
    net, delta = attached(method, "bert")
    stir(delta.parameters())
    batch = batch_for(net)
    alone = [answer(net, Batch({"ids": Ragged(row, (len(row),))})) for row in batch.ragged("ids").rows()]
    assert net.packs
    torch.testing.assert_close(answer(net, batch), torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [METHODS["ia3"], METHODS["ln"], OTHERS["pissa"]], ids=["ia3", "ln", "pissa"])
def test_half_precision(method: Peft) -> None:
    """A base stored and computed in bf16, as a run does on most machines: what trains stays fp32, and the base comes back."""
    net = network("llama:lm")
    batch, base = batch_for(net), state(net)
    with torch.no_grad():
        before = answer(net, batch)
    delta = method.attach(net)
    net.compute = torch.bfloat16
    delta.cast(torch.bfloat16)
    assert {p.dtype for p in delta.parameters().values()} == {torch.float32}
    losses = train(net, delta, batch)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        tuned = answer(net, batch)
        with delta.absent():
            torch.testing.assert_close(answer(net, batch), before, rtol=0, atol=0.15)
        assert torch.equal(answer(net, batch), tuned)
    delta.detach()
    assert equal(state(net), base)


@pytest.mark.parametrize("method", [METHODS["oft"], OTHERS["osf"]])
def test_what_peft_would_compute_again_is_stored(method: Peft) -> None:
    """A singular value decomposition on another machine may come out with other signs. The user may want it otherwise."""
    net, delta = attached(method, "bert")
    base = {n for n, _ in network("bert").named_buffers()}
    assert {n for n, _ in net.named_buffers()} - base <= delta.state_dict().keys()
    _, drawn = attached(Peft("VERA", {"r": 8, "save_projection": False}), "bert")
    assert not [n for n in drawn.state_dict() if "vera_A" in n]


# ------------------------------------------------------------------------------------------------ places


def test_our_lora_is_pefts() -> None:
    """The same factors give the same outputs and the same gradients."""
    net, ours = attached(LoRA(rank=4, alpha=8.0, targets=("query", "value")), "bert")
    other, theirs = attached(Peft("LORA", {"r": 4, "lora_alpha": 8}), "bert")
    stir(ours.parameters())
    pairs = [(ours.parameters()[n.replace("lora_", "lora.").replace(".default.weight", "")], p) for n, p in theirs.parameters().items()]
    with torch.no_grad():
        for mine, p in pairs:
            p.copy_(mine)
    batch = batch_for(net)
    a, b = answer(net, batch), answer(other, batch)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    a.square().sum().backward()
    b.square().sum().backward()
    for mine, p in pairs:
        torch.testing.assert_close(p.grad, mine.grad, rtol=1e-4, atol=1e-5)


def test_default_places() -> None:
    """PEFT's own where it has them, the blocks' linear layers where not; nothing in parts that never run."""
    places = lambda net: {n.rpartition(".vera_lambda_b")[0] for n in net.state_dict() if ".vera_lambda_b" in n}  # noqa: E731
    known, _ = attached(METHODS["vera"], "bert")
    unknown, _ = attached(METHODS["vera"], "distilbert")
    reads, _ = attached(METHODS["vera"], "t5")  # a head on T5 reads the encoder; its decoder rests
    assert places(known) == {p for p, role in known.anatomy.linears.items() if role in ("query", "value")}
    assert places(unknown) == set(unknown.anatomy.linears)
    assert {n.split(".")[1] for n in places(reads)} == {"encoder"}
    fused, delta = attached(METHODS["ia3"], "modernbert")
    assert {".".join(n.split(".")[3:5]) for n in delta.added} == {"attn.Wqkv", "mlp.Wo"}
    _, delta = attached(METHODS["ln"], "distilbert")
    assert {n.split(".ln_tuning")[0].rpartition(".")[2] for n in delta.added} == {"sa_layer_norm", "output_layer_norm"}


def test_floor() -> None:
    """Blocks under the lowest changed one rest and may be cached."""
    net, delta = attached(Peft("LORA", {"layers_to_transform": [2], "target_modules": ["query"]}), "bert")
    assert delta.floor == 2
    assert all(net.anatomy.block_of(n) == 2 for n in delta.added)
    assert attached(METHODS["ia3"], "bert")[1].floor == 0


def test_mode_follows_the_network() -> None:
    """PEFT's modules start in training mode; a network at rest must not draw their dropout."""
    net, delta = attached(Peft("LORA", {"lora_dropout": 0.5}), "bert")
    stir(delta.parameters())
    batch = batch_for(net)
    assert not any(m.training for m in net.modules())
    assert torch.equal(answer(net, batch), answer(net, batch))


def test_a_copy_is_a_network_of_its_own() -> None:
    net, delta = attached(METHODS["vera"], "bert")
    other = copy.deepcopy(net)
    stir(delta.parameters())
    batch = batch_for(net)
    assert list(other.state_dict()) == list(net.state_dict())
    assert not torch.allclose(answer(other, batch), answer(net, batch))


def test_what_peft_says_reaches_the_user() -> None:
    method = Peft("LORA", {"rank_pattern": {"nowhere": 2}})
    net, _ = attached(method, "bert")
    assert any("nowhere" in note for note in method.notes(net))


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("method", "where", "says"),
    [
        (Peft("LORAA"), "method.type", "LORA? one of"),
        (Peft("PROMPT_TUNING"), "method.type", "method: prompt"),
        (Peft("p_tuning"), "method.type", "method: prompt"),
        (Peft("PREFIX_TUNING"), "method.type", "method: prefix"),
        (Peft("ADALORA"), "method.type", "its own training loop"),
        (Peft("LILY"), "method.type", "rows change one another"),
        (Peft("IA3", {"target_module": ["key"]}), "method.options.target_module", "target_modules? one of"),
        (Peft("IA3", {"inference_mode": True}), "method.options.inference_mode", "one of"),
        (Peft("TRAINABLE_TOKENS"), "method.options", "token_indices"),
        (Peft("LORA", {"target_modules": ["nothing"]}), "method.options", "nothing"),
        (Peft("MISS", {"r": 64}), "method.options", "in_features"),
        (Peft("LORA", {"target_modules": ["lm_head", "q_proj"]}), "method.options", "output embedding"),
    ],
    ids=lambda v: v.type if isinstance(v, Peft) else "",
)
def test_refused_with_the_network_untouched(method: Peft, where: str, says: str) -> None:
    net = network("llama:lm")
    base, parts = state(net), modules(net)
    with pytest.raises(Refusal) as caught:
        method.attach(net)
    assert caught.value.where == where
    assert says in str(caught.value)
    assert equal(state(net), base)
    assert modules(net) == parts
    assert all(p.requires_grad for p in net.parameters())


def test_a_change_that_cannot_merge_is_left_whole() -> None:
    """BEFT adds biases to layers that have none."""
    net, delta = attached(Peft("BEFT"), "llama:lm")
    stir(delta.parameters())
    batch = batch_for(net)
    with torch.no_grad():
        tuned = answer(net, batch)
        with pytest.raises(Refusal, match="cannot fold BEFT"):
            delta.merge()
        assert torch.equal(answer(net, batch), tuned)


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    with pytest.raises(Refusal, match="needs peft") as caught:
        Peft().attach(network("bert"))
    assert caught.value.fix == 'pip install "tunesmith[peft]"'
