"""One recipe by several methods, one after another on one loaded base, and the table of what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import Refusal
from ..methods import METHODS
from ..progress import Reporter
from ..recipe import Recipe
from ..train import Result, run

EIGHT = tuple(name for name in METHODS if name != "peft")


def compare(recipe: Recipe, methods: Sequence[str], reporter: Reporter, *, fresh: bool = False) -> list[Result]:
    """Train an arm for each method at its own default rate; a method that refuses this model is said and left out."""
    results = []
    for name in methods:
        if name not in METHODS:
            raise Refusal(f"there is no method `{name}`", where="--methods", fix=f"one of {', '.join(METHODS)}")
        arm = replace(
            recipe,
            method=recipe.method if recipe.method["kind"] == name else {"kind": name},
            out=str(Path(recipe.folder.parent) / f"{recipe.folder.name}-{name}"),
        )
        began = time.perf_counter()
        try:
            result = run(arm, Reporter(reporter.console, quiet=False), fresh=fresh)
        except Refusal as e:
            if e.where.partition(".")[0] != "method":
                raise
            reporter.say(f"{name}: left out. {e}", "yellow")
            continue
        reporter.say(f"{name}: done in {time.perf_counter() - began:.0f} s", "green")
        results.append(result)
    return results


def table(results: Sequence[Result]) -> Table:
    """The guide's table, measured."""
    metric = results[0]["metric"]
    view = Table(box=None, pad_edge=False, header_style="bold")
    view.add_column("method")
    for column in (f"{metric} before", "after", "trained", "share", "artifact", "time", "peak memory"):
        view.add_column(column, justify="right")
    for r in results:
        view.add_row(*cells(r.record))
    return view


def cells(r: Mapping[str, Any]) -> list[str]:
    metric = r["metric"]
    share = r["trainable_parameters"] / r["total_parameters"]
    return [
        r["method"], figure(r["before"].get(metric)), figure(r["after"].get(metric)), f"{r['trainable_parameters']:,}", f"{share:.2%}",
        f"{r['artifact_bytes'] / 1e6:.2f} MB", f"{r['train_seconds']:.1f} s", f"{r['peak_memory_bytes'] / 1e9:.2f} GB",
    ]  # fmt: skip


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
