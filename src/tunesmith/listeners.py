"""What watches a run: evaluation with early stopping, a journal, a progress bar, a clock, and the user's Ctrl-C."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from .core import Listener, Network, Run, Stage
from .errors import Interrupted
from .evaluate.evaluate import Outcome, Probe
from .evaluate.metrics import better
from .networks.heads import Head
from .parallel import any_of, first, told

PASSED_ON = 2.0  # seconds


@dataclass
class Evaluate(Listener):
    """Asks the probe every `every` steps, keeps the best delta, and halts after `patience` evaluations without a better one.

    Chooses on this probe alone, so its best value is optimistic; a `test` set is asked once, at the end.
    """

    probe: Probe
    every: int
    patience: int = 0
    keep: Callable[[dict[str, Tensor]], None] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    fresh: Outcome | None = None

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        if run.done % self.every == 0 or run.done in run.ends:
            self.ask(run)

    def ask(self, run: Run) -> dict[str, Any]:
        outcome = self.probe.ask(run.net)
        self.fresh = outcome
        value = outcome.scores.values[outcome.scores.main]
        entry = {"step": run.done, "loss": outcome.loss, **outcome.scores.values}
        self.history.append(entry)
        if value is not None and (not self.best or (value - self.best["value"]) * better(outcome.scores.main) > 0):
            self.best = {"step": run.done, "value": value, "entry": entry}
            if self.keep and run.done:
                self.keep(run.delta.state_dict())
        elif self.patience and len([e for e in self.history if e["step"] > self.best.get("step", 0)]) >= self.patience and run.done:
            run.halt = run.halt or f"no better {outcome.scores.main} in {self.patience} evaluations"
        return entry

    def state(self) -> Mapping[str, Any]:
        return {"history": self.history, "best": self.best}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.history, self.best = list(state["history"]), dict(state["best"])


@dataclass
class Journal(Listener):
    """metrics.jsonl: one line a step. Lines after the step that a run continues from are taken back."""

    path: Path

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        if first():
            with self.path.open("a") as f:
                f.write(json.dumps({"step": run.done, **record}) + "\n")

    def rewind(self, done: int) -> None:
        if first() and self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if whole(line) and json.loads(line)["step"] <= done]
            self.path.write_text("".join(line + "\n" for line in lines))


def whole(line: str) -> bool:
    """Whether a line was written to its end."""
    try:
        return "step" in json.loads(line)
    except ValueError:
        return False


class Afresh(Listener):
    """Each stage starts with an optimiser that remembers nothing of the one before."""

    def begin(self, run: Run, stage: Stage) -> None:
        if run.between:
            run.update.prepare(run)  # type: ignore[attr-defined]


@dataclass
class Opening(Listener):
    """A head to which labels come: with each stage it knows the next of them (`known`, so many after each)."""

    net: Network
    task: str
    known: Sequence[int]

    def begin(self, run: Run, stage: Stage) -> None:
        head = self.net.heads[self.task]
        assert isinstance(head, Head)
        head.open = self.known[run.stream.index(stage)]


def is_open(net: Network, task: str, label: int) -> bool:
    """Whether the head of a task knows this label yet."""
    head = net.heads[task] if task in net.heads else None  # noqa: SIM401 - a ModuleDict has no get
    return not isinstance(head, Head) or head.open is None or label < head.open


@dataclass
class Clock(Listener):
    """Training seconds (interruptions not counted), tokens and rows; halts when `minutes` are over.

    filling   seconds that the frozen trunk's states took, before the first step; not in `seconds`, because arms may share them
    """

    minutes: float = 0.0
    seconds: float = 0.0
    filling: float = 0.0
    tokens: int = 0
    rows: int = 0
    last: float = field(default_factory=time.perf_counter)

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        self.tick()
        self.tokens, self.rows = self.tokens + int(record["tokens"]), self.rows + int(record["rows"])
        if self.minutes:
            self.seconds = told(lambda: self.seconds)
            run.spent = min(1.0, self.seconds / (60 * self.minutes))
            run.halt = run.halt or (f"{self.minutes:g} minutes are over" if run.spent == 1.0 else "")

    def tick(self) -> None:
        now = time.perf_counter()
        self.seconds, self.last = self.seconds + now - self.last, now

    def fill(self) -> None:
        """What passed since the last step went into stored states."""
        self.filling += time.perf_counter() - self.last
        self.skip()

    def skip(self) -> None:
        """What passed since the last step is not training."""
        self.last = time.perf_counter()

    def state(self) -> Mapping[str, Any]:
        return {"seconds": self.seconds, "tokens": self.tokens, "rows": self.rows}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.seconds, self.tokens, self.rows = state["seconds"], state["tokens"], state["rows"]


@dataclass
class Conflicts(Listener):
    """How many pairs of tasks pulled against each other in the steps of a run that looks (updates/surgery.py)."""

    pairs: int = 0
    steps: int = 0

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        if "conflicts" in record:
            self.pairs, self.steps = self.pairs + int(record["conflicts"]), self.steps + 1

    def state(self) -> Mapping[str, Any]:
        return {"pairs": self.pairs, "steps": self.steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.pairs, self.steps = state["pairs"], state["steps"]


@dataclass
class Skip(Listener):
    """Stands behind listeners whose work is not training, and takes their time off the clock."""

    clock: Clock

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        self.clock.skip()


@dataclass
class Show(Listener):
    """Tells a progress bar where the run is."""

    told: Callable[[int, int, float], None]

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        self.told(run.done, run.total, record["loss"])


class Signals(Listener):
    """SIGTERM and Ctrl-C let the step finish and the run save, and leave with a code of their own; one more, seconds later, ends it at once.

    At once comes a second one where a launcher of several processes passes on what the terminal has sent to all of them.
    """

    def __init__(self, save: Callable[[Run], None]) -> None:
        self.save, self.name, self.since, self.before = save, "", 0.0, {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self.heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def heard(self, number: int, frame: FrameType | None) -> None:
        if self.name and time.monotonic() - self.since > PASSED_ON:
            raise KeyboardInterrupt
        self.name, self.since = signal.Signals(number).name, self.since or time.monotonic()

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        if any_of(bool(self.name)):
            self.save(run)
            raise Interrupted(
                f"stopped by {self.name or 'a signal to another process'} after step {run.done} of {run.total}; saved", fix="the same command continues"
            )
