"""What a teacher answered, kept by example in files that are mapped into memory: columns of every batch, read row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..core import Batch, Network, Ragged
from .enriched import Enriched


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
class Answers(Enriched):
    """`source`, whose batches also carry what was answered to their rows, in `names`. `examples[i]` is the id of the example in row i.

    `find` opens the answers, and asks for them where they are not there yet: with the first batch, not before.
    """

    names: frozenset[str]
    examples: Sequence[int]
    find: Callable[[], Stored]
    found: list[Stored] = field(default_factory=list)

    @property
    def adds(self) -> frozenset[str]:
        return self.names

    @property
    def about(self) -> Mapping[str, Any]:
        return self.found[0].about

    def fill(self, net: Network) -> None:
        if not self.found:
            self.found.append(self.find())
        self.source.fill(net)

    def enriched(self, batch: Batch) -> Batch:
        said = self.found[0].of([self.examples[i] for i in batch["row"].tolist()])
        return batch.plus(**{name: column.to(batch["ids"].device) for name, column in said.items()})
