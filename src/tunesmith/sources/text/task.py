"""What is asked of a model, as the recipe names it and as the rows show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .examples import Example, Judged, Preferred, Related


@dataclass(frozen=True)
class Task:
    """What is asked of a model, by what its rows are.

    kind    classify: single, multi, cloze (one label, asked in words of the vocabulary); tag; score: score, or reward (a better and a worse answer);
            generate: generate, preferred (a better and a worse answer), judged (an answer and a verdict);
            embed: pairs, similar (two texts and a score), grouped (texts with a label), texts
    head    what stands on the network for it, where that is not named as the task is: one of several tasks
    """

    name: str
    kind: str
    labels: tuple[str, ...] = ()
    head: str = ""

    @property
    def key(self) -> str:
        """Name of its batches and of its head."""
        return self.head or self.name

    @property
    def outputs(self) -> int:
        """Outputs of the head; 0 where the vocabulary is the head."""
        return 1 if self.name == "score" else len(self.labels) if self.name in ("classify", "tag") and self.kind != "cloze" else 0


def task_of(name: str, examples: Sequence[Example], multi_label: bool = False) -> Task:
    """The task with the labels that the training rows use, in a fixed order."""
    labels: tuple[str, ...] = ()
    if name == "classify":
        labels = tuple(sorted({label for e in examples for label in e.labels}))  # type: ignore[union-attr]
    if name == "embed":
        labels = tuple(sorted({e.label for e in examples if e.label is not None}))  # type: ignore[union-attr]
    if name == "tag":
        tags = {t for e in examples for t in e.tags}  # type: ignore[union-attr]
        kinds = {t[2:] for t in tags if t[:2] in ("B-", "I-")}
        other = sorted(tags - {"O"} - {f"{p}-{k}" for p in "BI" for k in kinds})
        labels = ("O", *other, *(f"{p}-{k}" for k in sorted(kinds) for p in "BI"))
    return Task(name, kind_of(name, examples, multi_label), labels)


def kind_of(name: str, examples: Sequence[Any], multi_label: bool = False) -> str:
    """What the rows are (see Task); all of a file are of one kind."""
    first = examples[0]
    if name == "classify":
        return "multi" if multi_label or any(len(e.labels) != 1 for e in examples) else "single"
    if isinstance(first, Related):
        return "similar" if first.score is not None else "pairs" if len(first.texts) > 1 else "grouped" if first.label is not None else "texts"
    return {Preferred: "reward" if name == "score" else "preferred", Judged: "judged"}.get(type(first), name)
