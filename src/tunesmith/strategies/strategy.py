"""What a way of keeping old tasks may do to a run whose tasks come one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..core import Delta, Listener, Network, Objective, Source
from ..updates import Form


class Strategy(Listener):
    """A dataclass of options. It puts itself around the source, the objective and the way the gradient is formed, and hears the stages begin and end.

    What it remembers goes through `state`, `restore`, `tensors` and `recall`, as of any listener; parameters of past tasks, which grow with the network,
    are buffers of the objective that it made.

    joins   all that would come one after the other comes at once: the upper bound
    """

    paper: ClassVar[str] = ""
    joins: ClassVar[bool] = False

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
