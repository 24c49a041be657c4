"""The comparison while it runs: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.live import Live
from rich.table import Table

from ..core import Listener, Run
from ..errors import Diverged, OutOfMemory, Refusal
from ..evaluate.metrics import better
from ..listeners import Evaluate
from ..progress import PLAIN_EVERY, Reporter
from ..train import Result
from .table import figure

BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class News:
    """Of a run under way: the share of it that is behind, and its curve on the rows it is judged by."""

    label: str
    seed: int
    share: float
    loss: float
    metric: str
    curve: tuple[float, ...]


@dataclass(frozen=True)
class Over:
    """A run is finished; `trained`: just now, not by an earlier command. `turn`: what the label's runs differ in."""

    label: str
    seed: int
    metric: str
    value: float | None
    seconds: float
    trained: bool
    turn: str = "seed"


@dataclass(frozen=True)
class Left:
    """A method that is left out: it refuses this model or these rows, diverges, or finds no memory."""

    label: str
    why: str


def over(label: str, seed: int, result: Result, began: float, turn: str = "seed") -> Over:
    """`began`: when it was asked for, in seconds of the clock on the wall."""
    fresh = (result.folder / "result.json").stat().st_mtime >= began
    return Over(label, seed, result["metric"], result["after"].get(result["metric"]), result["train_seconds"], fresh, turn)


def left(label: str, refusal: Refusal) -> Left:
    """Raises again what concerns the whole comparison, not one method."""
    if isinstance(refusal, Diverged | OutOfMemory) or refusal.where.partition(".")[0] == "method":
        return Left(label, str(refusal))
    raise refusal


Tell = Callable[[News | Over | Left], None]


@dataclass
class Herald(Listener):
    """Tells after each step how far its run is."""

    label: str
    seed: int
    tell: Tell

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        watch = next((x for x in run.listeners if isinstance(x, Evaluate)), None)
        metric = watch.fresh.scores.main if watch and watch.fresh else ""
        curve = tuple(e[metric] for e in watch.history if e[metric] is not None) if watch and metric else ()
        self.tell(News(self.label, self.seed, run.progress, record["loss"], metric, curve))


@dataclass
class State:
    """Of one label: how many of its runs are done, how far those under way are, by seed, and the curve of the latest."""

    runs: int = 0
    done: int = 0
    shares: dict[int, float] = field(default_factory=dict)
    loss: float | None = None
    curve: tuple[float, ...] = ()
    finals: list[float] = field(default_factory=list)
    note: str = ""


class Board:
    """Hears of every run, whoever trains it. `runs`: of each label how many there will be."""

    def __init__(self, runs: Mapping[str, int], reporter: Reporter) -> None:
        self.states = {label: State(count) for label, count in runs.items()}
        self.reporter, self.metric = reporter, ""
        self.began = self.spoke = time.monotonic()
        self.spared = 0.0  # share of the work that an earlier command had done
        self.live: Live | None = None

    def __enter__(self) -> Board:
        self.began = self.spoke = time.monotonic()
        if self.reporter.console.is_terminal and not self.reporter.quiet:
            self.live = Live(self.view(), console=self.reporter.console, refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def hear(self, told: News | Over | Left) -> None:
        state = self.states[told.label]
        match told:
            case News():
                state.shares[told.seed], state.loss, state.curve = told.share, told.loss, told.curve
                self.metric = told.metric or self.metric
                self.refresh(told.label)
            case Over():
                self.over(state, told)
            case Left() if not state.note:
                self.reporter.say(f"{told.label}: left out. {told.why}", "yellow")
                state.note, state.done, state.shares = told.why.splitlines()[0], state.runs, {}

    def over(self, state: State, told: Over) -> None:
        state.done, self.metric = state.done + 1, told.metric
        state.shares.pop(told.seed, None)
        state.finals += [] if told.value is None else [told.value]
        if not told.trained:
            self.spared += 1 / self.runs
            return
        if not self.live:
            self.reporter.say(f"{told.label}, {told.turn} {told.seed}: {told.metric} {figure(told.value)}, {told.seconds:.1f} s{self.left()}")
            self.spoke = time.monotonic()
        self.refresh(told.label)

    def refresh(self, label: str) -> None:
        if self.live:
            self.live.update(self.view())
        elif time.monotonic() - self.spoke >= PLAIN_EVERY:
            self.spoke = time.monotonic()
            state = self.states[label]
            self.reporter.say(f"{label}: {max(state.shares.values(), default=1.0):.0%}, loss {state.loss or 0:.3f}{self.left()}")

    @property
    def runs(self) -> int:
        return sum(s.runs for s in self.states.values())

    @property
    def progress(self) -> float:
        """Share of all runs that is behind, each counted alike."""
        return sum(s.done + sum(s.shares.values()) for s in self.states.values()) / self.runs

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
            now, share = bool(s.shares), max(s.shares.values(), default=0.0)
            bar = "█" * round(12 * share) + "·" * (12 - round(12 * share)) if now else s.note
            final = figure(sum(s.finals) / len(s.finals)) if s.finals else figure(s.curve[-1]) if s.curve else ""
            loss = "" if s.loss is None else f"{s.loss:.3f}"
            view.add_row(label, f"{s.done}/{s.runs}", bar, loss, final, curve(s.curve, better(self.metric or "accuracy")), style="" if now else "dim")
        return view


def curve(values: Sequence[float], direction: int) -> str:
    """The last values as bars, taller is better."""
    tail = [direction * v for v in values[-16:]]
    low, high = min(tail, default=0.0), max(tail, default=0.0)
    return "".join(BARS[round((v - low) / (high - low) * (len(BARS) - 1))] if high > low else BARS[0] for v in tail)
