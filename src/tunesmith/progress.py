"""Telling the user what goes on: bars with the time left on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


@dataclass
class Reporter:
    """One a command. `quiet` keeps only what must be said."""

    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False, soft_wrap=True))
    quiet: bool = False

    def say(self, text: str, style: str = "") -> None:
        if not self.quiet:
            self.console.print(text, style=style, markup=False)

    @contextmanager
    def bar(self, what: str) -> Iterator[Bar]:
        """A bar for the time of a block; it learns its total with the first report."""
        bar = Bar(what, self)
        try:
            yield bar
        finally:
            bar.close()


@dataclass
class Bar:
    what: str
    reporter: Reporter
    progress: Progress | None = None
    began: float = field(default_factory=time.monotonic)
    spoke: float = field(default_factory=time.monotonic)

    def told(self, done: int, total: int, loss: float | None = None) -> None:
        """`done` of `total`; the loss stands beside it."""
        note = "" if loss is None else f"loss {loss:.3f}"
        if self.reporter.quiet:
            return
        if not self.reporter.console.is_terminal:
            self.line(done, total, note)
            return
        if self.progress is None:
            self.progress = Progress(
                TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"), console=self.reporter.console, transient=True,
            )  # fmt: skip
            self.progress.start()
            self.progress.add_task(self.what, total=total, note=note)
        self.progress.update(self.progress.task_ids[0], completed=done, total=total, note=note)

    def line(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self.spoke >= PLAIN_EVERY:
            self.spoke = now
            left = (now - self.began) / max(1, done) * (total - done)
            self.reporter.say(f"{self.what}: {done} of {total}, {left:.0f} s left  {note}")

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
