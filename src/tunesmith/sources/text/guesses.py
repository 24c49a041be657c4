"""What can be said of a whole file: which column is which where none has a name, and what looks odd about the data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tunesmith.sources.text.cells import BadRow, number
from tunesmith.sources.text.columns import Columns
from tunesmith.sources.text.examples import Classified, Scored, Tagged
from tunesmith.sources.text.records import quoted

Three = tuple[str | None, str | None, str | None]


def headerless(view: Columns) -> bool:
    return all(re.fullmatch(r"column\d+", name) for name in view.found)


def classify(view: Columns, one: str | None, two: str | None, label: str | None) -> Three:
    """(text, pair, label) where columns have no names: the label is the column with the fewest values, unless nearly all differ."""
    free = [name for name in view.found if name not in view.given.values()]
    values = {name: Counter(str(row.get(name)) for row in view.records.rows) for name in free}
    if label is None and len(free) > (one is None):
        label = min(free, key=lambda name: (len(values[name]), _length(view, name)))
        if len(values[label]) > max(20, len(view.records) / 2):
            return one, two, None
    return _said(view, *_wordy(view, one, two, label), label, "label")


def score(view: Columns, one: str | None, two: str | None, target: str | None) -> Three:
    """(text, pair, score) where columns have no names: the score is the last column that holds only numbers."""
    numeric = [name for name in view.found if name not in view.given.values() and _all_numbers(view, name)]
    target = target or (numeric[-1] if numeric else None)
    return _said(view, *_wordy(view, one, two, target), target, "score")


def _all_numbers(view: Columns, column: str) -> bool:
    try:
        return all(number(row, column) is not None for row in view.records.rows)
    except BadRow:
        return False


def _length(view: Columns, column: str) -> float:
    return sum(len(str(row.get(column))) for row in view.records.rows) / len(view.records)


def _wordy(view: Columns, one: str | None, two: str | None, target: str | None) -> tuple[str | None, str | None]:
    """The columns of running text: those at least half as long as the longest. Two of them are a pair; of more, the longest is taken."""
    lengths = {name: _length(view, name) for name in view.found if name != target}
    if one or not lengths:
        return one, two
    longest = max(lengths, key=lambda name: lengths[name])
    wordy = [name for name in lengths if lengths[name] * 2 >= lengths[longest]]
    return (wordy[0], wordy[1]) if len(wordy) == 2 else (longest, two)


def _said(view: Columns, one: str | None, two: str | None, target: str | None, role: str) -> Three:
    if one and target:
        chosen = {"text": one, "pair": two, role: target}
        line = ", ".join(f"{ours}: {column}" for ours, column in chosen.items() if column)
        view.notes.append(f"no header, so the columns are guessed: `columns: {{{line}}}`")
    return one, two, target


def about_labels(examples: Sequence[Classified]) -> list[str]:
    """One label only, labels that differ in case or blanks only, and more labels than can be classes."""
    counts = Counter(label for example in examples for label in example.labels)
    notes = [f"there is only one label, {quoted(next(iter(counts)))}: nothing can be learnt from it"] if len(counts) == 1 else []
    folded: dict[str, list[str]] = {}
    for label in counts:
        folded.setdefault(" ".join(label.casefold().split()), []).append(label)
    twins = next((names for names in folded.values() if len(names) > 1), None)
    notes += [f"the labels {' and '.join(map(quoted, twins))} differ only in case or blanks"] if twins else []
    if len(examples) >= 20 and len(counts) > len(examples) / 2:
        notes.append(f"{len(counts):,} different labels in {len(examples):,} rows: is this the right column? numbers to predict are `task: score`")
    return notes


def about_scores(examples: Sequence[Scored]) -> list[str]:
    """A target that never changes, or that is on a scale far from one."""
    low, high = min(e.score for e in examples), max(e.score for e in examples)
    if low == high:
        return [f"the score is {low:g} in every row: nothing can be learnt from it"]
    return [f"the scores run from {low:g} to {high:g}, a wide scale"] if max(abs(low), abs(high)) > 1000 else []


def about_tags(examples: Sequence[Tagged]) -> list[str]:
    found: set[Any] = {tag for example in examples for tag in example.tags}
    return ["every word is tagged O: nothing can be learnt from it"] if found == {"O"} else []
