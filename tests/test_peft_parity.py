"""LoRA and its kin, prompts and prefixes compute what PEFT computes with the same weights, carried over in either direction."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tiny import LENGTHS, batch_for, network, plain, spoken, stir
from tunesmith.core import Batch, Method
from tunesmith.methods import LoRA, Prefix, Prompt
from tunesmith.networks.transformer import Transformer

peft = pytest.importorskip("peft")

NAMES = ("llama", "gpt2", "bert", "llama:lm", "gpt2:lm")
TASKS = {True: "FEATURE_EXTRACTION", False: "CAUSAL_LM"}
EITHER = pytest.mark.parametrize("to_peft", [True, False], ids=["to peft", "from peft"])


def wrapped(net: Transformer, make: Callable[..., object], **options: object) -> nn.Module:
    """PEFT's model over the published class with the base's weights."""
    torch.manual_seed(7)
    return peft.get_peft_model(plain(net), make(task_type=TASKS[len(net.heads) > 0], **options)).eval()


def move(pairs: list[tuple[Tensor, Tensor]], to_peft: bool) -> None:
    """Copy ours to theirs, or theirs to ours; shapes agree."""
    assert pairs
    with torch.no_grad():
        for ours, theirs in pairs:
            assert ours.shape == theirs.shape
            source, target = (ours, theirs) if to_peft else (theirs, ours)
            target.copy_(source)


def speak(net: Transformer, batch: Batch) -> Tensor:
    """States of all tokens, or logits at labelled ones."""
    return net.states(batch).values if len(net.heads) else net.logits(batch)


def hear(model: nn.Module, net: Transformer, batch: Batch, before: int = 0) -> Tensor:
    """The same from PEFT, row by row, without the rows that stand `before` the text."""
    outs = [model(input_ids=row[None]) for row in batch.ragged("ids").rows()]
    if len(net.heads):
        return torch.cat([out.last_hidden_state[0, before:] for out in outs])
    return torch.cat([out.logits[0, before:] for out in outs])[batch.labelled()]


def agree(ours: Tensor, theirs: Tensor, base: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, base, atol=1e-2), "the delta does nothing, so that nothing was compared"


# ------------------------------------------------------------------------------------------------ LoRA

LOW_RANK: dict[str, tuple[LoRA, dict[str, object]]] = {
    "lora": (LoRA(rank=3, alpha=5.0), {}),
    "rslora": (LoRA(rank=3, alpha=5.0, rslora=True), {"use_rslora": True}),
    "dora": (LoRA(rank=3, alpha=5.0, dora=True), {"use_dora": True}),
}


def low_rank(variant: str, name: str, to_peft: bool, seed: int = 0) -> tuple[Transformer, nn.Module, list[tuple[Tensor, Tensor]]]:
    """Both models with the same factors, and the pairs of parameters."""
    net = network(name)
    method, options = LOW_RANK[variant]
    model = wrapped(net, peft.LoraConfig, r=3, lora_alpha=5.0, target_modules="all-linear", fan_in_fan_out="gpt2" in name, **options)
    delta = method.attach(net)
    inserts = {path: net.get_submodule(path).lora for path in net.anatomy.linears}
    layers = {path: model.get_submodule(f"base_model.{path}") for path in inserts}
    found = {f"model.{n.removeprefix('base_model.model.').rpartition('.lora_A')[0]}" for n, _ in model.named_parameters() if ".lora_A." in n}
    assert found - {"model.pooler.dense"} == set(inserts)
    pairs = [(insert.A, layers[path].lora_A["default"].weight) for path, insert in inserts.items()]
    pairs += [(insert.B, layers[path].lora_B["default"].weight) for path, insert in inserts.items()]
    if method.dora:
        pairs += [(insert.m, layers[path].lora_magnitude_vector["default"].weight) for path, insert in inserts.items()]
        for ours, theirs in pairs[2 * len(inserts) :]:
            torch.testing.assert_close(ours, theirs)  # both start at the length of the rows
    ours = dict(delta.parameters())
    stir({n: p for n, p in ours.items() if ".lora." in n} if to_peft else {str(i): theirs for i, (_, theirs) in enumerate(pairs)}, 0.1, seed)
    move(pairs, to_peft)
    return net, model, pairs


@EITHER
@pytest.mark.parametrize("variant", LOW_RANK)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_low_rank(variant: str, name: str, to_peft: bool) -> None:
    base = network(name)
    batch = batch_for(base) if len(base.heads) else spoken(*LENGTHS)
    net, model, _ = low_rank(variant, name, to_peft)
    agree(speak(net, batch), hear(model, net, batch), speak(base, batch))


@pytest.mark.parametrize("variant", LOW_RANK)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_low_rank(variant: str, name: str) -> None:
    net, model, pairs = low_rank(variant, name, True)
    batch = batch_for(net) if len(net.heads) else spoken(*LENGTHS)
    speak(net, batch).square().sum().backward()
    hear(model, net, batch).square().sum().backward()
    for ours, theirs in pairs:
        size = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5 * max(1.0, size))


@pytest.mark.parametrize("variant", LOW_RANK)
@pytest.mark.parametrize("name", ["llama:lm", "gpt2", "bert"])
@torch.no_grad()
def test_merged_weights(variant: str, name: str) -> None:
    net, model, _ = low_rank(variant, name, True)
    merged = model.merge_and_unload().state_dict()
    for insert in [m for m in net.modules() if hasattr(m, "fold") and hasattr(m, "graft")]:
        insert.fold()
        insert.ungraft()
    ours = net.model.state_dict()
    assert ours.keys() == merged.keys()
    for n, t in ours.items():
        if "pooler" not in n:
            torch.testing.assert_close(t, merged[n], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@torch.no_grad()
def test_pissa(name: str) -> None:
    """PEFT starts its factors at the same singular vectors (and takes them out of the base, where we subtract them)."""
    net = network(name)
    batch, base = batch_for(net), copy.deepcopy(net)
    torch.manual_seed(0)
    replace(LOW_RANK["lora"][0], start="pissa").attach(net)
    options = {"init_lora_weights": "pissa", "target_modules": "all-linear", "fan_in_fan_out": name == "gpt2"}
    model = wrapped(base, peft.LoraConfig, r=3, lora_alpha=5.0, **options)
    for path in net.anatomy.linears:
        insert, layer = net.get_submodule(path).lora, model.get_submodule(f"base_model.{path}")
        torch.testing.assert_close(insert.B @ insert.A, layer.lora_B["default"].weight @ layer.lora_A["default"].weight, rtol=0, atol=1e-2)
    torch.testing.assert_close(speak(net, batch), hear(model, net, batch), rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------ prompts and prefixes


def soft(method: Method, make: Callable[..., object], name: str, to_peft: bool) -> tuple[Transformer, nn.Module]:
    """Both models with the same rows. PEFT's prefix is (p, 2 layers * kv heads * d)."""
    net = network(name)
    model = wrapped(net, make, num_virtual_tokens=3)
    method.attach(net)
    theirs = model.prompt_encoder["default"].embedding.weight
    ours = (net.prompt or net.prefix).rows
    stir({"rows": ours if to_peft else theirs}, 0.5)
    flat = ours.transpose(0, 1).reshape(theirs.shape) if ours.dim() == 4 else ours
    with torch.no_grad():
        if to_peft:
            theirs.copy_(flat)
        else:
            ours.copy_(theirs.view(3, *ours.shape[:1], *ours.shape[2:]).transpose(0, 1) if ours.dim() == 4 else theirs)
    return net, model


@EITHER
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_prompt_tuning(name: str, to_peft: bool) -> None:
    base = network(name)
    batch = batch_for(base)
    net, model = soft(Prompt(length=3, start="random"), peft.PromptTuningConfig, name, to_peft)
    agree(speak(net, batch), hear(model, net, batch, before=3), speak(base, batch))


@EITHER
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_prefix_tuning(name: str, to_peft: bool) -> None:
    base = network(name)
    batch = batch_for(base)
    net, model = soft(Prefix(length=3, start="random"), peft.PrefixTuningConfig, name, to_peft)
    assert model.prompt_encoder["default"].embedding.weight.shape == (3, net.prefix.rows[:, 0].numel())
    agree(speak(net, batch), hear(model, net, batch), speak(base, batch))
