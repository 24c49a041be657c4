"""A sample as a reward sees it, and what can go wrong when one is asked: each fault names the reward and the sample."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import Refusal
from ..sources.text.examples import Turn

SLOW = 2.0  # seconds a sample
SHOWN = 200  # characters of a sample in a message


@dataclass(frozen=True)
class Told:
    """One sample as a reward sees it. `prompt` is the last turn that was asked, `turns` all of them; `reference` the data's own answer, if any.

    ended   the policy came to the end by itself; row: of the data, from 0
    """

    prompt: str
    completion: str
    reference: str | None
    row: int
    ended: bool
    turns: tuple[Turn, ...] = ()


Score = Callable[[Sequence[Told]], list[float | None]]


def asked(name: str, score: Score, samples: Sequence[Told], warn: Callable[[str], None]) -> list[float]:
    """The values of one part; raises Refusal with the sample."""
    began = time.perf_counter()
    try:
        values = score(samples)
    except Refusal:
        raise
    except Exception as e:
        raise Refusal(f"reward {name} raised {type(e).__name__}: {e}", where="objective.reward", why=shown(samples[0]), fix="mend the function") from e
    try:
        count = len(values)
    except TypeError:
        raise Refusal(f"reward {name} returned {values!r}", where="objective.reward", fix=f"a list of {len(samples)} numbers") from None
    if count != len(samples):
        raise Refusal(f"reward {name} returned {count} values for {len(samples)} samples", where="objective.reward", fix="one number a sample, in order")
    for value, sample in zip(values, samples, strict=True):
        if not (value is None or number(value)):
            raise Refusal(
                f"reward {name} is {value!r}", where="objective.reward", why=shown(sample), fix="a finite number, or None where a sample cannot be scored"
            )
    took = (time.perf_counter() - began) / len(samples)
    if took > SLOW:
        warn(f"reward {name} takes {took:.1f} s a sample; {shown(max(samples, key=lambda s: len(s.completion)))}")
    return [math.nan if v is None else float(v) for v in values]


def number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def shown(sample: Told) -> str:
    """A sample, in a message."""
    cut = lambda text: text if len(text) <= SHOWN else text[:SHOWN] + " ..."
    return f"sample of row {sample.row + 1}: {cut(sample.prompt)!r} -> {cut(sample.completion)!r}"
