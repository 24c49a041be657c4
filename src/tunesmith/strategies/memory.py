"""The memory of past examples: a bounded sample of all that was learnt from, uniform or balanced over classes.

An example gets a number in [0, 1) by (seed, stage), once; the memory holds those with the smallest numbers. So after any stage it is a uniform sample,
without replacement, of all examples so far, as a reservoir is (Vitter 1985), and nothing of how it came to be has to be stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..core import Batch, Network, Ragged, under
from ..sources.mix import shares

Balance = Literal["reservoir", "class"]
OWN = ("number", "class", "stage")  # columns of the memory itself
Ask = Callable[[Network, Batch], Ragged]


@dataclass
class Memory:
    """At most `size` examples, by task, as their columns travel: tokens, lengths, labels, groups, what sources added; `row` is the place in their stage's table.

    An example is a row, or the rows of a group. Rows never part and never change. Of each task at least one is kept.
    balance  `reservoir`: uniform over examples; `class`: as many of each label, or, where rows have not one label each, of each stage
    """

    size: int
    balance: Balance = "reservoir"
    held: dict[str, Batch] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(batch.groups()) for batch in self.held.values())

    def learn(self, source: Any, net: Network, stage: int, seed: int, ask: Ask | None = None) -> None:
        """Take in the examples of a stage that is over. `ask`: what the network says of a row, at rest, is kept as its column `dark`."""
        table, new = source.table, numbered(source.table, stage, seed)
        entries = [Entry(key, e, float(b["number"][rows[0]]), int(b["class"][rows[0]])) for key, b in self.held.items() for e, rows in enumerate(b.groups())]
        old = len(entries)
        entries += [Entry(table.task, e, float(new["number"][e]), int(new["class"][e])) for e in range(len(table.examples))]
        keep = chosen(entries, self.size, self.balance)
        for key, batch in self.held.items():
            stays = {entries[i].place for i in keep if i < old and entries[i].task == key}
            self.held[key] = batch.pick([i for e, rows in enumerate(batch.groups()) if e in stays for i in rows])
        if comes := [entries[i].place for i in keep if i >= old]:
            fresh = gathered(source, net, comes, new, ask)
            self.held[table.task] = joined([self.held[table.task], fresh] if table.task in self.held else [fresh])

    def draw(self, examples: int, dice: torch.Generator) -> list[Batch]:
        """One batch a task, their sizes in proportion to what is held of each; `replayed` (B,) is the task's share of what is drawn."""
        sizes = [len(batch.groups()) for batch in self.held.values()]
        drawn = []
        for (key, batch), size, most in zip(self.held.items(), shares(examples, [n / sum(sizes) for n in sizes]), sizes, strict=True):
            groups = batch.groups()
            long = batch.ragged("ids").lengths
            picked = sorted(torch.randperm(most, generator=dice)[:size].tolist(), key=lambda e: (sum(long[i] for i in groups[e]), e))
            rows = batch.pick([i for e in picked for i in groups[e]])
            columns = {name: column for name, column in rows.columns.items() if name not in OWN}
            drawn.append(Batch(columns, key).plus(replayed=torch.full((len(rows),), float(len(picked)))))
        total = sum(float(batch["replayed"][0]) for batch in drawn)
        return [batch.plus(replayed=batch["replayed"] / total) for batch in drawn]

    # -------------------------------------------------------------------------------------------- over an interruption

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for key, batch in self.held.items():
            for name, column in batch.columns.items():
                ragged = isinstance(column, Ragged)
                found |= (
                    {f"{key}/token.{name}": column.values, f"{key}/length.{name}": torch.tensor(column.lengths)} if ragged else {f"{key}/row.{name}": column}
                )
        return found

    def recall(self, tensors: Mapping[str, Tensor], keys: Sequence[str]) -> None:
        """`keys`: all tasks in their order, which a file of tensors does not keep; of some nothing may be held."""
        self.held = {}
        for key in keys:
            if own := under(tensors, f"{key}/"):
                rows: dict[str, Tensor | Ragged] = {**under(own, "row.")}
                self.held[key] = Batch(rows | {n: Ragged(t, tuple(own[f"length.{n}"].tolist())) for n, t in under(own, "token.").items()}, key)


class Entry(NamedTuple):
    """An example that may stay. `place`: among those of its task in the memory, or of the stage's table."""

    task: str
    place: int
    number: float
    kind: int


def chosen(entries: Sequence[Entry], size: int, balance: Balance) -> list[int]:
    """Which of them stay: the smallest numbers, or by turns the smallest of each class; the first of each task before all."""
    turns = defaultdict[tuple[str, int], Iterator[int]](count)
    seen: set[str] = set()
    order = {}
    for i in sorted(range(len(entries)), key=lambda i: entries[i].number):
        one = entries[i]
        order[i] = (one.task in seen, next(turns[one.task, one.kind]) if balance == "class" else 0, one.number)
        seen.add(one.task)
    return sorted(sorted(order, key=order.__getitem__)[:size])


def numbered(table: Any, stage: int, seed: int) -> dict[str, Tensor]:
    """`number` and `class` (n,) of the n examples of a stage's table."""
    n, label = len(table.examples), table.columns.get("label")
    dice = torch.Generator().manual_seed((seed * 1_000_003 + stage * 7_919 + 17) & 0x7FFF_FFFF)
    one_each = isinstance(label, Tensor) and label.dim() == 1 and not label.is_floating_point()
    first = torch.tensor([rows[0] for rows in table.examples])
    return {
        "number": torch.rand(n, generator=dice, dtype=torch.float64),
        "class": label[first] if one_each else torch.full((n,), -1 - stage),
        "stage": torch.full((n,), stage),
    }


def gathered(source: Any, net: Network, wanted: Sequence[int], new: Mapping[str, Tensor], ask: Ask | None) -> Batch:
    """The rows of these examples of the source, with the memory's own columns."""
    example = {i: e for e in wanted for i in source.table.examples[e]}
    found = []
    was = net.training
    net.eval()
    with torch.no_grad():
        for batch in source.once(net):
            if rows := [k for k, i in enumerate(batch["row"].tolist()) if i in example]:
                part = batch.pick(rows)
                part = part.plus(dark=ask(net, part)) if ask else part
                of = torch.tensor([example[i] for i in part["row"].tolist()])
                found.append(part.to(torch.device("cpu")).plus(**{name: column[of] for name, column in new.items()}))
    net.train(was)
    return joined(found)


def joined(batches: Sequence[Batch]) -> Batch:
    """As one, the outputs of fewer classes padded with NaN."""
    if len(batches) > 1 and "dark" in batches[0]:
        width = max(batch["dark"].shape[-1] for batch in batches)
        padded = lambda dark: replace(dark, values=torch.nn.functional.pad(dark.values, (0, width - dark.values.shape[-1]), value=float("nan")))
        batches = [batch.plus(dark=padded(batch.ragged("dark"))) for batch in batches]
    return Batch.joined(batches)
