"""A source around a source: the same batches with more columns, which are computed once and looked up from then on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from ..core import Batch, Network
from .table import Table


@dataclass
class Enriched(ABC):
    """`source` and its columns, and those that `adds` names. They depend on the row alone, so evaluation finds them too."""

    source: Table | Enriched

    @property
    @abstractmethod
    def adds(self) -> frozenset[str]: ...

    @property
    def gives(self) -> frozenset[str]:
        return self.source.gives | self.adds

    @property
    def table(self) -> Table:
        """The rows, as they were read."""
        return self.source.table

    @property
    def period(self) -> int:
        return self.source.period

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]:
        self.fill(net)
        return map(self.enriched, self.source.batches(net, start))

    def once(self, net: Network, tokens: int | None = None) -> Iterator[Batch]:
        self.fill(net)
        return map(self.enriched, self.source.once(net, tokens))

    @abstractmethod
    def fill(self, net: Network) -> None:
        """Compute what is missing, here and in the source."""

    @abstractmethod
    def enriched(self, batch: Batch) -> Batch: ...
