"""Where arms differ row by row and class by class, from the predictions that each run left behind."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluate.metrics import spans

Lines = Sequence[Mapping[str, Any]]  # of one predictions.jsonl
MOST = 24  # classes that are shown


def classes(lines: Mapping[str, Sequence[Lines]]) -> tuple[str, list[tuple[str, int, dict[str, float]]]]:
    """What is counted (`recall` or `f1`), and for each class how many rows have it and each label's value, mean over seeds. Nothing for numbers and texts."""
    first = next(iter(lines.values()))[0]
    kind = shape(first)
    if kind is None:
        return "", []
    names = Counter(name for line in first for name in found(line["expected"], kind))
    rows = []
    for name, count in names.most_common(MOST):
        value = {label: statistics.fmean(of_class(seed, name, kind) for seed in seeds) for label, seeds in lines.items()}
        rows.append((name, count, value))
    return ("recall" if kind == "label" else "f1"), rows


def shape(lines: Lines) -> str | None:
    """label, labels, tags; None for numbers, texts, tags without entities, and answers of several tasks."""
    expected = lines[0]["expected"]
    if lines[0]["shares"] is None or lines[0]["shares"][1] is None or any(type(line["expected"]) is not type(expected) for line in lines):
        return None
    if isinstance(expected, str):
        return "label" if all(line["shares"] in ([0.0, 1.0], [1.0, 1.0]) for line in lines) else None
    if not isinstance(expected, list):
        return None
    tagged = all(len(line["expected"]) == len(line["predicted"] or ()) for line in lines) and any("O" in line["expected"] for line in lines)
    return "tags" if tagged else "labels"


def found(answer: Any, kind: str) -> list[Any]:
    """The classes in an answer; entities by their kind, once each."""
    return [answer] if kind == "label" else list(answer) if kind == "labels" else [s[0] for s in spans(answer)]


def of_class(lines: Lines, name: str, kind: str) -> float:
    if kind == "label":
        mine = [line for line in lines if line["expected"] == name]
        return sum(line["predicted"] == name for line in mine) / len(mine)
    hits = both = 0
    for line in lines:
        if kind == "tags":
            guess, truth = ({s for s in spans(line[side]) if s[0] == name} for side in ("predicted", "expected"))
        else:
            guess, truth = ({name} & set(line[side]) for side in ("predicted", "expected"))
        hits, both = hits + len(guess & truth), both + len(guess) + len(truth)
    return 2 * hits / both if both else 0.0


def disagreements(lines: Mapping[str, Sequence[Lines]], count: int = 10) -> list[dict[str, Any]]:
    """The rows on which the arms differ most, each with every answer that was given, whether it is right, and whose it is; the right one first."""
    of_labels = {label: seeds[0] for label, seeds in lines.items()}
    first = next(iter(of_labels.values()))
    ranked = sorted(range(len(first)), key=lambda i: -spread([rows[i] for rows in of_labels.values()]))
    picked = [i for i in ranked[:count] if spread([rows[i] for rows in of_labels.values()]) > 0]
    return [
        {
            "asked": first[i]["asked"],
            "expected": written(first[i]["expected"], first[i]),
            "said": answers({label: rows[i] for label, rows in of_labels.items()}),
        }
        for i in picked
    ]


def answers(rows: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, bool, list[str]]]:
    found: dict[tuple[str, bool], list[str]] = {}
    for label, row in rows.items():
        found.setdefault((written(row["predicted"], row), right(row)), []).append(label)
    return [(*said, labels) for said, labels in sorted(found.items(), key=lambda item: (not item[0][1], -len(item[1])))]


def spread(answers: Sequence[Mapping[str, Any]]) -> float:
    """How far answers to one row are apart: the entropy over different ones, or the deviation of numbers and of likelihoods."""
    values = [a["predicted"] for a in answers]
    if all(isinstance(v, int | float) for v in values):
        return statistics.pstdev(values)
    if any(v is None for v in values) or (answers[0]["shares"] is not None and answers[0]["shares"][1] > 1 and isinstance(values[0], str)):
        return statistics.pstdev([a["shares"][0] / a["shares"][1] for a in answers])
    counts = Counter(str(v) for v in values)
    return -sum(n / len(values) * math.log(n / len(values)) for n in counts.values())


def right(line: Mapping[str, Any]) -> bool:
    return line["predicted"] == line["expected"]


def written(answer: Any, line: Mapping[str, Any]) -> str:
    if answer is None:
        return f"{line['shares'][0] / line['shares'][1]:.2f} nats"
    if isinstance(answer, float):
        return f"{answer:.3g}"
    if isinstance(answer, list):
        entities = [f"{kind} {a}-{b - 1}" for kind, a, b in spans(answer)] if "O" in answer else answer
        return ", ".join(entities) or "-"
    return str(answer)[:160]
