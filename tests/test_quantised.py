"""A base in 4 or 8 bits: it runs packed, small changes train on it, whatever would move its weights is refused, and it comes back."""

from __future__ import annotations

import copy
import importlib.util
import logging
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn

from test_peft_bridge import equal, state, train
from tiny import CLASSES, VOCABULARY, Letters, answer, batch_for, stir
from tunesmith.core import Batch, Method, Ragged
from tunesmith.errors import Refusal
from tunesmith.methods import Adapter, BitFit, Full, Head, Layers, LoRA, Peft, Prefix, Prompt
from tunesmith.methods.linear import features, quantised, weight_of
from tunesmith.networks.heads import HeadSpec
from tunesmith.networks.load import Origin, add_head, load_network
from tunesmith.networks.transformer import Transformer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install 'tunesmith[quant]'")

SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": VOCABULARY}
MODELS = {
    "llama": hf.LlamaConfig(**SHAPE, num_key_value_heads=2, max_position_embeddings=64),
    "bert": hf.BertConfig(**SHAPE, max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "t5": hf.T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=VOCABULARY, decoder_start_token_id=0),
}
BASES = pytest.mark.parametrize(("name", "bits"), [(name, bits) for name in ("llama", "bert") for bits in (4, 8)])
FOUR = pytest.mark.parametrize("name", ["llama", "bert"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models as published ones lie on a disk."""
    root = tmp_path_factory.mktemp("models")
    autos = {"llama": hf.LlamaForCausalLM, "bert": hf.BertModel, "t5": hf.T5ForConditionalGeneration}
    for name, config in MODELS.items():
        torch.manual_seed(0)
        model = autos[name](copy.deepcopy(config))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.05)
        model.save_pretrained(root / name)
    return root


@lru_cache(maxsize=16)
def kept(folder: Path, bits: int | None) -> Transformer:
    net = load_network(Origin(str(folder), folder.name, None, bits), generates=folder.name != "bert", tokenizer=Letters())  # type: ignore[arg-type]
    if folder.name == "bert":
        add_head(net, "task", HeadSpec(CLASSES, dropout=0.0), 0)
    return net


def base(folders: Path, name: str, bits: int | None = 4) -> Transformer:
    return copy.deepcopy(kept(folders / name, bits))


def hosts(net: Transformer) -> list[nn.Module]:
    return [net.get_submodule(path) for path in net.anatomy.linears]


# ------------------------------------------------------------------------------------------------ the network


@BASES
@torch.no_grad()
def test_it_runs_packed(folders: Path, name: str, bits: int) -> None:
    """Every row as if it were alone, near the unquantised network, and without a word from bitsandbytes."""
    net, full = base(folders, name, bits), base(folders, name, None)
    batch = batch_for(net)
    states = net.states(batch)
    alone = [net.states(Batch({"ids": Ragged(row, (len(row),))})).values for row in batch.ragged("ids").rows()]
    assert net.packs
    assert all(quantised(host) for host in hosts(net))
    scale = float(states.values.abs().max())
    torch.testing.assert_close(states.values, torch.cat(alone), rtol=0, atol=(1e-5 if bits == 4 else 2e-2) * scale)
    gap = (states.values - full.states(batch).values).norm() / states.values.norm()
    assert 1e-4 < gap < (0.3 if bits == 4 else 0.05)


@FOUR
@torch.no_grad()
def test_four_bits_are_the_weights_they_stand_for(folders: Path, name: str) -> None:
    """In the network's own precision: the same as plain layers with the values that the 4 bits mean."""
    import bitsandbytes as bnb

    net, plain = base(folders, name), base(folders, name, None)
    for path, module in net.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(path).weight.copy_(weight)  # type: ignore[operator,union-attr]
    batch = batch_for(net)
    torch.testing.assert_close(answer(net, batch), answer(plain, batch), rtol=0, atol=1e-4)


@BASES
def test_what_methods_ask_of_a_layer(folders: Path, name: str, bits: int) -> None:
    """Packed weights have other shapes; the features are the layer's own."""
    net, full = base(folders, name, bits), base(folders, name, None)
    for host, twin in zip(hosts(net), hosts(full), strict=True):
        assert features(host) == features(twin) == tuple(reversed(weight_of(twin).shape))
        assert not quantised(twin)
        with pytest.raises(TypeError, match="packed"):
            weight_of(host)


def test_quiet(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    """bitsandbytes warns at every call of an 8-bit layer in fp32."""
    net = base(folders, "bert", 8)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        answer(net, batch_for(net))
    assert not caplog.records


def test_refused_at_the_door(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refusal, match="3 bits"):
        base(folders, "bert", 3)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(Refusal, match="needs bitsandbytes") as caught:
        load_network(Origin(str(folders / "bert"), "bert", None, 4), generates=False)
    assert caught.value.fix == 'pip install "tunesmith[quant]"'


# ------------------------------------------------------------------------------------------------ methods on it


@BASES
def test_qlora(folders: Path, name: str, bits: int) -> None:
    """30 steps, with an evaluation between them, which must not cut the gradient; the base is there all along, and at the end."""
    net = base(folders, name, bits)
    batch, before = batch_for(net), state(net)
    with torch.no_grad():
        untuned = answer(net, batch)
    delta = LoRA(rank=4).attach(net)
    losses = train(net, delta, batch, 10)
    with torch.no_grad():
        answer(net, batch)
    losses += train(net, delta, batch, 20)
    assert losses[-1] < 0.8 * losses[0]
    low = [p for n, p in delta.parameters().items() if net.anatomy.block_of(n) == 0]
    answer(net.train(), batch).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in low)
    net.eval()
    with torch.no_grad(), delta.absent():
        assert torch.equal(answer(net, batch), untuned)
    delta.detach()
    assert equal(state(net), before)
    with torch.no_grad():
        assert torch.equal(answer(net, batch), untuned)


SMALL: dict[str, Method] = {
    "bitfit": BitFit(),
    "adapter": Adapter(width=4),
    "parallel": Adapter(width=4, placement="parallel"),
    "prompt": Prompt(length=3),
    "prefix": Prefix(length=3),
    "ia3": Peft(),
    "peft-lora": Peft("LORA", {"r": 4}),
}


@pytest.mark.parametrize("method", SMALL.values(), ids=SMALL)
@FOUR
def test_small_methods_train(folders: Path, name: str, method: Method) -> None:
    """In bf16, as a run on a quantised base computes; what moves stays fp32, biases of quantised layers too."""
    if isinstance(method, Peft) and importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed")
    net = base(folders, name)
    batch, before = batch_for(net), state(net)
    torch.manual_seed(0)
    delta = method.attach(net)
    net.compute = torch.bfloat16
    delta.cast(torch.bfloat16)
    losses = train(net, delta, batch, 30)
    assert losses[-1] < losses[0]
    assert {p.dtype for p in delta.parameters().values()} == {torch.float32}
    delta.detach()
    assert equal(state(net), before)


REFUSED: dict[str, tuple[Method, str]] = {
    "full": (Full(), "take no gradient"),
    "layers": (Layers(last=1), "take no gradient"),
    "dora": (LoRA(rank=2, dora=True), "dora reads the base weights"),
    "pissa": (LoRA(rank=2, start="pissa"), "pissa reads the base weights"),
}


@pytest.mark.parametrize(("method", "says"), REFUSED.values(), ids=REFUSED)
@BASES
def test_refused(folders: Path, name: str, bits: int, method: Method, says: str) -> None:
    with pytest.raises(Refusal, match=says) as caught:
        method.attach(base(folders, name, bits))
    assert caught.value.fix


@pytest.mark.parametrize("method", [LoRA(rank=2), Peft(), Peft("LORA", {"r": 2})], ids=["lora", "ia3", "peft-lora"])
@pytest.mark.parametrize("name", ["llama", "t5"])  # transformers leaves some layers of T5 in fp32: none of them may be merged alone
@torch.no_grad()
def test_merging_is_refused_whole(folders: Path, name: str, method: Method) -> None:
    if isinstance(method, Peft) and importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed")
    net = base(folders, name)
    delta = method.attach(net)
    stir(delta.parameters())
    batch = batch_for(net)
    tuned = answer(net, batch)
    with pytest.raises(Refusal) as caught:
        delta.merge()
    assert caught.value.where == "export"
    assert torch.equal(answer(net, batch), tuned)


def test_head_trains_above_it(folders: Path) -> None:
    """The output embedding is not quantised."""
    net = base(folders, "llama")
    delta = Head().attach(net)
    assert delta.trains == {"model.lm_head.weight"}
    losses = train(net, delta, batch_for(net), 10)
    assert losses[-1] < losses[0]


@torch.no_grad()
def test_the_state_is_the_delta_alone(folders: Path) -> None:
    """The scales of packed weights are the base's, so a delta trained on 4 bits loads on the full base."""
    net, full = base(folders, "bert"), base(folders, "bert", None)
    delta, there = LoRA(rank=2).attach(net), LoRA(rank=2).attach(full)
    assert not [n for n in net.state_dict() if "absmax" in n or "quant" in n]
    assert set(delta.state_dict()) == set(there.state_dict()) == delta.trains
    stir(delta.parameters())
    there.load_state_dict(delta.state_dict())
    batch = batch_for(net)
    assert not torch.equal(answer(full, batch), answer(base(folders, "bert", None), batch))
