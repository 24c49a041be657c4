"""What travels: rows laid end to end, and batches of named columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length laid end to end: `values` (N, ...), `lengths` (B), sum(lengths) = N. There is no padding."""

    values: Tensor
    lengths: tuple[int, ...]

    def rows(self) -> tuple[Tensor, ...]:
        return self.values.split(list(self.lengths))

    def starts(self) -> Tensor:
        """(B,): index of each row's first value."""
        return torch.tensor((0, *self.lengths[:-1]), device=self.values.device).cumsum(0)

    def take(self, start: int, stop: int) -> Ragged:
        """Rows start:stop."""
        first = sum(self.lengths[:start])
        return Ragged(self.values[first : first + sum(self.lengths[start:stop])], self.lengths[start:stop])

    def pick(self, rows: Sequence[int]) -> Ragged:
        """These rows, in this order."""
        parts = [self.values[self.offsets[i] : self.offsets[i + 1]] for i in rows]
        return Ragged(torch.cat(parts) if parts else self.values[:0], tuple(len(p) for p in parts))

    @cached_property
    def offsets(self) -> list[int]:
        """Where each row begins, and the end of the last."""
        ends = [0]
        for length in self.lengths:
            ends.append(ends[-1] + length)
        return ends

    def to(self, device: torch.device) -> Ragged:
        return Ragged(self.values.to(device, non_blocking=True), self.lengths)


@dataclass(frozen=True)
class Batch:
    """Named columns of B rows: a Tensor (B, ...) or a Ragged. Enriched by copy, never in place.

    `ids` is the text. `at`, where labels belong to tokens, holds the labelled positions of each row, counted from its start;
    `label` holds their labels, or one label a row. `group` (B,), where rows are scored together (a pair, a preference), is equal for
    those that may not be parted; they follow each other. `said` is what a source tells of the batch, for the record of its step.
    """

    columns: Mapping[str, Tensor | Ragged]
    task: str = "task"
    said: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        column = self.columns[name]
        return column.values if isinstance(column, Ragged) else column

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(self.ragged("ids").lengths)

    def ragged(self, name: str) -> Ragged:
        column = self.columns[name]
        assert isinstance(column, Ragged), f"column {name!r} is not ragged"
        return column

    def groups(self) -> list[range]:
        """Runs of rows that may not be parted; a row by itself where nothing says otherwise."""
        if "group" not in self:
            return [range(i, i + 1) for i in range(len(self))]
        marks = self.numbers("group")
        starts = [i for i, mark in enumerate(marks) if i == 0 or mark != marks[i - 1]]
        return [range(a, b) for a, b in zip(starts, [*starts[1:], len(marks)], strict=False)]

    def numbers(self, name: str) -> list[int]:
        """A column of whole numbers as Python's own; also in a rehearsal, where tensors made within have no values."""
        with unset_fake_temporarily():
            return self[name].tolist()

    def labelled(self) -> Tensor:
        """(M,): the labelled positions as indices into the N tokens."""
        at = self.ragged("at")
        return at.values + self.ragged("ids").starts().repeat_interleave(torch.tensor(at.lengths, device=at.values.device), output_size=len(at.values))

    def take(self, start: int, stop: int) -> Batch:
        """Rows start:stop."""
        return Batch({k: v.take(start, stop) if isinstance(v, Ragged) else v[start:stop] for k, v in self.columns.items()}, self.task)

    def pick(self, rows: Sequence[int]) -> Batch:
        """These rows, in this order."""
        index = torch.tensor(rows, dtype=torch.long)
        return Batch({k: v.pick(rows) if isinstance(v, Ragged) else v[index.to(v.device)] for k, v in self.columns.items()}, self.task)

    @staticmethod
    def joined(batches: Sequence[Batch]) -> Batch:
        """Batches of one task as one, with the columns that all have."""
        if len(batches) == 1:
            return batches[0]
        columns = {name: stacked([b.columns[name] for b in batches]) for name in batches[0].columns if all(name in b for b in batches)}
        if "group" in columns:  # no two batches share one
            sizes = torch.tensor([len(r) for b in batches for r in b.groups()])
            columns["group"] = torch.arange(len(sizes)).repeat_interleave(sizes).to(batches[0]["group"].device)
        return Batch(columns, batches[0].task)

    def plus(self, **columns: Tensor | Ragged) -> Batch:
        return Batch({**self.columns, **columns}, self.task)

    def to(self, device: torch.device) -> Batch:
        return Batch({k: v.to(device) for k, v in self.columns.items()}, self.task)


def stacked(columns: Sequence[Tensor | Ragged]) -> Tensor | Ragged:
    """The rows of several columns of one kind."""
    if isinstance(columns[0], Ragged):
        return Ragged(torch.cat([c.values for c in columns if isinstance(c, Ragged)]), tuple(n for c in columns if isinstance(c, Ragged) for n in c.lengths))
    return torch.cat([c for c in columns if isinstance(c, Tensor)])


T = TypeVar("T")


def under(held: Mapping[str, T], prefix: str) -> dict[str, T]:
    """What is held under names that begin so, by the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
