"""What can be said of arms that were judged on the same rows: intervals over rows and seeds together, and paired tests against the best.

A metric of an arm varies with the rows that happened to be in the eval set and with the seed. The first is measured by the bootstrap over rows
(Efron & Tibshirani 1993; one draw serves all arms, so differences are paired), the second by the scatter over seeds; their variances add
(Bouthillier et al. 2021, section 3), and Welch and Satterthwaite's formula gives the degrees of freedom. With one seed only the first is known.
Tests against the best arm are two-sided and adjusted for their number by Holm's method (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 2000
LEVEL = 0.95
Judged = Callable[[np.ndarray], np.ndarray]  # (draws, rows) indices -> (draws,) values of the main metric


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; `values` a seed, `draws` (DRAWS,) the same mean on resampled rows."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]
    draws: np.ndarray


def ratio(shares: Sequence[tuple[float, float]], link: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> Judged:
    """link(sum a / sum b) over rows."""
    a, b = np.asarray(shares, dtype=np.float64).T

    def judged(rows: np.ndarray) -> np.ndarray:
        below = b[rows].sum(-1)
        return link(np.divide(a[rows].sum(-1), below, out=np.zeros_like(below), where=below > 0))

    return judged


def correlation(guesses: Sequence[float], truth: Sequence[float]) -> Judged:
    """Spearman's, on ranks taken anew in each draw."""
    from scipy.stats import rankdata

    guess, true = np.asarray(guesses, dtype=np.float64), np.asarray(truth, dtype=np.float64)

    def judged(rows: np.ndarray) -> np.ndarray:
        x, y = (rankdata(side[rows], axis=-1) for side in (guess, true))
        x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
        scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
        return np.divide((x * y).sum(-1), scale, out=np.zeros_like(scale), where=scale > 0)

    return judged


def mean_of(parts: Sequence[tuple[int, Judged]]) -> Judged:
    """The mean over tasks, whose rows follow each other, so many of each, and are drawn apart."""
    ends = np.cumsum([count for count, _ in parts])

    def judged(rows: np.ndarray) -> np.ndarray:
        each = [one(rows[:, end - count : end] % count) for end, (count, one) in zip(ends, parts, strict=True)]
        return np.mean(each, axis=0)

    return judged


def draws_of(rows: int, seed: int = 0) -> np.ndarray:
    """(DRAWS, rows): the same for every arm that was judged on these rows."""
    return np.random.default_rng(seed).integers(rows, size=(DRAWS, rows))


def estimate(seeds: Sequence[Judged], rows: np.ndarray) -> Estimate:
    """Of one arm, given how it judges under each seed."""
    everything = np.arange(rows.shape[1])[None]
    values = tuple(float(judged(everything)[0]) for judged in seeds)
    draws = np.mean([judged(rows) for judged in seeds], axis=0)
    mean = float(np.mean(values))
    half = half_width(*spread(values, draws, rows.shape[1]))
    return Estimate(mean, mean - half, mean + half, values, draws)


def spread(values: Sequence[float], draws: np.ndarray, rows: int) -> tuple[float, float]:
    """Variance of the mean, and its degrees of freedom."""
    parts = [(float(np.var(draws, ddof=1)), max(1, rows - 1))]
    if len(values) > 1:
        parts.append((float(np.var(values, ddof=1)) / len(values), len(values) - 1))
    return combined(parts)


def combined(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The sum of variances, with degrees of freedom by Welch (1947) and Satterthwaite (1946)."""
    total = sum(v for v, _ in parts)
    below = sum(v**2 / df for v, df in parts)
    return total, total**2 / below if below > 0 else 1.0


def half_width(variance: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, freedom)) * variance**0.5


def difference(best: Estimate, other: Estimate, rows: int, paired: bool = False) -> tuple[float, float]:
    """best - other, and the p-value of there being none. `paired`: with the same seed both learnt from the same draw of rows."""
    from scipy.stats import t

    gap = best.mean - other.mean
    parts = [(float(np.var(best.draws - other.draws, ddof=1)), float(max(1, rows - 1)))]
    if paired and len(best.values) == len(other.values) > 1:
        parts.append((float(np.var(np.subtract(best.values, other.values), ddof=1)) / len(best.values), len(best.values) - 1.0))
    else:
        parts += [(float(np.var(e.values, ddof=1)) / len(e.values), len(e.values) - 1.0) for e in (best, other) if len(e.values) > 1]
    variance, freedom = combined(parts)
    if variance == 0:
        return gap, 1.0 if gap == 0 else 0.0
    return gap, float(2 * t.sf(abs(gap) / variance**0.5, freedom))


def holm(p: Mapping[Any, float]) -> dict[Any, float]:
    """Adjusted p-values: the i-th smallest of m times (m - i), never falling, at most 1."""
    found, last = {}, 0.0
    for i, key in enumerate(sorted(p, key=p.__getitem__)):
        last = max(last, min(1.0, p[key] * (len(p) - i)))
        found[key] = last
    return found
