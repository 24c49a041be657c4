"""Students with dropped layers: a published model of which some blocks are kept, in order, as if it had been published so.

Sanh et al. 2019 (DistilBERT, section 3) start from every other layer of the teacher: `blocks: [0, 2, 4]` of six.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import Refusal
from .parts import ROWS, has, inspect_row

COUNTS = ("num_hidden_layers", "num_decoder_layers", "decoder_layers")  # of a configuration; the first under whatever name it has there
PLACES = ("layer_idx", "layer_id", "block_idx")  # of a module


def keep_blocks(model: Any, kept: Sequence[int]) -> None:
    """Of each stack of blocks, these; an encoder-decoder keeps the same of both. Its configuration says so, so that it is saved and loaded as any other.

    Raises Refusal where there is no such block, or where the class would not build the kept ones in their new places.
    """
    trunk, config = model.base_model, model.config
    row = ROWS.get(config.model_type) or inspect_row(trunk, config)
    stacks = [path for path in row.blocks if has(trunk, path)]
    depth = min(len(trunk.get_submodule(path)) for path in stacks)  # type: ignore[arg-type]
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= depth:
        raise Refusal(
            f"`blocks: {list(kept)}` of a model with blocks 0 to {depth - 1}", where="model.blocks", fix=f"rising numbers, such as {list(range(0, depth, 2))}"
        )
    for path in stacks:
        blocks = trunk.get_submodule(path)
        parent, _, name = path.rpartition(".")
        setattr(trunk.get_submodule(parent), name, nn.ModuleList([renumbered(blocks[i], i, new) for new, i in enumerate(kept)]))  # type: ignore[index]
    for found in {id(c): c for m in model.modules() if (c := m.__dict__.get("config")) is not None}.values():
        recount(found, kept)
    fits_class(model, kept)


def renumbered(block: nn.Module, old: int, new: int) -> nn.Module:
    """The block, whose modules know their new place: where their keys and values are cached, how they are scaled."""
    for module in block.modules():
        for name in PLACES:
            if module.__dict__.get(name) == old:
                setattr(module, name, new)
    return block


def recount(config: Any, kept: Sequence[int]) -> None:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        config.layer_types = [kinds[i] for i in kept]
    for name in COUNTS:
        if getattr(config, name, None) is not None:
            setattr(config, name, len(kept))


def fits_class(model: Any, kept: Sequence[int]) -> None:
    """Whether the class, built from the new configuration, has the parameters that are here: T5's first block holds the position bias of all."""
    with torch.device("meta"):
        fresh = type(model)._from_config(model.config)
    odd = {n for n, _ in fresh.named_parameters()} ^ {n for n, _ in model.named_parameters()}
    if odd:
        raise Refusal(
            f"{type(model).__name__} does not stand on blocks {list(kept)}",
            where="model.blocks",
            why=f"its first block is built unlike the others: {min(odd)}",
            fix=f"keep block 0: {sorted({0, *kept[1:]})}",
        )
