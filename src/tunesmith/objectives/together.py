"""Several tasks on one network: each batch is read and scored as its own task asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

from ..core import Batch, Counts, Network, Objective, Signals, Terms


class Together(Objective):
    """Sum over tasks of their mean losses, each part's gradient times its weight. A term is named after its task; further terms of a task, `task.term`.

    mean  `task`: over the task's own units; `global`: over the units of all tasks in the step, so that a task weighs as many units as it has
    """

    def __init__(self, parts: Mapping[str, Objective], weights: Mapping[str, float], mean: Literal["task", "global"] = "task"):
        super().__init__()
        self.parts, self.mean = nn.ModuleDict(parts), mean
        for name, part in parts.items():
            part.weight = weights[name]
        self.needs = frozenset.intersection(*(part.needs for part in parts.values()))
        self.whole = any(part.whole for part in parts.values())
        self.pace = min(part.pace for part in parts.values())

    def of(self, task: str) -> Objective:
        part = self.parts[task]
        assert isinstance(part, Objective)
        return part

    def meet(self, net: Network) -> None:
        for name in self.parts:
            self.of(name).meet(net)

    def presumed(self, net: Network, batch: Batch) -> Batch:
        return self.of(batch.task).presumed(net, batch)

    def read(self, net: Network, batch: Batch) -> Signals:
        return self.of(batch.task).read(net, batch)

    def score(self, signals: Signals, batch: Batch) -> Terms:
        return {named(batch.task, k): v for k, v in self.of(batch.task).score(signals, batch).items()}

    def count(self, batch: Batch) -> Counts:
        found = {named(batch.task, k): v for k, v in self.of(batch.task).count(batch).items()}
        if self.mean == "global":  # what this task counts, all main terms are divided by
            return found | dict.fromkeys(self.parts, found[batch.task])
        return found


def named(task: str, term: str) -> str:
    return task if term == task else f"{task}.{term}"
