"""What stands around an objective, or around a way of forming the gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core import Batch, Counts, Network, Objective, Ragged, Run, Signals, Terms
from ..updates import Form, Formed


class Around(Objective):
    """What `inner` asks, and more."""

    def __init__(self, inner: Objective):
        super().__init__()
        self.inner = inner
        self.needs, self.judges, self.whole = inner.needs, inner.judges, inner.whole
        self.pace, self.together = inner.pace, inner.together

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


@dataclass
class AroundForm(Form):
    """What stands around a way of forming the gradient, and remembers what that remembers."""

    inner: Form

    def after(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> None:
        self.inner.after(run, batches, tokens, seed)

    def state_dict(self) -> dict[str, Tensor]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.inner.load_state_dict(state)


@dataclass
class Then(AroundForm):
    """`inner`, and then a look at the gradients that it has left, or a change of them."""

    look: Callable[[], None]

    def __call__(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> Formed:
        found = self.inner(run, batches, tokens, seed)
        self.look()
        return found
