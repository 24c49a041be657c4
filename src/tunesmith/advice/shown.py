"""The advice on a terminal: the rows in order, the reasons, the nearest measured cases, and what to type next."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..comparison.table import seconds
from ..guide import GUIDE
from .recommend import Advice
from .verdicts import NO, YES, Verdict

COLOURS = {YES: "green", NO: "dim"}


def show(advice: Advice) -> None:
    out = Console(width=max(150, Console().width))
    case = advice.case
    if case.shape:
        s = case.shape
        labels = f", {s.labels} labels, the rarest {s.rarest} times" if s.labels else ""
        known = "" if s.skill is None else f"; of what the majority class gets wrong, a head on the frozen trunk gets {s.skill:.0%} right"
        out.print(
            f"{case.name}: {case.task}, {s.rows:,} rows{labels}; {s.tokens:.0f} tokens a row, at most {s.longest}; {case.memory / 1e9:.1f} GB free{known}\n"
        )
    out.print(table(advice))
    for line in [*evidence(advice), *after(advice)]:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def table(advice: Advice) -> Table:
    view = Table(box=None, pad_edge=False, header_style="bold")
    view.add_column("row")
    view.add_column("fits")
    for name in ("trains", "share", "memory", "time" if advice.probed else "time, about"):
        view.add_column(name, justify="right")
    view.add_column("why", overflow="fold")
    for verdict in advice.verdicts:
        view.add_row(*cells(verdict), style=COLOURS.get(verdict.fits, ""))
    return view


def cells(verdict: Verdict) -> list[str]:
    look, name = verdict.outlook, GUIDE[verdict.row].texts["en"].name
    costs = [f"{look.trainable:,}", f"{look.trainable / look.total:.2%}", f"{look.memory / 1e9:.2f} GB", seconds(look.seconds)] if look else [""] * 4
    return [name, verdict.fits, *costs, "; ".join(verdict.why)]


def evidence(advice: Advice) -> list[str]:
    """The nearest measured cases, each with its three best."""
    if not advice.near:
        return (
            ["", "no comparison of this task is among the measured cases: what is said of quality is no more than the guide's word"]
            if advice.case.shape
            else []
        )
    lines = ["", "nearest measured cases (MiniLM; best three of eight, and the linear probe on frozen features):"]
    for far, cell in advice.near:
        trained = sorted(((v, m) for m, v in cell.values.items() if m in GUIDE), reverse=True)[:3]
        said = ", ".join(f"{m} {v:.3f}" for v, m in trained)
        probe = f"; linear probe {cell.values['linear probe']:.3f}" if "linear probe" in cell.values else ""
        lines.append(f"  {cell.name:32} {cell.metric} {said}{probe}   {'near' if far < 1 else 'far' if far > 2 else 'not far'} ({far:.1f})")
    return lines


def after(advice: Advice) -> list[str]:
    """What to type."""
    methods = [v.row for v in advice.verdicts if GUIDE[v.row].kind == "method" and v.fits != NO][:3]
    if not advice.case.recipe:
        return []
    target = advice.case.name
    first = f"tunesmith init {target} && " if not target.endswith((".yaml", ".yml")) and target != "desk" else ""
    recipe = target if target.endswith((".yaml", ".yml")) else "recipe.yaml"
    return ["", f"next: {first}tunesmith compare {recipe} --methods {','.join(methods)}"]
