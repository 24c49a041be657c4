"""What a network was found to do on an evaluation set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .metrics import Scores


@dataclass(frozen=True)
class Outcome:
    """`predictions[i]` belongs to row i: a label, a tuple of labels, a list of tags, a number, or a written text (fewer than rows: not sampled).

    parts    of several tasks, the outcome of each
    shares   by row (a, b): the main metric is sum a / sum b, perplexity the exponential of it; empty where it is no such ratio (correlations)
    """

    scores: Scores
    predictions: list[Any]
    loss: float
    shares: list[tuple[float, float]] = field(default_factory=list)
    parts: Mapping[str, Outcome] = field(default_factory=dict)
