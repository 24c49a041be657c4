"""Rows in memory, shuffled anew each epoch. The order is a function of (seed, epoch): nothing has to be replayed to continue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..core import Batch, Network, Ragged


@dataclass(frozen=True)
class Table:
    """`size` rows a batch, the last of an epoch perhaps fewer. `row` (B,) in each batch is the index of the example.

    Within a batch rows go from short to long, so that a packed batch needs no reordering; the loss does not see it.
    """

    columns: Mapping[str, Tensor | Ragged]
    task: str = "task"
    size: int = 32
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def gives(self) -> frozenset[str]:
        return frozenset(self.columns) | {"row"}

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        ids = self.columns["ids"]
        assert isinstance(ids, Ragged)
        return ids.lengths

    @property
    def period(self) -> int:
        """Batches an epoch."""
        return -(-len(self) // self.size)

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]:
        epoch, skip = divmod(start, self.period)
        while True:
            for rows in self.order(epoch).split(self.size)[skip:]:
                yield self.batch(rows.tolist())
            epoch, skip = epoch + 1, 0

    def order(self, epoch: int) -> Tensor:
        """(n,): the permutation of this epoch."""
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))

    def once(self, tokens: int | None = None) -> Iterator[Batch]:
        """Every row once, short to long, up to `tokens` tokens a batch: for evaluation. By default as many as keep the device busy."""
        tokens = tokens or (512 if self.device.type == "cpu" else 16384)
        pending: list[int] = []
        for i in sorted(range(len(self)), key=self.lengths.__getitem__):
            if pending and self.lengths[i] * (len(pending) + 1) > tokens:
                yield self.batch(pending)
                pending = []
            pending.append(i)
        yield self.batch(pending)

    def batch(self, rows: Sequence[int]) -> Batch:
        rows = sorted(rows, key=lambda i: (self.lengths[i], i))
        return Batch(self.columns, self.task).pick(rows).plus(row=torch.tensor(rows)).to(self.device)
