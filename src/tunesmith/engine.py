"""The loop. There is one, and it does not know what it is training."""

from __future__ import annotations

from itertools import islice

from .core import Run, Stage
from .errors import Refusal


def fit(run: Run) -> Run:
    """Train from `run.done` to the end of the stream, or until a listener sets `run.halt`."""
    check(run)
    first = 0
    for i, stage in enumerate(run.stream):
        entered = not run.halt and first <= run.done < first + stage.steps
        if entered:
            through(run, stage, first)
        if entered or (run.done == first + stage.steps and run.ended <= i):
            run.ended = i + 1
            for listener in run.listeners:
                listener.end(run, stage)
        first += stage.steps
    return run


def through(run: Run, stage: Stage, first: int) -> None:
    """The steps of a stage that are still to be taken."""
    for listener in run.listeners:
        listener.begin(run, stage)
    batches = stage.train.batches(run.net, (run.done - first) * stage.accumulate)  # lazy: a source may look at the network as it is now
    while run.done < first + stage.steps and not run.halt:
        run.delta.advance((run.done - first) // stage.period)
        micro = list(islice(batches, stage.accumulate))
        record = {**run.update.step(run, micro), **micro[-1].said}
        run.done += 1
        run.log.append(record)
        for listener in run.listeners:
            listener.step(run, record)


def check(run: Run) -> None:
    """Refuse what cannot work before the first batch is drawn."""
    for stage in run.stream:
        if missing := run.objective.needs - stage.train.gives:
            raise Refusal(f"stage {stage.name!r} gives no {sorted(missing)}, which {type(run.objective).__name__} needs", where="stream")
        if stage.steps < 1:
            raise Refusal(f"stage {stage.name!r} has no steps", where="budget", fix="more epochs or steps")
