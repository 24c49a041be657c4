"""What is better, what arrives, how it moves; and a run, which is all of these side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from .data import Batch, Ragged
from .method import Delta
from .network import Network

Signals = Mapping[str, Tensor]  # what an objective reads off a network
Terms = Mapping[str, Tensor]  # name -> loss summed over units, never averaged: the update divides, once
Counts = Mapping[str, float]  # name -> how many units were summed


class Objective(nn.Module, ABC):
    """What is better. `read` is the only half that sees the network; `score` is a pure function of what was read.

    Never owns the network; anything learnable in it is its own parameter.

    tasks   the recipe's tasks that it serves
    rows    kinds of rows that it reads in another form, and that form's kind
    needs   the columns both halves look up; what the data does not give, a source adds (job.py, COLUMNS)
    judges  those of them that evaluation looks up too
    whole   all rows of a batch see each other, so its gradient is formed by `gradcache`; what `read` returns has one entry a row
    pace    factor on the method's default learning rate
    weight  of its gradient among those of other tasks; what is logged is not weighted
    still   it is trained without dropout, unless the recipe gives one
    exact   what wrote is, bit for bit, what is scored: no dropout at all
    unlabelled  it also learns from rows without a label
    fits_head   the head is no gradient's: it is fitted on the training rows whenever the network is to be judged (fitted_head.py)
    together    how many rows of a label meet in a batch; 1: as chance has it
    """

    tasks: ClassVar[tuple[str, ...]] = ()
    rows: ClassVar[Mapping[str, str]] = {}
    needs: frozenset[str] = frozenset()
    judges: frozenset[str] = frozenset()
    whole: bool = False
    pace: float = 1.0
    weight: float = 1.0
    still: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    unlabelled: ClassVar[bool] = False
    fits_head: ClassVar[bool] = False
    together: int = 1

    def accept(self, columns: Mapping[str, Tensor | Ragged], size: int) -> None:
        """Raise Refusal where rows of the right kind cannot serve it all the same. `size` examples a batch; called before weights are loaded."""

    def meet(self, net: Network) -> None:
        """Make what depends on the network's shape, such as a projection; called once, before the first step."""

    def presumed(self, net: Network, batch: Batch) -> Batch:
        """The batch with the columns that sources would add, right in shape alone: for a rehearsal, which asks nobody."""
        return batch

    def of(self, task: str) -> Objective:
        """The part of it that a batch of this task is for."""
        return self

    @abstractmethod
    def read(self, net: Network, batch: Batch) -> Signals: ...

    @abstractmethod
    def score(self, signals: Signals, batch: Batch) -> Terms: ...

    def count(self, batch: Batch) -> Counts:
        """Units by term, known before the forward pass."""
        return {batch.task: len(batch)}

    def forward(self, net: Network, batch: Batch) -> Terms:
        return self.score(self.read(net, batch), batch)


class Source(Protocol):
    """What arrives, when. `batches` counts from `start`, so that a run continues where it stopped; it may look at the network."""

    @property
    def gives(self) -> frozenset[str]: ...

    def fill(self, net: Network) -> None:
        """Compute what is computed once, before the clock counts steps."""

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]: ...


@runtime_checkable
class Remembering(Source, Protocol):
    """A source whose batches are no function of the recipe, the seed and the step alone: what it must remember over an interruption."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Stage:
    """A stretch of training between two boundaries: one for most streams, one a task for continual ones.

    `steps` optimiser steps in all, `period` of them an epoch, `accumulate` batches each.
    """

    name: str
    train: Source
    steps: int
    period: int
    accumulate: int = 1


class Listener:
    """Anything that acts beside the loop: evaluation, checkpoints, progress, Fisher estimates, snapshots.

    `state` and `restore` carry what it must remember over an interruption, as JSON; `tensors` and `recall`, as tensors.
    """

    def begin(self, run: Run, stage: Stage) -> None:
        """Before the first step of a stage, and where a run continues in it."""

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        """After each optimiser step; `run.done` counts it already."""

    def end(self, run: Run, stage: Stage) -> None:
        """After the last step of a stage; once, also where the run was interrupted between the two."""

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""

    def tensors(self) -> Mapping[str, Tensor]:
        return {}

    def recall(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""


class Update(Protocol):
    """How the trainable part moves, given all batches of one step."""

    def step(self, run: Run, micro: Sequence[Batch]) -> Mapping[str, float]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass
class Run:
    """The five nouns side by side.

    done   optimiser steps taken
    ended  stages that are over, all that follows their last step included
    halt   the reason to stop early, if any
    spent  share of a budget that is not counted in steps (time), in [0, 1]
    """

    net: Network
    delta: Delta
    objective: Objective
    stream: Sequence[Stage]
    update: Update
    listeners: Sequence[Listener] = ()
    seed: int = 0
    done: int = 0
    ended: int = 0
    halt: str = ""
    spent: float = 0.0
    log: list[Mapping[str, float]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(stage.steps for stage in self.stream)

    @property
    def ends(self) -> list[int]:
        """The steps after which a stage is over."""
        return [sum(stage.steps for stage in self.stream[: i + 1]) for i in range(len(self.stream))]

    @property
    def between(self) -> bool:
        """Whether no step of the present stage is taken yet."""
        return self.done in (0, *self.ends)

    @property
    def progress(self) -> float:
        """Share of the run that is behind, in [0, 1]."""
        return max(self.done / self.total, self.spent)

    @property
    def within(self) -> tuple[float, float]:
        """Share of the present stage that is behind, in [0, 1], and what one step adds to it: what schedules go by."""
        end = next((end for end in self.ends if self.done < end), self.total)
        steps = next(stage.steps for stage, e in zip(self.stream, self.ends, strict=True) if e == end)
        return max((self.done - end) / steps + 1, self.spent), 1 / steps

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.delta.parameters() | {f"objective.{n}": p for n, p in self.objective.named_parameters()}
