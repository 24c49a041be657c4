"""Rewards that somebody wrote, and rewards that were learnt."""

from __future__ import annotations

import importlib.util
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import Refusal
from .told import SLOW, Score, Told, number, shown


def function(path: str, where: str = "objective.reward") -> Callable[..., Any]:
    """`file.py:name`."""
    file, _, name = path.rpartition(":")
    if not Path(file).is_file():
        raise Refusal(f"there is no file {file}", where=where, fix="file.py:name, from the folder in which the command runs")
    names = names_in(file, Path(file).stat().st_mtime_ns, where)
    if not callable(names.get(name)):
        raise Refusal(f"{file} has no function `{name}`", where=where, fix=", ".join(n for n, v in names.items() if inspect.isfunction(v)) or "write one")
    return names[name]


@lru_cache(maxsize=16)
def names_in(file: str, changed: int, where: str) -> dict[str, Any]:
    """What a file defines. It is run once, until it changes."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise Refusal(f"{file} cannot be run: {type(e).__name__}: {e}", where=where) from e
    return vars(module)


@lru_cache(maxsize=2)
def loaded(folder: str) -> Any:
    from ..artifact import load  # what loads networks is imported when one is asked for

    return load(folder)


def scored_by(path: str, warn: Callable[[str], None]) -> Score:
    """A function of `samples` is asked for all; one of anything else is asked one by one, so that the slow and the faulty are named."""
    call = function(path)
    names = list(inspect.signature(call).parameters)
    return call if names[:1] == ["samples"] else lambda samples: [one(path, call, s, warn) for s in samples]


def one(path: str, call: Callable[..., Any], sample: Told, warn: Callable[[str], None]) -> Any:
    began = time.perf_counter()
    try:
        value = call(sample)
    except Exception as e:
        raise Refusal(f"reward {path} raised {type(e).__name__}: {e}", where="objective.reward", why=shown(sample), fix="mend the function") from e
    if not (value is None or number(value)):
        raise Refusal(
            f"reward {path} is {value!r}", where="objective.reward", why=shown(sample), fix="a finite number, or None where a sample cannot be scored"
        )
    if (took := time.perf_counter() - began) > SLOW:
        warn(f"reward {path} took {took:.1f} s; {shown(sample)}")
    return value


@dataclass(frozen=True)
class OfRun:
    """A trained network's judgement: task score, its number (what was asked and answered as a pair where it learnt from comparisons); task classify,
    the probability of `label`, of the answer alone."""

    folder: str
    label: str | None = None

    def made(self) -> Score:
        from ..predicting import outputs

        tuned = loaded(self.folder)
        labels = list(tuned.task.labels)
        if tuned.task.kind not in ("single", "score", "reward") or (labels and self.label not in labels):
            fix = f"label: {' or '.join(labels)}" if labels else "a run of task classify or score"
            raise Refusal(f"the run in {self.folder} gives no such number", where="objective.reward.label", why=f"its task is {tuned.task.name}", fix=fix)

        def score(samples: Sequence[Told]) -> list[float | None]:
            texts = [[asked_text(tuned, s), s.completion] if tuned.task.kind == "reward" else s.completion for s in samples]
            found = outputs(tuned, texts, 8192)
            return [float(row.softmax(-1)[labels.index(self.label or "")]) if labels else float(row[0]) for row in found]

        return score


def asked_text(tuned: Any, sample: Told) -> str:
    from ..sources.text.template import Template

    return Template.of(tuned.reader.tokenizer, tuned.reader.template).asked(sample.turns)
