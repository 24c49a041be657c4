"""From finished arms to the guide's table, measured: one row a label, what seeds and rows allow to be said of it, and what it cost."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from ..evaluate.metrics import better
from ..evaluate.several import counts, mains_of
from ..sources.streams import STREAMS
from ..train import Result
from .statistics import LEVEL, Estimate, Judged, correlation, difference, draws_of, estimate, holm, mean_of, ratio


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of predictions.jsonl."""
    with (folder / "predictions.jsonl").open(encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def judged(metric: str, rows: Sequence[Mapping[str, Any]]) -> Judged:
    """How one run is judged on any draw of its rows."""
    if "task" in rows[0]:
        return of_tasks(metric, rows)
    if rows[0]["shares"] is None:
        return correlation([r["predicted"] for r in rows], [r["expected"] for r in rows])
    return ratio([r["shares"] for r in rows], np.exp if metric == "perplexity" else lambda x: x)


def of_tasks(metric: str, rows: Sequence[Mapping[str, Any]]) -> Judged:
    """The mean over tasks; of metrics that differ, of those in which higher is better. (The rows of the others take no part in a draw.)"""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault(row["task"], []).append({k: v for k, v in row.items() if k != "task"})
    counted = [part for part in parts.values() if counts(metric, part[0]["metric"])]
    return mean_of([(len(part), judged(part[0]["metric"], part)) for part in counted])


def by_label(results: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(label_of(result), []).append(result)
    return found


def label_of(result: Result) -> str:
    return result.record.get("label") or result["method"]


def tabled(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The best first. Every arm but the best has `gap` (how far the best is ahead), its p-value after Holm, and `distinct`."""
    metric = results[0]["metric"]
    groups = by_label(results)
    lines = {label: [rows_of(r.folder) for r in group] for label, group in groups.items()}
    draws = draws_of(len(next(iter(lines.values()))[0]))
    found = {label: estimate([judged(metric, rows) for rows in of_seeds], draws) for label, of_seeds in lines.items()}
    order = sorted(found, key=lambda label: -better(metric) * found[label].mean)
    best = order[0]
    paired = any(STREAMS[r.record.get("stream", "single")].draws for r in results)
    tests = {label: difference(found[best], found[label], draws.shape[1], paired) for label in order[1:]}
    adjusted = holm({label: p for label, (_, p) in tests.items()})
    table = []
    for label in order:
        row = {**measured(groups[label]), **quality(groups[label], found[label], metric)}
        if label != best:
            row |= {"gap": better(metric) * tests[label][0], "p": adjusted[label], "distinct": adjusted[label] < 1 - LEVEL}
        table.append(row)
    return table


def quality(group: Sequence[Result], found: Estimate, metric: str) -> dict[str, Any]:
    before = [r["before"][metric] for r in group if r["before"].get(metric) is not None]
    return {
        "mean": found.mean, "low": found.low, "high": found.high, "values": list(found.values),
        "before": statistics.fmean(before) if before else None,
        "gain": found.mean - statistics.fmean(before) if before else None,
    }  # fmt: skip


def measured(group: Sequence[Result]) -> dict[str, Any]:
    """What the arm cost: means over seeds, the peak of the highest."""
    first = group[0]
    mean = lambda key: statistics.fmean(values) if (values := [r.record[key] for r in group if r.record.get(key) is not None]) else None
    peaks = [r["peak_memory_bytes"] for r in group if r["peak_memory_bytes"]]
    general = [r.record["general"] for r in group if r.record.get("general")]
    return {
        "label": label_of(first), "method": first["method"], "baseline": bool(first.record.get("baseline")), "metric": first["metric"],
        "seeds": [r["seed"] for r in group], **by_task(group), "trainable_parameters": first["trainable_parameters"],
        "share": first["trainable_parameters"] / first["total_parameters"], "artifact_bytes": first["artifact_bytes"],
        "peak_memory_bytes": max(peaks) if peaks else None, "train_seconds": mean("train_seconds"), "real_tokens_per_second": mean("real_tokens_per_second"),
        "latency_ms": mean("latency_ms"), "base_latency_ms": mean("base_latency_ms"), "merges": first.record.get("merges"),
        "learning_rate": first.record.get("learning_rate"), "tuning": first.record.get("tuning"),
        "general_before": statistics.fmean(g["before"] for g in general) if general else None,
        "general_after": statistics.fmean(g["after"] for g in general) if general else None,
    }  # fmt: skip


def by_task(group: Sequence[Result]) -> dict[str, Any]:
    """`tasks`: the main metric of each of several, mean over seeds; `matrix`: of a sequence, stage x task, and what is remembered of it."""
    metrics = mains_of(group[0]["after"])
    mean = lambda values: None if None in values else statistics.fmean(values)
    found = {task: mean([r["after"].get(f"{task}.{metric}") for r in group]) for task, metric in metrics.items()}
    told = [r.record["sequence"] for r in group if r.record.get("sequence")]
    matrix = [[mean(list(cells)) for cells in zip(*rows, strict=True)] for rows in zip(*(s["matrix"] for s in told), strict=True)] if told else None
    kept = {key: mean([s.get(key) for s in told]) for key in ("acc", "bwt", "fwt", "forgetting")} if told else {}
    return {"tasks": found, "task_metrics": metrics, "matrix": matrix, "remembered": kept} if metrics else {}


def leads(table: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the first row is better than every other by more than chance."""
    return all(row["distinct"] for row in table[1:])


# ------------------------------------------------------------------------------------------------ on the terminal


def shown(table: Sequence[Mapping[str, Any]]) -> Table:
    """For the terminal. Bold is a row that leads beyond chance; `=` marks what cannot be told from the best."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    metric = table[0]["metric"]
    view.add_column("method")
    for column in (metric, f"{LEVEL:.0%} interval", "gain", "trained", "share", "artifact", "memory", "time", "tokens/s", "latency", "merges", "forgot"):
        view.add_column(column, justify="right")
    if searched := any(row["tuning"] for row in table):
        view.add_column("rate, found in", justify="right")
    for i, row in enumerate(table):
        style = "bold" if i == 0 and leads(table) else "dim" if row["baseline"] else ""
        view.add_row(*(Text(cell) for cell in [*cells(row), *([rate(row)] if searched else [])]), style=style)
    return view


def cells(row: Mapping[str, Any]) -> list[str]:
    same = row.get("distinct") is False
    return [
        row["label"],
        figure(row["mean"]) + (" =" if same else "  "),
        f"{figure(row['low'])}–{figure(row['high'])}",
        "" if row["gain"] is None else f"{row['gain']:+.3f}",
        f"{row['trainable_parameters']:,}",
        f"{row['share']:.2%}",
        size(row["artifact_bytes"]),
        "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
        seconds(row["train_seconds"]),
        "" if row["real_tokens_per_second"] is None else f"{row['real_tokens_per_second']:,.0f}",
        latency(row),
        "" if row["merges"] is None else "yes" if row["merges"] else "no",
        forgot(row),
    ]


def rate(row: Mapping[str, Any]) -> str:
    """The learning rate that a search found, and the seconds that its candidates trained."""
    return f"{row['learning_rate']:g}, {seconds(row['tuning']['seconds'])}" if row["tuning"] else ""


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def size(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def seconds(taken: float | None) -> str:
    return "" if taken is None else f"{taken:.1f} s" if taken < 100 else f"{taken / 60:.1f} min" if taken < 6000 else f"{taken / 3600:.1f} h"


def latency(row: Mapping[str, Any]) -> str:
    """Of one prediction, and over the base's."""
    if row["latency_ms"] is None:
        return ""
    return f"{row['latency_ms']:.1f} ms {row['latency_ms'] / row['base_latency_ms']:.2f}x"


def forgot(row: Mapping[str, Any]) -> str:
    """How much the loss on a general text rose, in nats."""
    return "" if row["general_after"] is None else f"{row['general_after'] - row['general_before']:+.2f}"


def notes(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the marks mean, and what may not be read into the table."""
    best, same = table[0], [row["label"] for row in table[1:] if not row["distinct"]]
    said = []
    if same:
        said.append(f"= cannot be told from the best ({best['label']}): {', '.join(same)}.")
    if len(best["seeds"]) == 1 and not best["baseline"]:
        said.append("One seed: intervals are over the rows judged only; --seeds 3 also shows how much the seed matters.")
    if any(row["general_after"] is not None for row in table):
        said.append("forgot: by how much the loss on a general text rose, in nats. gain: over the model before training.")
    if any(row["tuning"] for row in table):
        tried = sum(len(row["tuning"]["tried"]) for row in table if row["tuning"])
        spent = sum(row["tuning"]["seconds"] for row in table if row["tuning"])
        said.append(f"Rates were searched on rows held out of the training rows: {tried} candidates, {seconds(spent)} of training that no column counts.")
    return said
