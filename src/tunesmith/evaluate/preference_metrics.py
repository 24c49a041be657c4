"""From how much answers are liked to numbers; accuracy, the main metric, first. A tie is half right.

`liked` is in nats above the reference where there was one (`compared`), else the mean log-probability a token: then accuracy and margin are of
that, and the log-ratios are undefined and say so.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from . import text_metrics
from .metrics import Scores

Measured = Mapping[str, float | str]  # a number, or the sentence that says why there is none
ALONE = "no reference here: accuracy and margin are of the mean log-probability a token"


def preferred(better: np.ndarray, worse: np.ndarray, nll: float, tokens: int, compared: bool) -> Scores:
    """n pairs. nll, tokens: of the chosen answers.

    accuracy         in [0, 1]: share of the pairs whose better answer is liked more
    margin           mean of how much more
    chosen_ratio, rejected_ratio   mean log pi / pi_ref of an answer, in nats; where the chosen one's falls, it became less likely than it was
    perplexity       exp(nll / tokens), of the chosen answers
    """
    ratios: Measured = {
        "chosen_ratio": float(better.mean()) if compared else ALONE,
        "rejected_ratio": float(worse.mean()) if compared else ALONE,
    }
    return Scores.of({**ranked(better - worse), **ratios, "perplexity": text_metrics.perplexity(nll, tokens)})


def judged(liked: np.ndarray, good: np.ndarray, nll: float, tokens: int, compared: bool) -> Scores:
    """n answers, liked that much and found good or not.

    accuracy         in [0, 1]: share, of all pairs of a good and a bad answer, in which the good one is liked more (the area under the ROC curve)
    margin           mean of the good minus mean of the bad ones; good_ratio, bad_ratio, perplexity as in `preferred`
    """
    if good.all() or not good.any():
        reason = f"all answers are {'good' if good.all() else 'bad'}"
        return Scores.of({"accuracy": reason, "margin": reason, "perplexity": text_metrics.perplexity(nll, tokens) if good.any() else reason})
    better, worse = liked[good], liked[~good]
    ratios: Measured = {
        "good_ratio": float(better.mean()) if compared else ALONE,
        "bad_ratio": float(worse.mean()) if compared else ALONE,
    }
    return Scores.of({**ranked(better[:, None] - worse), **ratios, "perplexity": text_metrics.perplexity(nll, tokens)})


def reward(better: np.ndarray, worse: np.ndarray) -> Scores:
    """n pairs: accuracy and margin."""
    return Scores.of(ranked(better - worse))


def ranked(gaps: np.ndarray) -> Measured:
    return {"accuracy": float((gaps > 0).mean() + 0.5 * (gaps == 0).mean()), "margin": float(gaps.mean())}
