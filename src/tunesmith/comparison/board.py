"""The comparison while it runs: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.live import Live
from rich.table import Table

from ..core import Listener, Run
from ..evaluate.metrics import better
from ..listeners import Evaluate
from ..progress import PLAIN_EVERY, Reporter
from .arms import Arm
from .table import figure

BARS = "▁▂▃▄▅▆▇█"


@dataclass
class State:
    """Of one label: how many of its runs are done, how far the current one is, and its curve."""

    runs: int
    done: int = 0
    share: float = 0.0
    loss: float | None = None
    curve: list[float] = field(default_factory=list)
    finals: list[float] = field(default_factory=list)
    note: str = ""


class Board(Listener):
    """Hears every step of every arm. One arm runs at a time; `turn` says which."""

    def __init__(self, arms: Sequence[Arm], reporter: Reporter) -> None:
        self.states: dict[str, State] = {}
        for arm in arms:
            self.states.setdefault(arm.label, State(0)).runs += 1
        self.reporter, self.metric, self.current = reporter, "", ""
        self.began = self.spoke = time.monotonic()
        self.spared = 0.0  # share of the work that an earlier command had done
        self.live: Live | None = None

    def __enter__(self) -> Board:
        if self.reporter.console.is_terminal and not self.reporter.quiet:
            self.live = Live(self.view(), console=self.reporter.console, refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def turn(self, arm: Arm) -> None:
        self.current = arm.label
        self.states[arm.label].curve = []

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        state = self.states[self.current]
        state.share, state.loss = run.progress, record["loss"]
        watch = next((x for x in run.listeners if isinstance(x, Evaluate)), None)
        if watch and watch.fresh:
            self.metric = watch.fresh.scores.main
            state.curve = [e[self.metric] for e in watch.history if e[self.metric] is not None]
        self.refresh()

    def over(self, arm: Arm, record: Mapping[str, Any], trained: bool) -> None:
        """An arm is finished; `trained`: just now, not by an earlier command."""
        state = self.states[arm.label]
        state.done, state.share = state.done + 1, 0.0
        self.metric = record["metric"]
        value = record["after"].get(self.metric)
        state.finals += [] if value is None else [value]
        if not trained:
            self.spared += 1 / sum(s.runs for s in self.states.values())
            return
        if not self.live:
            self.reporter.say(f"{arm.label}, seed {arm.recipe.seed}: {self.metric} {figure(value)}, {record['train_seconds']:.1f} s{self.left()}")
            self.spoke = time.monotonic()
        self.refresh()

    def refuse(self, arm: Arm, why: str) -> None:
        self.states[arm.label].note, self.states[arm.label].done = why.splitlines()[0], self.states[arm.label].runs
        self.reporter.say(f"{arm.label}: left out. {why}", "yellow")

    def refresh(self) -> None:
        if self.live:
            self.live.update(self.view())
        elif time.monotonic() - self.spoke >= PLAIN_EVERY:
            self.spoke = time.monotonic()
            state = self.states[self.current]
            self.reporter.say(f"{self.current}: {state.share:.0%}, loss {state.loss or 0:.3f}{self.left()}")

    @property
    def progress(self) -> float:
        """Share of all runs that is behind, each counted alike."""
        return sum(s.done + s.share for s in self.states.values()) / sum(s.runs for s in self.states.values())

    def left(self) -> str:
        """The time left, once there is something to judge it by."""
        done = self.progress - self.spared
        if done <= 0.01:
            return ""
        rest = (time.monotonic() - self.began) / done * (1 - self.progress)
        return f"; {rest:.0f} s left in all" if rest < 120 else f"; {rest / 60:.0f} min left in all"

    def view(self) -> Table:
        view = Table(box=None, pad_edge=False, header_style="bold", caption=f"{self.progress:.0%}{self.left()}", caption_justify="left")
        for name in ("method", "runs", "", "loss", self.metric or "metric", "curve"):
            view.add_column(name)
        for label, s in self.states.items():
            now = label == self.current and s.done < s.runs
            bar = "█" * round(12 * s.share) + "·" * (12 - round(12 * s.share)) if now else s.note
            final = figure(sum(s.finals) / len(s.finals)) if s.finals else figure(s.curve[-1]) if s.curve else ""
            loss = "" if s.loss is None else f"{s.loss:.3f}"
            view.add_row(label, f"{s.done}/{s.runs}", bar, loss, final, curve(s.curve, better(self.metric or "accuracy")), style="" if now else "dim")
        return view


def curve(values: Sequence[float], direction: int) -> str:
    """The last values as bars, taller is better."""
    tail = [direction * v for v in values[-16:]]
    low, high = min(tail, default=0.0), max(tail, default=0.0)
    return "".join(BARS[round((v - low) / (high - low) * (len(BARS) - 1))] if high > low else BARS[0] for v in tail)
