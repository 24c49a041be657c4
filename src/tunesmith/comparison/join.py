"""Runs that were made at any time, as one comparison: of the same task, judged by the same metric on the same rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import Refusal
from ..train import Result
from .compare import Comparison, joined
from .report import write_report
from .table import by_label, label_of, rows_of


def join(folders: Sequence[Path], out: Path, lang: str) -> Comparison:
    """Raises Refusal where two of them do not speak of the same thing."""
    results = distinct([result for folder in folders for result in results_of(folder)])
    first, rows = results[0], judged(results[0])
    for other in results[1:]:
        for key in ("task", "metric"):
            if other[key] != first[key]:
                raise Refusal(f"{other.folder} has {key} {other[key]}, {first.folder} {first[key]}", where="report", fix="runs of one task")
        if judged(other) != rows:
            raise Refusal(f"{other.folder} was judged on other rows than {first.folder}", where="report", fix="runs with the same data.eval")
    if all(result.record.get("baseline") for result in results):
        raise Refusal("nothing here was trained", where="report", fix="give the folder of a run")
    record = {**joined(results), "seconds": sum(r["train_seconds"] for r in results), "recipe": first["recipe"]}
    return Comparison(write_report(record, results, out, lang), record, results)


def results_of(folder: Path) -> list[Result]:
    """Of a run; or of all arms of a comparison."""
    found = sorted(folder.glob("arms/**/result.json")) or [folder / "result.json"]
    try:
        results = [Result(path.parent, json.loads(path.read_text())) for path in found]
    except (OSError, ValueError) as e:
        raise Refusal(f"{folder} holds no finished run", where="report", why=str(e), fix="the folder of a run or of a comparison") from e
    if missing := [r.folder for r in results if not (r.folder / "predictions.jsonl").exists()]:
        raise Refusal(f"{missing[0]} has no predictions", where="report", why="it was trained without data.eval", fix="run it with data.eval")
    return results


def judged(result: Result) -> list[tuple[str, str]]:
    return [(row["asked"], str(row["expected"])) for row in rows_of(result.folder)]


def distinct(results: Sequence[Result]) -> list[Result]:
    """Runs of one label with one seed are told apart by their folder's name."""
    found = []
    for group in by_label(results).values():
        seeds = [r["seed"] for r in group]
        clash = len(set(seeds)) < len(seeds)
        found += [Result(r.folder, {**r.record, "label": f"{label_of(r)} {r.folder.name}"}) if clash else r for r in group]
    return found
