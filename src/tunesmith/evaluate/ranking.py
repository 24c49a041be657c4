"""Numbers about ranks and similarities: how good an embedding is. No torch here, as in metrics.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .metrics import METRICS, NO_EXAMPLES, Scores, Values


@dataclass(frozen=True)
class Ranks:
    """Where the right answers to one query stand, from 1 on, the nearest first."""

    places: tuple[int, ...]

    @property
    def first(self) -> int:
        return self.places[0]

    def recall(self, k: int) -> float:
        """In [0, 1]: the share of the right answers among the first k."""
        return sum(place <= k for place in self.places) / len(self.places)

    def ndcg(self, k: int) -> float:
        """In [0, 1], gains of 0 and 1 over log2(1 + rank) (Järvelin & Kekäläinen 2002)."""
        gain = lambda places: sum(1 / math.log2(1 + p) for p in places if p <= k)
        return gain(self.places) / gain(range(1, len(self.places) + 1))


def similar(cosines: Values, scores: Values) -> Scores:
    """spearman, pearson  in [-1, 1], of the cosine of each pair with its score"""
    found = METRICS["score"](cosines, scores)
    keep = ("spearman", "pearson")
    return Scores({k: found.values[k] for k in keep}, {k: found.reasons[k] for k in keep if k in found.reasons})


def retrieval(ranks: Sequence[Ranks], weights: Sequence[float]) -> Scores:
    """Means over queries; a query that stands on several rows has weights that add up to 1. All in [0, 1].

    ndcg@10, recall@1, recall@10   see Ranks
    mrr                            1 / the rank of the first right answer, however far down
    """
    parts: dict[str, Callable[[Ranks], float]] = {
        "ndcg@10": lambda r: r.ndcg(10), "mrr": lambda r: 1 / r.first, "recall@1": lambda r: r.recall(1), "recall@10": lambda r: r.recall(10),
    }  # fmt: skip
    mean = lambda part: sum(w * part(r) for w, r in zip(weights, ranks, strict=True)) / sum(weights) if ranks else NO_EXAMPLES
    return Scores.of({name: mean(part) for name, part in parts.items()})


def neighbours(ranks: Sequence[Ranks]) -> Scores:
    """accuracy  in [0, 1]: how often the nearest other text has the same label;  ndcg@10  over all others of the label, mean over texts"""
    if not ranks:
        return Scores.of(dict.fromkeys(("accuracy", "ndcg@10"), "no label has two different texts"))
    return Scores.of({"accuracy": sum(r.first == 1 for r in ranks) / len(ranks), "ndcg@10": sum(r.ndcg(10) for r in ranks) / len(ranks)})
