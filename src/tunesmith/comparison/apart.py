"""Each of several tasks trained by itself: what a run that trains them together is measured by."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from ..checkpoint import write_file
from ..dataset import Dataset
from ..evaluate.metrics import better
from ..evaluate.several import counts, main_of
from ..progress import Reporter
from ..recipe import Recipe
from ..record import identity, of_task
from ..train import Company, Result, run
from .arms import Arm
from .board import over
from .crew import Worker

APART = ", each alone"


def apart(arms: Sequence[Arm]) -> list[Arm]:
    """The arms whose tasks are trained one by one."""
    return [replace(arm, label=f"{arm.label}{APART}", recipe=replace(arm.recipe, out=f"{arm.recipe.out}-apart"), apart=True) for arm in arms]


def train_apart(worker: Worker, arm: Arm) -> Result:
    """As many rows of each task as the mix has of it, by a network of its own."""
    began = time.time()
    facts = {"label": arm.label}
    results = {
        name: run(one, Reporter(quiet=True), company=Company(worker.shared, measures=[worker.measures, lambda job: facts]))
        for name, one in alone(arm.recipe, worker.shared.data(arm.recipe)).items()
    }
    result = as_one(arm, results)
    worker.tell(over(arm.label, arm.recipe.seed, result, began))
    return result


def alone(recipe: Recipe, data: Dataset) -> dict[str, Recipe]:
    """The recipes of the tasks, each with its share of a batch; an epoch of a task is then as long as in the mix."""
    each = recipe.each()
    rows = {name: len(one.train.examples) for name, one in data.each.items()}
    sizes = recipe.built_stream().sizes(rows, recipe.update.batch, joint=False)
    single = {"kind": "single"}
    return {
        name: replace(one, stream=single, update=replace(one.update, kind=None, batch=sizes[name]), out=f"{recipe.out}/{name}") for name, one in each.items()
    }


def as_one(arm: Arm, results: Mapping[str, Result]) -> Result:
    """Their results as those of one run: sums of what adds up, the largest peak, and the rows of all."""
    folder, first = arm.recipe.folder, next(iter(results.values()))
    total = lambda key: sum(r[key] for r in results.values())
    record: dict[str, Any] = {
        **first.record, "task": arm.recipe.task, "stream": "single", "label": arm.label, "recipe": identity(arm.recipe), "metric": main_of([r["metric"] for r in results.values()]),
        "before": values(results, "before"), "after": values(results, "after"), "history": [], "steps": total("steps"),
        "trainable_parameters": total("trainable_parameters"), "artifact_bytes": total("artifact_bytes"), "train_seconds": total("train_seconds"),
        "train_rows": total("train_rows"), "peak_memory_bytes": max(r["peak_memory_bytes"] for r in results.values()),
    }  # fmt: skip
    write_file(folder / "predictions.jsonl", "".join(lines(name, r) for name, r in results.items()).encode())
    write_file(folder / "result.json", json.dumps(record, indent=1, ensure_ascii=False).encode())
    return Result(folder, record)


def values(results: Mapping[str, Result], when: str) -> dict[str, float | None]:
    """As evaluate/several.py has them."""
    main = main_of([r["metric"] for r in results.values()])
    mains = [v for r in results.values() if counts(main, r["metric"]) and (v := r[when].get(r["metric"])) is not None]
    apart = {f"{name}.{k}": v for name, r in results.items() for k, v in r[when].items() if k != "loss"}
    return {"loss": fmean(r[when]["loss"] for r in results.values()), main: fmean(mains) if mains else None, **apart}


def lines(task: str, result: Result) -> str:
    """The rows of one, as in a run of all."""
    rows = (result.folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return "".join(of_task(row, task, result["metric"]) for row in rows)


def transfer(table: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each arm that has its tasks also alone, what each task gains by company; negative: negative transfer."""
    of = {row["label"]: row for row in table}
    return {
        label: {task: (1 if better(row["task_metrics"][task]) > 0 else -1) * (row["tasks"][task] - beside["tasks"][task]) for task in row["tasks"]}
        for label, row in of.items()
        if (beside := of.get(f"{label}{APART}"))
    }
