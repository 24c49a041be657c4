"""A base stored in 4 or 8 bits by bitsandbytes: how it is asked for, and how its layers are made to behave like any other.

Three habits of bitsandbytes 0.50 would be silent faults in training, and are taken from its layers before their first call:
it repacks 4-bit weights for the CPU at the first evaluation, after which no gradient passes; it casts a layer's bias in place
to the dtype of its input, so that a bias that trains loses its fp32; and its scales stand in the state as if they were added.
"""

from __future__ import annotations

import importlib.util
import logging

import torch
import transformers as hf
from torch import Tensor, nn

from ..errors import Refusal, not_installed


def configuration(bits: int) -> hf.BitsAndBytesConfig:
    """NF4 with double quantisation (Dettmers et al. 2023, QLoRA, section 3), or LLM.int8 (Dettmers et al. 2022)."""
    if missing := [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]:
        raise not_installed(f"a {bits}-bit base needs {' and '.join(missing)}", "quant", where="model.bits")
    if bits not in (4, 8):
        raise Refusal(f"a base in {bits} bits cannot be loaded", where="model.bits", fix="4 or 8")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of a kernel it lacks, and of each cast of an 8-bit layer
    if bits == 4:
        return hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return hf.BitsAndBytesConfig(load_in_8bit=True)


def tame(model: nn.Module) -> None:
    """Put a Steady before every quantised layer. Call it before the model's first forward pass."""
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = None, True  # compute in the dtype of the input, which Steady sets
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            module.forward = Steady(module)  # type: ignore[method-assign,assignment]


class Steady:
    """Stands before one quantised layer: x W^T in the network's compute dtype, and the bias added outside, as it is stored.

    A class, so that a copied model copies it along.
    """

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        device, held = x.device.type, self.module._parameters
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        bias, held["bias"] = held["bias"], None
        try:
            y = type(self.module).forward(self.module, x.to(dtype))
        finally:
            held["bias"] = bias
        return y if bias is None else y + bias.to(y.dtype)


def own_tensors(net: nn.Module, state: dict[str, Tensor], prefix: str, _: object) -> None:
    """A state hook: parameters and buffers only. The scales of packed weights belong to the base, which is never stored."""
    own = {n for n, _ in net.named_parameters(remove_duplicate=False)} | {n for n, _ in net.named_buffers(remove_duplicate=False)}
    for name in [n for n in state if n.removeprefix(prefix) not in own]:
        del state[name]
