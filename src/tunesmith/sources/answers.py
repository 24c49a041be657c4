"""What a teacher answered, kept by example in files that are mapped into memory: columns of every batch, read row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..core import Batch, Network, Ragged
from .features import Features
from .table import Table
from .witness import Witness


@dataclass(frozen=True)
class Stored:
    """Answers by example: `place` is where an example's answer lies in all `columns`. `about`: of whom they are."""

    columns: Mapping[str, Tensor | Ragged]
    place: Mapping[int, int]
    about: Mapping[str, Any]

    def of(self, examples: Sequence[int]) -> dict[str, Tensor | Ragged]:
        places = [self.place[i] for i in examples]
        return {name: column.pick(places) if isinstance(column, Ragged) else column[places] for name, column in self.columns.items()}


@dataclass
class Answers:
    """`source`, whose batches also carry what was answered to their rows. `examples[i]` is the id of the example in row i.

    `find` opens the answers, and asks for them where they are not there yet: with the first batch, not before.
    """

    source: Table | Features | Witness
    names: frozenset[str]
    examples: Sequence[int]
    find: Callable[[], Stored]
    found: list[Stored] = field(default_factory=list)

    @property
    def gives(self) -> frozenset[str]:
        return self.source.gives | self.names

    @property
    def period(self) -> int:
        return self.source.period

    @property
    def table(self) -> Table:
        return self.source if isinstance(self.source, Table) else self.source.table

    @property
    def about(self) -> Mapping[str, Any]:
        return self.found[0].about

    def fill(self, net: Network) -> None:
        if not self.found:
            self.found.append(self.find())
        if not isinstance(self.source, Table):
            self.source.fill(net)

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]:
        self.fill(net)
        for batch in self.source.batches(net, start):
            yield self.enriched(batch)

    def once(self, net: Network, tokens: int | None = None) -> Iterator[Batch]:
        self.fill(net)
        for batch in self.source.once(net, tokens):
            yield self.enriched(batch)

    def enriched(self, batch: Batch) -> Batch:
        said = self.found[0].of([self.examples[i] for i in batch["row"].tolist()])
        return batch.plus(**{name: column.to(batch["ids"].device) for name, column in said.items()})
