"""An objective around another, and one that adds a term of the parameters alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from ..core import Batch, Counts, Network, Objective, Ragged, Signals, Terms


class Around(Objective):
    """What `inner` asks, and more."""

    def __init__(self, inner: Objective):
        super().__init__()
        self.inner = inner
        self.needs, self.judges, self.whole = inner.needs, inner.judges, inner.whole
        self.pace, self.weight, self.together = inner.pace, inner.weight, inner.together

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


class Once(Around):
    """What `inner` asks, and `penalty`, a term of parameters that counts once a step, in however many pieces, batches and processes the step is taken:
    each row brings it, and the update divides by the rows. Added to a loss that is divided by the pieces, it would count as often as there are pieces."""

    @property
    @abstractmethod
    def holds(self) -> bool:
        """Whether there is anything to penalise yet."""

    @abstractmethod
    def penalty(self) -> Tensor: ...

    def read(self, net: Network, batch: Batch) -> Signals:
        read = self.inner.read(net, batch)
        return {**read, "penalty": self.penalty().expand(len(batch))} if self.holds else read

    def score(self, signals: Signals, batch: Batch) -> Terms:
        terms = self.inner.score(signals, batch)
        return {**terms, "penalty": signals["penalty"].sum()} if self.holds else terms

    def count(self, batch: Batch) -> Counts:
        return {**self.inner.count(batch), "penalty": len(batch)} if self.holds else self.inner.count(batch)
