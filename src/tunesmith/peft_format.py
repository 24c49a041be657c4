"""LoRA, prompts and prefixes as peft writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.

    lora    base_model.model.<path>.lora_A.weight (r, in), .lora_B.weight (out, r), DoRA .lora_magnitude_vector (out)
    prompt  prompt_embeddings (p, D)
    prefix  prompt_embeddings (p, 2 layers * kv heads * d), key of layer i at 2i, value at 2i + 1

PiSSA is written as plain LoRA of twice the rank, W + s (BA - B0 A0), which any reader of LoRA understands. What peft has no place
for (heads, the detour of a reparametrised prompt) stays in our own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .core import Delta, Method, Network
from .methods import LoRA, Prefix, Prompt

ROOT = "base_model.model."
KINDS = {"encoder": "FEATURE_EXTRACTION", "decoder": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}


@dataclass(frozen=True)
class Adapter:
    """`config` and `tensors` for peft; `ours`: the names of our delta that they cover."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    ours: frozenset[str]


def to_peft(method: Method, delta: Delta, base: str) -> Adapter | None:
    """None where peft has no format for the method."""
    writer = WRITERS.get(type(method))
    return writer(method, delta, base) if writer else None


def common(net: Network, base: str, kind: str) -> dict[str, Any]:
    task = KINDS[net.anatomy.kind] if not len(net.heads) else "FEATURE_EXTRACTION"
    return {"peft_type": kind, "task_type": task, "base_model_name_or_path": base, "inference_mode": True}


def write_lora(method: LoRA, delta: Delta, base: str) -> Adapter:
    state, net = delta.state_dict(), delta.net
    paths = sorted({n.removesuffix(".lora.A") for n in state if n.endswith(".lora.A")})
    tensors: dict[str, Tensor] = {}
    for path in paths:
        a, b = state[f"{path}.lora.A"], state[f"{path}.lora.B"]
        if method.start == "pissa":
            a, b = torch.cat([a, state[f"{path}.lora.A0"]]), torch.cat([b, -state[f"{path}.lora.B0"]], 1)
        name = ROOT + path.removeprefix("model.")
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        if method.dora:
            tensors[f"{name}.lora_magnitude_vector"] = state[f"{path}.lora.m"]
    double = 2 if method.start == "pissa" else 1
    rank = method.rank * double
    alpha = method.alpha * (double**0.5 if method.rslora else double)
    config = common(net, base, "LORA") | {
        "r": rank, "lora_alpha": alpha, "lora_dropout": method.dropout, "use_rslora": method.rslora, "use_dora": method.dora, "bias": "none",
        "target_modules": [p.removeprefix("model.") for p in paths], "fan_in_fan_out": net.model.config.model_type == "gpt2",
        "init_lora_weights": True, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip
    return Adapter(config, tensors, frozenset(n for n in state if ".lora." in n))


def read_lora(method: LoRA, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names again. A doubled rank is cut in its two halves."""
    names = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_magnitude_vector": "m", "lora_magnitude_vector.weight": "m"}
    state: dict[str, Tensor] = {}
    for key, value in tensors.items():
        path, _, kind = key.removeprefix(ROOT).rpartition(".lora_")
        part = names[f"lora_{kind}"]
        if method.start == "pissa" and part != "m":
            half = method.rank
            state[f"model.{path}.lora.{part}"] = value[:half] if part == "A" else value[:, :half]
            state[f"model.{path}.lora.{part}0"] = value[half:] if part == "A" else -value[:, half:]
        else:
            state[f"model.{path}.lora.{part}"] = value
    return state


def write_prompt(method: Prompt, delta: Delta, base: str) -> Adapter:
    net = delta.net
    assert net.prompt is not None
    with torch.no_grad():
        rows = net.prompt()
    config = common(net, base, "PROMPT_TUNING") | sizes(net, len(rows), net.anatomy.width) | {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None}
    return Adapter(config, {"prompt_embeddings": rows}, frozenset({"prompt.rows"}) if method.reparametrise == "none" else frozenset())


def write_prefix(method: Prefix, delta: Delta, base: str) -> Adapter:
    net = delta.net
    assert net.prefix is not None
    with torch.no_grad():
        rows = net.prefix()
    flat = rows.transpose(0, 1).flatten(1)  # (p, 2 layers * kv heads * d)
    width = net.anatomy.kv_heads * net.anatomy.head_dim
    config = common(net, base, "PREFIX_TUNING") | sizes(net, len(flat), width) | {"encoder_hidden_size": width, "prefix_projection": False}
    return Adapter(config, {"prompt_embeddings": flat}, frozenset({"prefix.rows"}) if method.reparametrise == "none" else frozenset())


def sizes(net: Network, length: int, width: int) -> dict[str, Any]:
    a = net.anatomy
    return {
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_layers": len(a.attentions),
        "num_attention_heads": a.kv_heads,
        "num_transformer_submodules": 1,
    }


def read_prompt(method: Prompt, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"prompt.rows": tensors["prompt_embeddings"]} if method.reparametrise == "none" else {}


def read_prefix(method: Prefix, tensors: Mapping[str, Tensor], net: Network) -> dict[str, Tensor]:
    rows, a = tensors["prompt_embeddings"], net.anatomy
    if method.reparametrise != "none":
        return {}
    return {"prefix.rows": rows.view(len(rows), -1, a.kv_heads, a.head_dim).transpose(0, 1)}


def from_peft(method: Method, net: Network, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of our delta's state that peft's tensors hold."""
    if isinstance(method, LoRA):
        return read_lora(method, tensors)
    return read_prompt(method, tensors) if isinstance(method, Prompt) else read_prefix(method, tensors, net)  # type: ignore[arg-type]


def method_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Method | None:
    """The method behind an adapter_config.json that somebody else wrote, if it is one of the three."""
    kind = config["peft_type"]
    if kind == "LORA":
        paths = sorted({k.removeprefix(ROOT).rpartition(".lora_")[0] for k in tensors if ".lora_A." in k})
        return LoRA(
            rank=config["r"], alpha=config["lora_alpha"], targets=tuple(paths), rslora=config.get("use_rslora", False), dora=config.get("use_dora", False)
        )
    if kind == "PROMPT_TUNING":
        return Prompt(length=config["num_virtual_tokens"])
    return Prefix(length=config["num_virtual_tokens"], start="random") if kind == "PREFIX_TUNING" else None


WRITERS: dict[type[Method], Callable[[Any, Delta, str], Adapter]] = {LoRA: write_lora, Prompt: write_prompt, Prefix: write_prefix}
