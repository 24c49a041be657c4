"""What stands on the trunk: a pooling over rows, and one head a task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import Ragged

Pool = Literal["mean", "cls", "last"]


def mean(states: Ragged) -> Tensor:
    """(B, D): the mean over all tokens of a row, special ones included, in fp32 or better (as sentence-transformers pools)."""
    values = exact(states.values)
    lengths = torch.tensor(states.lengths, device=values.device)
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), lengths, output_size=len(values))
    return values.new_zeros(len(lengths), values.shape[-1]).index_add(0, rows, values) / lengths[:, None]


def exact(x: Tensor) -> Tensor:
    """fp32, or what is finer."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cls(states: Ragged) -> Tensor:
    """(B, D): the first token of each row."""
    lengths = torch.tensor(states.lengths)
    return exact(states.values[(lengths.cumsum(0) - lengths).to(states.values.device)])


def last(states: Ragged) -> Tensor:
    """(B, D): the last token of each row, the only one that has seen all others in a decoder."""
    return exact(states.values[(torch.tensor(states.lengths).cumsum(0) - 1).to(states.values.device)])


POOLS = {"mean": mean, "cls": cls, "last": last}


@dataclass(frozen=True)
class HeadSpec:
    """What a head is made by.

    classes   outputs
    kind      linear, or mlp: one layer of `hidden` units (as wide as its input by default) with tanh before it (as RoBERTa's head)
    dropout   before each layer
    usual     share of the answers that class 0 is. The head begins by saying so, all others alike: else the first steps teach nothing but that, they teach
              it to the whole trunk, and a trunk that moves fast says it for good (after Lin et al. 2017, section 3.3, who have it for a binary answer)
    centre    mean of the answers, where they are numbers, and `spread`, their standard deviation: the head says centre + spread x what its layers say. So it begins
              near the mean, and stars and per cent are learnt at one rate
    """

    classes: int
    kind: Literal["linear", "mlp"] = "linear"
    hidden: int | None = None
    dropout: float = 0.1
    usual: float | None = None
    centre: float = 0.0
    spread: float = 1.0


class Head(nn.Sequential):
    """(..., D) -> (..., C), in fp32.

    open   so many of the classes are known yet, and no others are given or learnt; None: all
    """

    open: int | None = None

    def __init__(self, width: int, spec: HeadSpec):
        inner = spec.hidden or width
        deep = [nn.Linear(width, inner), nn.Tanh(), nn.Dropout(spec.dropout)] if spec.kind == "mlp" else []
        super().__init__(nn.Dropout(spec.dropout), *deep, nn.Linear(inner if deep else width, spec.classes))
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        if spec.usual is not None:
            share = min(max(spec.usual, 0.01), 0.99)
            self[-1].bias.data[0] = math.log(share * (spec.classes - 1) / (1 - share))  # type: ignore[index,union-attr]
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        with torch.autocast(x.device.type, enabled=False):
            return self.spec.centre + self.spec.spread * super().forward(x.float())[..., : self.open]

    @torch.no_grad()
    def say(self, weight: Tensor, bias: Tensor) -> None:
        """From now on its last layer is this line, (C, D) and (C,), in the answers' own unit."""
        self[-1].weight.copy_(weight / self.spec.spread)  # type: ignore[operator,union-attr]
        self[-1].bias.copy_((bias - self.spec.centre) / self.spec.spread)  # type: ignore[operator,union-attr]
