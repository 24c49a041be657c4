"""Several tasks judged together: each by its own metrics, all by the mean of their main ones; and what a sequence remembers of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import fmean
from typing import Any

from ..core import Network
from .evaluate import Probe
from .metrics import Scores, better
from .outcome import Outcome

Matrix = list[list[float | None]]
NOT_YET = "not all labels of this task have come"


def all_of(probes: Mapping[str, Probe], ready: Callable[[Network, str], bool]) -> Probe:
    """One probe of all; of a task that is not `ready` nothing is said."""
    name = next(iter(probes.values())).name
    return Probe(
        name, lambda net: iter(()), "measured", (), [], measure=lambda net: together({n: p.ask(net) if ready(net, n) else None for n, p in probes.items()})
    )


def main_of(metrics: Collection[str]) -> str:
    """What tasks with these main metrics are judged by together: the one that all have, or `mean`."""
    return next(iter(metrics)) if len(set(metrics)) == 1 else "mean"


def counts(main: str, metric: str) -> bool:
    """Whether a task's own metric is part of what all are judged by: of several metrics, those in which higher is better."""
    return main != "mean" or better(metric) > 0


def mains_of(named: Collection[str]) -> dict[str, str]:
    """Each task's main metric, from all that are named `task.metric`, the main one of a task first."""
    found: dict[str, str] = {}
    for task, dot, metric in (name.rpartition(".") for name in named):
        if dot:
            found.setdefault(task, metric)
    return found


def together(outcomes: Mapping[str, Outcome | None]) -> Outcome:
    """Main metric: the mean over tasks of the one that all are judged by, or, where they differ, of those in which higher is better.

    `values` also hold `task.metric`. Rows of all tasks follow each other.
    """
    done = {name: outcome for name, outcome in outcomes.items() if outcome}
    main = main_of([outcome.scores.main for outcome in done.values()])
    values = [v for o in done.values() if counts(main, o.scores.main) and (v := o.scores.values[o.scores.main]) is not None]
    measured: dict[str, float | str] = {main: fmean(values) if values else NOT_YET}
    for name, outcome in outcomes.items():
        if outcome is None:
            measured[f"{name}.{main}"] = NOT_YET
        else:
            measured |= {f"{name}.{k}": outcome.scores.reasons.get(k, "") if v is None else v for k, v in outcome.scores.values.items()}
    return Outcome(Scores.of(measured), [p for o in done.values() for p in o.predictions], fmean(o.loss for o in done.values()), parts=done)


# ------------------------------------------------------------------------------------------------ what is remembered


def matrix_of(history: Sequence[Mapping[str, Any]], ends: Sequence[int], names: Sequence[str]) -> tuple[Matrix, list[float | None]]:
    """R[i][j], the score on task j after stage i (the last time it was asked), by its own main metric, and b[j], before any; None where nothing could be said."""
    at, mains = {entry["step"]: entry for entry in history}, mains_of(history[-1])
    row = lambda entry: [entry.get(f"{name}.{mains.get(name)}") for name in names]
    return [row(at.get(end, {})) for end in ends], row(at.get(0, {}))


def remembered(matrix: Matrix, before: Sequence[float | None]) -> dict[str, float | None]:
    """acc, bwt, fwt (Lopez-Paz & Ranzato 2017, equations 2 to 4) and forgetting (Chaudhry et al. 2018, equation 5), T tasks.

    acc         mean over tasks of R[T-1][j]
    bwt         mean over all but the last of R[T-1][j] - R[j][j]: negative where later tasks took from earlier ones
    fwt         mean over all but the first of R[j-1][j] - b[j]; None where a task cannot be asked before it has come
    forgetting  mean over all but the last of max_i R[i][j] - R[T-1][j], i < T - 1
    """
    last, n = matrix[-1], len(matrix)
    seen = [[v for row in matrix[:-1] if (v := row[j]) is not None] for j in range(n)]
    return {
        "acc": mean(last),
        "bwt": mean(minus(last[j], matrix[j][j]) for j in range(n - 1)),
        "fwt": mean(minus(matrix[j - 1][j], before[j]) for j in range(1, n)),
        "forgetting": mean(minus(max(seen[j], default=None), last[j]) for j in range(n - 1)),
    }


def minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def mean(values: Any) -> float | None:
    """None where one of them is unknown, or none is there."""
    found = list(values)
    return None if None in found or not found else fmean(found)
