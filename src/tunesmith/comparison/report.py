"""A page of its own, report.html: what was measured, drawn and said in a reader's language. It loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..checkpoint import write_file
from ..evaluate.metrics import better
from ..guide import GUIDE
from ..train import Result
from . import detail, table
from .words import words


def write_report(record: Mapping[str, Any], results: Sequence[Result], path: Path, language: str = "en") -> Path:
    """From compare.json and the runs behind it."""
    write_file(path, page(record, results, language).encode())
    return path


def page(record: Mapping[str, Any], results: Sequence[Result], language: str) -> str:
    from jinja2 import Environment

    from . import plots  # and matplotlib with it, which nothing before the page needs

    say, rows = words(language), record["table"]
    lines = {label: [table.rows_of(r.folder) for r in group] for label, group in table.by_label(results).items()}
    lines = {row["label"]: lines[row["label"]] for row in rows}
    what, by_class = detail.classes(lines)
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (resources.files("tunesmith.comparison") / "report.html.j2").read_text(encoding="utf-8")
    )
    forgot = any(row["general_after"] is not None for row in rows)
    kind = next((arm["general"]["kind"] for arm in record["arms"] if arm.get("general")), "")
    return template.render(
        say=say, language=language, record=record, rows=rows, summary=summary(record, say), cells=[cells(row, say) for row in rows],
        guide=[(row, GUIDE[row["method"]].texts[language]) for row in rows if row["method"] in GUIDE and not row["baseline"]],
        files=files_of(record["recipe"]), figure=table.figure, leads=record["leads"], rates=[table.rate(row) for row in rows] if any(row["tuning"] for row in rows) else [],
        cost=plots.scatter(rows, better(record["metric"]) > 0, say), learning=plots.curves(record["arms"], record["metric"], rows, say),
        forgetting=plots.forgetting(rows, say) if forgot else "", general=say.get(kind, kind), classes=by_class, classes_of=say.get(what, ""),
        tasks=task_names(rows), sequences=[row for row in rows if row.get("matrix")], transfer=record.get("transfer", {}),
        differences=detail.disagreements(lines), recipe=yaml.safe_dump(trimmed(record["recipe"]), sort_keys=False, allow_unicode=True),
        machine=json.dumps(record["machine"], ensure_ascii=False, indent=1), command=record.get("command", ""),
    )  # fmt: skip


def files_of(recipe: Mapping[str, Any]) -> str:
    """The training files."""
    return ", ".join(dict.fromkeys(one["data"]["train"] for one in recipe.get("tasks", {}).values())) or recipe["data"]["train"]


def task_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(task for row in rows for task in row.get("tasks", ())))


def summary(record: Mapping[str, Any], say: Mapping[str, str]) -> list[str]:
    """Two sentences: what is best and by how much; what else would do, and what it costs."""
    rows = record["table"]
    best, same = rows[0], [row for row in rows[1:] if not row["distinct"]]
    facts = {key: table.figure(best[key]) for key in ("mean", "low", "high", "before")}
    counted = sum(1 for row in rows if not row["baseline"])
    head = say["summary_gain" if best["before"] is not None else "summary"].format(
        best=best["label"], arms=counted, model=record["model"], metric=record["metric"], rows=record["rows_judged"], **facts
    )
    if best["baseline"]:
        return [head, say["baseline_best"]]
    if not same:
        return [head, say["leads"]]
    cheapest = min([best, *same], key=lambda row: row["artifact_bytes"])
    others = ", ".join(row["label"] for row in same)
    return [
        head,
        say["ties"].format(
            others=others, cheapest=cheapest["label"], artifact=table.size(cheapest["artifact_bytes"]), time=table.seconds(cheapest["train_seconds"])
        ),
    ]


def cells(row: Mapping[str, Any], say: Mapping[str, str]) -> list[str]:
    """As on the terminal, with the words of the language."""
    found = table.cells(row)
    found[-2] = "" if row["merges"] is None else say["yes"] if row["merges"] else say["no"]
    return found


def trimmed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that say nothing."""
    inner = {k: trimmed(v) if isinstance(v, Mapping) else v for k, v in recipe.items()}
    return {k: v for k, v in inner.items() if v not in (None, {}, [])}
