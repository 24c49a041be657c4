"""Learning from labels: classes, several classes, a number, tags, and the next token."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor

from ..core import Batch, Counts, Network, Objective, Signals, Terms
from ..errors import Refusal

Kind = Literal["single", "multi", "score", "tag", "generate"]


class Supervised(Objective):
    """Cross-entropy, binary cross-entropy a class, squared error, cross-entropy a labelled word, or a labelled token.

    Units: rows for the first three, labelled positions for the last two. `smoothing` in [0, 1) spreads that share of each
    label's mass over all classes (Szegedy et al. 2016, section 7); not for multi, score and generate.
    """

    tasks = ("classify", "tag", "score", "generate")
    needs = frozenset({"ids", "label"})

    def __init__(self, kind: Kind, smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0):
        super().__init__()
        if kind not in LOSSES:
            raise Refusal(
                "these rows are preferences, not answers to learn",
                where="objective",
                fix="objective: prefer; to learn the better answers alone, columns: {prompt: ..., completion: chosen}",
            )
        self.kind, self.smoothing = kind, smoothing

    def read(self, net: Network, batch: Batch) -> Signals:
        return {"logp": net.label_logp(batch)} if self.kind == "generate" else {"logits": net.logits(batch)}

    def score(self, signals: Signals, batch: Batch) -> Terms:
        return {batch.task: LOSSES[self.kind](signals, batch["label"], self.smoothing)}

    def count(self, batch: Batch) -> Counts:
        return {batch.task: len(batch["label"])}


def classes(signals: Signals, label: Tensor, smoothing: float) -> Tensor:
    """Summed cross-entropy; label (B,) or (M,)."""
    return F.cross_entropy(signals["logits"], label, reduction="sum", label_smoothing=smoothing)


def several(signals: Signals, label: Tensor, smoothing: float) -> Tensor:
    """Summed binary cross-entropy over rows, averaged over classes; label (B, C) of 0 and 1."""
    return F.binary_cross_entropy_with_logits(signals["logits"], label, reduction="sum") / label.shape[-1]


def number(signals: Signals, label: Tensor, smoothing: float) -> Tensor:
    """Summed squared error; label (B,)."""
    return F.mse_loss(signals["logits"][:, 0], label, reduction="sum")


def tokens(signals: Signals, label: Tensor, smoothing: float) -> Tensor:
    """Summed negative log-likelihood of the labelled tokens."""
    return -signals["logp"].sum()


LOSSES = {"single": classes, "multi": several, "score": number, "tag": classes, "generate": tokens}
