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
    """`size` examples a batch, the last of an epoch perhaps fewer. `row` (B,) in each batch is the index of the row.

    An example is a row, or the rows of one `group` (consecutive in the columns), which stay together. Within a batch examples go
    from short to long, so that a packed batch needs no reordering; the loss does not see it.
    """

    columns: Mapping[str, Tensor | Ragged]
    task: str = "task"
    size: int = 32
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def gives(self) -> frozenset[str]:
        return frozenset(self.columns) | {"row"}

    @property
    def table(self) -> Table:
        return self

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        ids = self.columns["ids"]
        assert isinstance(ids, Ragged)
        return ids.lengths

    @cached_property
    def examples(self) -> list[range]:
        """The rows of each example."""
        return Batch({k: v for k, v in self.columns.items() if k in ("ids", "group")}).groups()

    @cached_property
    def long(self) -> list[int]:
        """Tokens of each example."""
        return [sum(self.lengths[i] for i in rows) for rows in self.examples]

    @property
    def period(self) -> int:
        """Batches an epoch."""
        return -(-len(self.examples) // self.size)

    def fill(self, net: Network) -> None:
        """All is there."""

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]:
        epoch, skip = divmod(start, self.period)
        while True:
            for chosen in self.order(epoch).split(self.size)[skip:]:
                yield self.batch(chosen.tolist())
            epoch, skip = epoch + 1, 0

    def order(self, epoch: int) -> Tensor:
        """(n,): the permutation of the examples in this epoch."""
        return torch.randperm(len(self.examples), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))

    def once(self, net: Network | None = None, tokens: int | None = None) -> Iterator[Batch]:
        """Every row once, short to long, up to `tokens` tokens a batch: for evaluation. By default as many as keep the device busy. Needs no network."""
        tokens = tokens or (512 if self.device.type == "cpu" else 16384)
        pending: list[int] = []
        for i in sorted(range(len(self.examples)), key=self.long.__getitem__):
            if pending and self.long[i] * (len(pending) + 1) > tokens:
                yield self.batch(pending)
                pending = []
            pending.append(i)
        yield self.batch(pending)

    def batch(self, examples: Sequence[int]) -> Batch:
        rows = [i for e in sorted(examples, key=lambda e: (self.long[e], e)) for i in self.examples[e]]
        return Batch(self.columns, self.task).pick(rows).plus(row=torch.tensor(rows)).to(self.device)
