"""What a way of keeping old tasks may do to a run whose tasks come one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..core import Delta, Listener, Method, Network, Objective, Run, Source, Stage
from ..updates import Form


class Strategy(Listener):
    """A dataclass of options. It puts itself around the source, the objective and the way the gradient is formed, and hears the stages begin and end.

    What it remembers goes through `state`, `restore`, `tensors` and `recall`, as of any listener; parameters of past tasks, which grow with the network,
    are buffers of the objective that it made.

    joins    all that would come one after the other comes at once: the upper bound
    methods  those it works with; none named: all
    tasks    the recipe's tasks it works with; none named: all
    rows     it keeps rows of past stages, or asks about them again
    apart    it needs a loss in which no row sees another
    hears    it looks at what heads say
    base     it asks the network as it was before it was tuned
    anchors  it keeps old tasks by holding parameters or outputs alone, without one of their rows
    among    what new rows are told apart among where the stream does not say (see InTurn)
    """

    paper: ClassVar[str] = ""
    joins: ClassVar[bool] = False
    methods: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ()
    rows: ClassVar[bool] = False
    apart: ClassVar[bool] = False
    hears: ClassVar[bool] = False
    base: ClassVar[bool] = False
    anchors: ClassVar[bool] = False
    among: ClassVar[str] = "all"

    def foreseen(self, method: Method, stages: int) -> None:
        """Raises Refusal for what can be told before a weight is loaded, of a method and so many stages."""

    def source(self, source: Any, stage: int) -> tuple[Source, int]:
        """What is trained on in a stage, and how many batches a step has."""
        return source, 1

    def objective(self, learn: Objective) -> Objective:
        return learn

    def form(self, form: Form) -> Form:
        """How the gradient of a step is formed."""
        return form

    def meet(self, net: Network, delta: Delta, kinds: Mapping[str, str]) -> None:
        """Called once, before the first step, and before `objective`; `kinds` of rows (see Task) by task. Raises Refusal where it makes no sense of these rows or this delta."""

    def notes(self, growing: bool) -> list[str]:
        """What the user should know. `growing`: labels come to a head that all parts share (class-incremental), over a trunk that moves."""
        if not (growing and self.anchors):
            return []
        return [
            "without old rows less is kept where labels come to one head and the trunk moves (van de Ven & Tolias 2019, table 4) than with replay, derpp or route"
        ]


def number(run: Run, stage: Stage) -> int:
    """Which stage of the run it is, counted from 0."""
    return next(i for i, one in enumerate(run.stream) if one is stage)
