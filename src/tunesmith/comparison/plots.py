"""The report's drawings: SVG by matplotlib, text left to the reader's own fonts."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = Mapping[str, Any]
COLOURS = ("#0b6e99", "#d9730d", "#4d8c57", "#ad1a72", "#6940a5", "#9f6b53", "#e03e3e", "#64748b", "#b8a31f", "#2a9d8f")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8", "axes.labelcolor": "#334155", "xtick.color": "#475569", "ytick.color": "#475569", "axes.grid": True,
    "grid.color": "#e2e8f0", "grid.linewidth": 0.7, "axes.axisbelow": True, "figure.constrained_layout.use": True,
}  # fmt: skip


def colours(table: Sequence[Row]) -> dict[str, str]:
    """One a label, the same in every drawing; baselines are grey."""
    trained = [row["label"] for row in table if not row["baseline"]]
    return {row["label"]: "#94a3b8" for row in table} | {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(sorted(trained))}


def drawn(width: float, height: float, draw, parts: int = 1) -> str:
    """An <svg> element whose ids no other drawing of the page has."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib has no font for: the browser has one
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(1, parts, squeeze=False)[0]
        draw(*axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    mark = f"{draw.__name__}-{abs(hash(text)) % 10**8}"
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{mark}-", text)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', text, count=1)


def front(points: Sequence[tuple[float, float]], up: bool) -> list[int]:
    """Indices of the Pareto front: nobody costs less and is at least as good; from cheap to dear."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1] if up else points[i][1]))
    found: list[int] = []
    for i in order:
        if not found or ((points[i][1] > points[found[-1]][1]) == up and points[i][1] != points[found[-1]][1]):
            found.append(i)
    return found


def scatter(table: Sequence[Row], up: bool, words: Mapping[str, str]) -> str:
    """Quality against what it costs to train and to keep; the line joins the Pareto front."""
    paint = colours(table)

    def costs(left: Axes, right: Axes) -> None:
        for axes, key, name in ((left, "train_seconds", words["seconds"]), (right, "artifact_bytes", words["artifact_mb"])):
            scale = 1e-6 if key == "artifact_bytes" else 1.0
            rows = [row for row in table if row[key]]
            points = [(max(row[key] * scale, 1e-4), row["mean"]) for row in rows]
            line = [points[i] for i in front(points, up)]
            axes.plot(*zip(*line, strict=True), color="#cbd5e1", linewidth=4, zorder=1, solid_capstyle="round", drawstyle="steps-post")
            for row, (x, y) in zip(rows, points, strict=True):
                axes.errorbar(x, y, yerr=[[y - row["low"]], [row["high"] - y]], color=paint[row["label"]], fmt="o", markersize=6, linewidth=1, zorder=3)
            axes.set(xscale="log", xlabel=name, ylabel=table[0]["metric"])
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
            axes.margins(x=0.2)
            if not up:
                axes.invert_yaxis()
            name_points(axes, {row["label"]: point for row, point in zip(rows, points, strict=True)}, paint)

    return drawn(10, 4.2, costs, 2)


def name_points(axes: Axes, points: Mapping[str, tuple[float, float]], paint: Mapping[str, str]) -> None:
    """A name beside each point, on the side where it meets the fewest bars and names so far."""
    axes.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]  # the layout is only known then
    scale = 72 / axes.figure.dpi
    at = {label: axes.transData.transform(point) * scale for label, point in points.items()}
    taken: list[tuple[float, float, float, float]] = [(x - 3, y - 30, x + 3, y + 30) for x, y in at.values()]
    for label, (x, y) in at.items():
        wide = 5.2 * len(label)
        sides = [(x + dx if dx > 0 else x + dx - wide, y + dy, dx, dy) for dy in (4, -12, 14, -22) for dx in (7, -7)]
        boxes = [(left, low, left + wide, low + 9) for left, low, _, _ in sides]
        chosen = min(range(len(sides)), key=lambda i: (sum(meet(boxes[i], other) for other in taken), i))
        taken.append(boxes[chosen])
        _, _, dx, dy = sides[chosen]
        side = "left" if dx > 0 else "right"
        axes.annotate(label, points[label], textcoords="offset points", xytext=(dx, dy), ha=side, fontsize=9, color=paint[label])


def meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Two boxes (left, low, right, high) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def curves(arms: Sequence[Row], metric: str, table: Sequence[Row], words: Mapping[str, str]) -> str:
    """The metric on the eval set while training: the mean over seeds."""
    paint = colours(table)
    by_label: dict[str, dict[int, list[float]]] = {}
    for arm in arms:
        for entry in arm["history"]:
            if entry.get(metric) is not None:
                by_label.setdefault(arm["label"], {}).setdefault(entry["step"], []).append(entry[metric])

    def learning(axes: Axes) -> None:
        ends = []
        for label, steps in by_label.items():
            x = sorted(steps)
            y = [sum(steps[s]) / len(steps[s]) for s in x]
            axes.plot(x, y, marker="o", markersize=3, color=paint[label], linewidth=1.6)
            ends.append((y[-1], x[-1], label))
        spread_labels(axes, ends, paint)
        axes.set(xlabel=words["steps"], ylabel=metric)
        axes.margins(x=0.02)
        if metric == "perplexity":
            axes.set_yscale("log")

    return drawn(10, 4.2, learning)


def spread_labels(axes: Axes, ends: Sequence[tuple[float, float, str]], paint: Mapping[str, str]) -> None:
    """Names at the right end of their lines, moved apart where they would meet."""
    low, high = axes.get_ylim()
    gap, last = (high - low) / 24, None
    for y, x, label in sorted(ends):
        place = y if last is None else max(y, last + gap)
        last = place
        axes.annotate(label, (x, y), xytext=(1.01, (place - low) / (high - low)), textcoords="axes fraction", fontsize=9, va="center", color=paint[label])


def forgetting(table: Sequence[Row], words: Mapping[str, str]) -> str:
    """Loss on the general text, before (line) and after (bars)."""
    rows = [row for row in table if row["general_after"] is not None][::-1]
    paint = colours(table)

    def bars(axes: Axes) -> None:
        axes.barh([row["label"] for row in rows], [row["general_after"] for row in rows], color=[paint[row["label"]] for row in rows], height=0.62)
        axes.axvline(rows[0]["general_before"], color="#334155", linewidth=1.2, linestyle="--")
        axes.set_xlabel(words["general_loss"])
        axes.grid(axis="y", visible=False)

    return drawn(10, 0.7 + 0.32 * len(rows), bars)
