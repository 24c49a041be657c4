"""`tunesmith demo`: the main job, on what is embedded, by all eight methods."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from . import machine
from .compare.plain import EIGHT, compare, table
from .dataset import read_data
from .engine import fit
from .job import assemble, load_base
from .progress import Reporter
from .recipe import recipe

RECIPE = {"model": "minilm", "task": "classify", "data": {"train": "desk", "eval": "desk"}, "evaluate": {"best": False}}
SECONDS = 270.0  # for all eight
EIGHT_OVER_FULL = 6.5  # their training and judging, in trainings of `full`; docs/LOG.md
EPOCHS = (2, 8)  # at least, at most


def demo(out: Path, as_json: bool) -> None:
    """Begin anew each time; the runs stay, and can be asked."""
    reporter = Reporter()
    reporter.say("Twelve intents of a shop's message desk, 732 messages in English and Chinese; all-MiniLM-L6-v2, by eight methods.")
    count = epochs()
    reporter.say(f"{count} epochs each: what this machine does in about five minutes.\n")
    results = compare(recipe({**RECIPE, "budget": {"epochs": count}, "out": str(out / "desk")}), EIGHT, reporter, fresh=True)
    if as_json:
        print(json.dumps({"arms": [r.record for r in results]}, ensure_ascii=False))
        return
    Console(width=max(110, Console().width)).print(table(results))
    best = max(results, key=lambda r: r["after"][r["metric"]] or 0)
    print(f'\nTry one:         tunesmith predict {best.folder} "my kettle leaks"')
    print("On your own file: tunesmith init yours.jsonl && tunesmith run recipe.yaml")


def epochs() -> int:
    """As many as all methods get through in time, by a few timed steps of full fine-tuning."""
    machine.keep_freed_memory()
    made = recipe({**RECIPE, "method": "full"})
    data = read_data(made)
    run = assemble(made, data, load_base(made, data), Reporter(quiet=True)).run
    stage = run.stream[0]
    taken = []
    for steps in (2, 6):  # the first two warm up
        run.stream = [replace(stage, steps=steps)]
        began = time.perf_counter()
        fit(run)
        taken.append(time.perf_counter() - began)
    return max(EPOCHS[0], min(EPOCHS[1], round(SECONDS / (EIGHT_OVER_FULL * stage.period * taken[1] / 4))))
