"""`tunesmith demo`: the main job, on what is embedded, by all eight methods."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from .compare.plain import EIGHT, compare, table
from .progress import Reporter
from .recipe import recipe

RECIPE = {"model": "minilm", "task": "classify", "data": {"train": "desk", "eval": "desk"}, "budget": {"epochs": 8}, "evaluate": {"best": False}}


def demo(out: Path, as_json: bool) -> None:
    """Begin anew each time; the runs stay, and can be asked."""
    reporter = Reporter()
    reporter.say("Twelve intents of a shop's message desk, 732 messages in English and Chinese; all-MiniLM-L6-v2, by eight methods.\n")
    results = compare(recipe({**RECIPE, "out": str(out / "desk")}), EIGHT, reporter, fresh=True)
    if as_json:
        print(json.dumps({"arms": [r.record for r in results]}, ensure_ascii=False))
        return
    Console(width=max(110, Console().width)).print(table(results))
    best = max(results, key=lambda r: r["after"][r["metric"]] or 0)
    print(f'\nTry one:         tunesmith predict {best.folder} "my kettle leaks"')
    print("On your own file: tunesmith init yours.jsonl && tunesmith run recipe.yaml")
