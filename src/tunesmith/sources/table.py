"""Rows in memory, shuffled anew each epoch. The order is a function of (seed, epoch): nothing has to be replayed to continue."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..core import Batch, Network, Ragged


@dataclass(frozen=True)
class Table:
    """`size` examples a batch, the last of an epoch perhaps fewer. `row` (B,) in each batch is the index of the row.

    `together`: so many examples of a label (or a little more, where its number is no multiple; all, where it has fewer) follow each other in the order of
    an epoch, and others of that label come much later: batches in which rows have a like. Every example still comes once an epoch.

    An example is a row, or the rows of one `group` (consecutive in the columns), which stay together. Within a batch examples go
    from short to long, so that a packed batch needs no reordering; the loss does not see it.
    """

    columns: Mapping[str, Tensor | Ragged]
    task: str = "task"
    size: int = 32
    seed: int = 0
    together: int = 1
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
        dice = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        mixed = torch.randperm(len(self.examples), generator=dice)
        return mixed if self.together == 1 else torch.tensor(self.met(mixed.tolist(), dice))

    def met(self, mixed: Sequence[int], dice: torch.Generator) -> list[int]:
        """The same examples in runs of one label; a label's runs are spread evenly over the epoch."""
        of_label: dict[int, list[int]] = defaultdict(list)
        labels = self.columns["label"]
        assert isinstance(labels, Tensor)
        told = labels.tolist()
        for i in mixed:
            of_label[told[self.examples[i][0]]].append(i)
        runs: list[tuple[float, list[int]]] = []
        for rows in of_label.values():
            parts = max(1, len(rows) // self.together)
            places = (torch.arange(parts) + torch.rand(parts, generator=dice)) / parts
            runs += [(place, rows[k::parts]) for k, place in enumerate(places.tolist())]
        return [i for _, run in sorted(runs) for i in run]

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
