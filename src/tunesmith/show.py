"""`tunesmith demo`: the main job, a comparison on what is embedded, by all eight methods."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from . import machine
from .comparison.arms import EIGHT
from .comparison.compare import Comparison, compare
from .engine import fit
from .job import assemble
from .progress import Reporter
from .recipe import recipe
from .shared import Shared

RECIPE = {"model": "minilm", "task": "classify", "data": {"train": "desk", "eval": "desk"}, "evaluate": {"best": False}}
SECONDS = 225.0  # for the training and judging of all eight
EIGHT_OVER_FULL = 6.5  # in trainings of `full`; docs/LOG.md
EPOCHS = (2, 8)  # at least, at most


def demo(out: Path) -> Comparison:
    """Begins anew each time; the runs stay, and can be asked."""
    reporter = Reporter()
    reporter.say("Twelve intents of a shop's message desk, 732 messages in English and Chinese; all-MiniLM-L6-v2, by eight methods.")
    count = epochs()
    reporter.say(f"{count} epochs each: what this machine does in about five minutes.\n")
    return compare(recipe({**RECIPE, "budget": {"epochs": count}, "out": str(out)}), EIGHT, seeds=1, fresh=True, reporter=reporter)


def epochs() -> int:
    """As many as all methods get through in time, by a few timed steps of full fine-tuning."""
    machine.keep_freed_memory()
    made, shared = recipe({**RECIPE, "method": "full"}), Shared()
    data = shared.data(made)
    run = assemble(made, data, shared.dressed(made, data), Reporter(quiet=True)).run
    stage = run.stream[0]
    taken = []
    for steps in (2, 6):  # the first two warm up
        run.stream = [replace(stage, steps=steps)]
        began = time.perf_counter()
        fit(run)
        taken.append(time.perf_counter() - began)
    return max(EPOCHS[0], min(EPOCHS[1], round(SECONDS / (EIGHT_OVER_FULL * stage.period * taken[1] / 4))))
