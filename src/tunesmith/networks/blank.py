"""A published model without its values: its shapes alone, on which a run can be rehearsed in no memory and nearly no time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from . import attention
from .layout import bounds_of, layout, own_tokens, with_prompt
from .load import UNABLE, Origin, attention_for, auto_class, block_arity, laid_out, load_config, set_dropout
from .shorten import keep_blocks
from .transformer import Transformer


@contextmanager
def blank_network(source: Origin, *, generates: bool, worded: bool = False, dropout: float | None = None, tokenizer: Any = None) -> Iterator[Transformer]:
    """Within, every tensor has a shape, a dtype and a device, and no storage. What only values could tell is presumed: that a class packs which
    takes a seat, and that stored states may stand for the blocks under them. Raises Refusal where loading the model would, but for its weights.
    """
    attention.register()
    config = load_config(source)
    if dropout is not None:
        set_dropout(config, dropout)
    with torch.device("meta"):
        model = auto_class(config, generates, worded).from_config(
            config, dtype=getattr(config, "dtype", None) or torch.float32, attn_implementation=attention_for(config)
        )
    if source.blocks is not None:
        keep_blocks(model, source.blocks)
    with FakeTensorMode(allow_non_fake_inputs=True):
        unreal(model)
        net = laid_out(model, generates or worded, tokenizer=tokenizer)
        if net.anatomy.kind != "seq2seq":
            try:
                net.arity = block_arity(net)
            except UNABLE:
                net.packs = False
                net.arity = block_arity(net)
            net.skips = net.anatomy.depth > 1
        try:
            yield net
        finally:
            for remembered in (layout, bounds_of, with_prompt, own_tokens):
                remembered.cache_clear()  # they hold tensors without storage now


def bytes_of(source: Origin, generates: bool) -> int:
    """Of a network's weights, none of which is loaded."""
    with blank_network(source, generates=generates) as net:
        return sum(p.untyped_storage().nbytes() for p in net.parameters())


def unreal(model: nn.Module) -> None:
    """Every parameter and buffer becomes one that claims to lie on the CPU; tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fresh = torch.empty(tensor.shape, dtype=tensor.dtype)
                    made[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fresh
                kind[name] = made[id(tensor)]  # type: ignore[assignment]
