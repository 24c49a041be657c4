"""What a data set looks like to a choice of method: how many rows and labels, how even, how long."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..core import Ragged
from ..dataset import Dataset


@dataclass(frozen=True)
class Shape:
    """rows     to learn from
    labels   classes or tags; 0 where nothing is classified
    rarest   rows of the rarest label (tags: of the rarest entity), 0 where nothing is classified
    tokens   mean length of a row
    longest  length of the longest
    skill    how much of the task the frozen trunk knows (advice/skill.py); None where it was not asked
    """

    rows: int
    labels: int
    rarest: int
    tokens: float
    longest: int
    skill: float | None = None


def shape_of(data: Dataset) -> Shape:
    ids = data.train.encoded.columns["ids"]
    assert isinstance(ids, Ragged)
    counts = label_counts(data)
    rarest = min(counts.values()) if counts else 0
    return Shape(len(ids.lengths), len(data.task.labels), rarest, round(sum(ids.lengths) / len(ids.lengths), 2), max(ids.lengths))


def label_counts(data: Dataset) -> Counter[str]:
    found: Counter[str] = Counter()
    for example in data.train.examples:
        if data.task.kind == "tag":
            found.update(tag.partition("-")[2] for tag in example.tags if tag.startswith("B-"))  # type: ignore[union-attr]
        elif data.task.kind in ("single", "multi"):
            found.update(example.labels)  # type: ignore[union-attr]
    return found
