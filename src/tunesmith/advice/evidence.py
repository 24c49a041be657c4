"""What was measured before: methods compared on real data sets at several sizes, and what that lets one expect of a new case.

The rows stand in data/evidence.jsonl, one an arm; benchmarks/evidence.py made them. A case is near another if its task is the same, or akin, and
its numbers of rows, of rows a label, of labels and of tokens a row are of like size, and, where both were asked, the frozen trunk knows as much of it.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

from .shape import Shape

REACH = 1.5  # at this distance a case counts e^-1/2 as much as one that is the same (docs/LOG.md: what the regret is around it)
ROOM = 0.1  # what there is to gain is at least so much: where nothing was learnt, methods differ by noise
PRIOR = 0.5  # cases' worth of "all methods are equal": what few or far cases are drawn towards
SCALES = {"rows": 1.5, "each": 1.5, "labels": 1.5, "tokens": 1.0, "skill": 0.25}  # what counts as one step away; of counts, natural logarithms
AKIN = 1.5  # steps between classes and tags (docs/LOG.md), and from classes to numbers, of which nothing was measured
CLASSES = {"classify": 0.0, "tag": AKIN}
SPEAKS = {  # of a task: those whose measured cases speak of it, and how far they are; 0: its own
    "classify": CLASSES, "score": {"classify": AKIN}, "several": CLASSES, "tag": {"tag": 0.0, "classify": AKIN}, "generate": {"generate": 0.0}, "embed": {"embed": 0.0},
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One comparison: what its data looked like, what each arm reached on rows it never saw (mean over seeds), and what it forgot, in nats."""

    name: str
    task: str
    shape: Shape
    values: Mapping[str, float]
    metric: str
    forgot: Mapping[str, float] = field(default_factory=dict)

    def gap(self, method: str) -> float:
        """How far below the best of the eight, as a share of what that one is above the majority class, or of ROOM."""
        trained = [v for k, v in self.values.items() if k not in BASELINES]
        room = max(ROOM, max(trained) - self.values.get("majority", min(trained)))
        return min(1.0, (max(trained) - self.values[method]) / room)


@dataclass(frozen=True)
class Expectation:
    """`gap` as in Cell.gap, its standard error, and how many cases' worth of evidence of the very task it rests on."""

    gap: float
    error: float
    weight: float

    @property
    def cautious(self) -> float:
        """What methods are ordered by: one that is good wherever it was measured comes before one that is so at times."""
        return self.gap + self.error


SAME_TEXTS = {"clinc-domain": "clinc150", "trec-fine": "trec"}  # other labels of the same texts: left out together
BASELINES = ("majority", "nearest centroid", "linear probe", "untuned", "untuned, 4 examples")


@lru_cache
def rows_of() -> list[dict[str, Any]]:
    text = (resources.files("tunesmith.data") / "evidence.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def cells_of(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["set"], row["size"]].append(row)
    found = []
    for (name, size), group in groups.items():
        first = group[0]
        values = {arm: statistics.fmean(r["value"] for r in group if r["arm"] == arm) for arm in dict.fromkeys(r["arm"] for r in group)}
        forgot = {r["arm"]: r["forgot"] for r in group if r.get("forgot") is not None}
        skills = [r["skill"] for r in group if r.get("skill") is not None]  # not all draws were asked
        shape = Shape(first["rows"], first["labels"], first["rarest"], first["tokens"], first["longest"], statistics.fmean(skills) if skills else None)
        size = size.replace("-", " ") if "per" in size else f"{shape.rows:,} rows"
        found.append(Cell(f"{name}, {size}", first["task"], shape, values, first["metric"], forgot))
    return found


def features(shape: Shape) -> dict[str, float]:
    labels = max(1, shape.labels)
    found = {"rows": math.log(shape.rows), "each": math.log(shape.rows / labels), "labels": math.log(labels), "tokens": math.log(shape.tokens)}
    return found if shape.skill is None else {**found, "skill": shape.skill}


def distance(a: Shape, b: Shape) -> float:
    here, there = features(a), features(b)
    return math.sqrt(sum(((here[k] - there[k]) / scale) ** 2 for k, scale in SCALES.items() if k in here and k in there))


def nearest(task: str, shape: Shape, cells: Sequence[Cell]) -> list[tuple[float, Cell]]:
    """All cases of the task and of those akin to it, the nearest first."""
    steps = SPEAKS[task]
    return sorted(((math.hypot(distance(shape, cell.shape), steps[cell.task]), cell) for cell in cells if cell.task in steps), key=lambda pair: pair[0])


def expected(task: str, shape: Shape, methods: Sequence[str], cells: Sequence[Cell], reach: float = REACH) -> dict[str, Expectation]:
    """Of each method: the mean of the gaps in like cases, weighted by how like they are, and drawn towards the mean of all methods where they are few.

    Empty where nothing of the task, or of one akin to it, was measured.
    """
    near = [(math.exp(-0.5 * (d / reach) ** 2), cell) for d, cell in nearest(task, shape, cells)]
    weight, own = sum(w for w, _ in near), sum(w for w, cell in near if not SPEAKS[task][cell.task])
    if not near:
        return {}
    overall = statistics.fmean(cell.gap(m) for _, cell in near for m in methods)
    found = {}
    for method in methods:
        gaps = [(w, cell.gap(method)) for w, cell in near]
        mean = (sum(w * g for w, g in gaps) + PRIOR * overall) / (weight + PRIOR)
        scatter = (sum(w * (g - mean) ** 2 for w, g in gaps) + PRIOR * overall**2) / (weight + PRIOR)
        found[method] = Expectation(mean, math.sqrt(scatter / (weight + PRIOR)), own)
    return found


def forgetting(task: str, shape: Shape, methods: Sequence[str], cells: Sequence[Cell]) -> dict[str, float]:
    """Of each method: by how much it raised the loss on a general text in the five nearest cases, in nats."""
    near = [cell for _, cell in nearest(task, shape, cells)[:5]]
    return {m: statistics.fmean(c.forgot[m] for c in near if m in c.forgot) for m in methods if any(m in c.forgot for c in near)}


def source(name: str) -> str:
    """The data set that a set, or a cell, has its texts from."""
    name = name.partition(",")[0]
    return SAME_TEXTS.get(name, name)


def losses(rows: Sequence[Mapping[str, Any]], reach: float = REACH) -> dict[str, dict[str, float]]:
    """By cell: how far what would be chosen without all cells of its data set lies below the best measured, in the metric's own points; and each method, as a control."""
    cells = cells_of(rows)
    methods = [m for m in cells[0].values if m not in BASELINES]
    lost = {}
    for cell in cells:
        found = expected(cell.task, cell.shape, methods, [c for c in cells if source(c.name) != source(cell.name)], reach)
        if found:
            best, chosen = max(cell.values[m] for m in methods), min(found, key=lambda m: found[m].cautious)
            lost[cell.name] = {"recommend": best - cell.values[chosen]} | {f"always {m}": best - cell.values[m] for m in methods}
    return lost


def regret(rows: Sequence[Mapping[str, Any]], reach: float = REACH) -> dict[str, Any]:
    """The mean of `losses` over cells, and of how many."""
    lost = list(losses(rows, reach).values())
    return {name: round(statistics.fmean(one[name] for one in lost), 4) for name in lost[0]} | {"cells": len(lost)}
