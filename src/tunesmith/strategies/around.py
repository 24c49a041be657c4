"""An objective around another."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..core import Batch, Counts, Network, Objective, Ragged, Signals, Terms


class Around(Objective):
    """What `inner` asks, and more."""

    def __init__(self, inner: Objective):
        super().__init__()
        self.inner = inner
        self.needs, self.judges, self.whole, self.pace = inner.needs, inner.judges, inner.whole, inner.pace

    def accept(self, columns: Mapping[str, Tensor | Ragged], size: int) -> None:
        self.inner.accept(columns, size)

    def meet(self, net: Network) -> None:
        self.inner.meet(net)

    def presumed(self, net: Network, batch: Batch) -> Batch:
        return self.inner.presumed(net, batch)

    def of(self, task: str) -> Objective:
        return self.inner.of(task)

    def read(self, net: Network, batch: Batch) -> Signals:
        return self.inner.read(net, batch)

    def score(self, signals: Signals, batch: Batch) -> Terms:
        return self.inner.score(signals, batch)

    def count(self, batch: Batch) -> Counts:
        return self.inner.count(batch)
