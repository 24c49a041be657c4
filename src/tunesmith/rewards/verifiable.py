"""Rewards that can be checked: an answer is right, or has a form, or not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import regex

from ..errors import Refusal
from .told import Told


@dataclass(frozen=True)
class Exact:
    """1 where the answer is the reference, but for blanks around it, and but for case unless `case`."""

    case: bool = False

    def __call__(self, samples: Sequence[Told]) -> list[float | None]:
        plain = lambda text: " ".join(text.split()) if self.case else " ".join(text.split()).casefold()
        return [None if s.reference is None else float(plain(s.completion) == plain(s.reference)) for s in samples]


@dataclass(frozen=True)
class Contains:
    """1 where the reference stands in the answer, whatever the case."""

    def __call__(self, samples: Sequence[Told]) -> list[float | None]:
        return [None if s.reference is None else float(s.reference.strip().casefold() in s.completion.casefold()) for s in samples]


@dataclass(frozen=True)
class Numeric:
    """1 where the last number of the answer is the last number of the reference, within `tolerance` of it, relative and absolute."""

    tolerance: float = 1e-6

    def __call__(self, samples: Sequence[Told]) -> list[float | None]:
        return [self.one(s) for s in samples]

    def one(self, sample: Told) -> float | None:
        said, truth = last_number(sample.completion), last_number(sample.reference or "")
        return None if truth is None else float(said is not None and math.isclose(said, truth, rel_tol=self.tolerance, abs_tol=self.tolerance))


PATIENCE = 0.5  # seconds a sample
NUMBER = regex.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")


def last_number(text: str) -> float | None:
    """1,234.5 is one number; None where there is none."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


@dataclass(frozen=True)
class Regex:
    """1 where `pattern` is found in the answer; `whole`: where it is the answer. A pattern that takes too long finds nothing."""

    pattern: str
    whole: bool = False

    def __post_init__(self) -> None:
        try:
            regex.compile(self.pattern)
        except regex.error as e:
            raise Refusal(f"`{self.pattern}` is no regular expression: {e}", where="objective.reward.pattern") from e

    def __call__(self, samples: Sequence[Told]) -> list[float | None]:
        return [self.one(s.completion.strip()) for s in samples]

    def one(self, text: str) -> float:
        try:
            return float(bool((regex.fullmatch if self.whole else regex.search)(self.pattern, text, timeout=PATIENCE)))
        except TimeoutError:
            return 0.0


@dataclass(frozen=True)
class Format:
    """1 where the answer has a form: `json`, or `tags`, each of `names` opened and closed once, in this order, with nothing outside (DeepSeek-R1, section 2.2.2)."""

    form: str = "json"
    names: tuple[str, ...] = ("think", "answer")

    def __post_init__(self) -> None:
        if self.form not in ("json", "tags"):
            raise Refusal(f"there is no form `{self.form}`", where="objective.reward.form", fix="json or tags")

    def __call__(self, samples: Sequence[Told]) -> list[float | None]:
        return [float(self.fits(s.completion.strip())) for s in samples]

    def fits(self, text: str) -> bool:
        if self.form == "tags":
            return bool(regex.fullmatch(r"\s*".join(f"<{n}>(?:(?!</?{n}>).)*</{n}>" for n in map(regex.escape, self.names)), text, regex.DOTALL))
        try:
            json.loads(text)
        except ValueError:
            return False
        return True


REWARDS: dict[str, type[Any]] = {"exact": Exact, "contains": Contains, "numeric": Numeric, "regex": Regex, "format": Format}
