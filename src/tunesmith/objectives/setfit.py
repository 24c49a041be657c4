"""Few rows of each class: bring texts of one class together, then fit a head on where they came to lie (Tunstall et al. 2022, SetFit)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ..core import Batch, Counts, Network, Objective, Ragged, Signals, Terms
from ..errors import Refusal
from .contrast import Contrast

MANY = 20  # labels


class SetFit(Objective):
    """The body learns by contrast of labelled texts; the head is a softmax regression on their embeddings, fitted before the network is judged and at the end.

    loss          pairwise: (cos - [same label])^2, half the weight on pairs of one label; or supcon, triplet (objectives/contrast.py). auto: pairwise up to
                  20 labels, supcon beyond (measured at 6 and at 77 labels, docs/LOG.md; the border between them is a guess)
    temperature   of supcon; margin: of triplet
    each          rows of a label that meet in a batch

    A few pairs make a class of eight rows many: 28 of one label, and against 76 other classes 4,864. They are never listed. A batch holds `each` rows of as many
    classes as it has room for, reads every text once and looks at all pairs of different texts; no text is compared with itself. Where the paper reads
    two texts a pair, a batch of b texts gives b (b - 1) / 2 pairs.
    """

    tasks = ("classify",)
    whole = True
    fits_head = True
    needs = frozenset({"ids", "label"})

    def __init__(
        self,
        kind: str,
        loss: Literal["auto", "pairwise", "supcon", "triplet"] = "auto",
        temperature: Annotated[float, Gt(0)] | None = None,
        margin: Annotated[float, Gt(0)] | None = None,
        each: Annotated[int, Ge(2)] = 4,
    ):
        super().__init__()
        if kind != "single":
            raise Refusal("`objective: setfit` and rows with several labels, or none", where="objective", fix="objective: supervised")
        self.auto, self.together = loss == "auto", each
        self.contrast = Contrast("grouped", "pairwise" if loss == "auto" else loss, temperature, margin=margin)

    def accept(self, columns: Mapping[str, Tensor | Ragged], size: int) -> None:
        if self.auto and len(set(Batch(columns).numbers("label"))) > MANY:
            self.contrast = Contrast("grouped", "supcon")
        self.contrast.accept(told_apart(Batch(columns)).columns, size)

    def read(self, net: Network, batch: Batch) -> Signals:
        return self.contrast.read(net, told_apart(batch))

    def score(self, signals: Signals, batch: Batch) -> Terms:
        return self.contrast.score(signals, told_apart(batch))

    def count(self, batch: Batch) -> Counts:
        return self.contrast.count(told_apart(batch))


def told_apart(batch: Batch) -> Batch:
    """The batch with what contrast asks of its rows: equal numbers for equal texts, which here are equal tokens."""
    rows, column = batch.numbers("ids"), batch.ragged("ids")
    known: dict[tuple[int, ...], int] = {}
    texts = [known.setdefault(tuple(rows[a:b]), len(known)) for a, b in zip(column.offsets, column.offsets[1:], strict=False)]
    with unset_fake_temporarily():  # numbers that a rehearsal can read
        text = torch.tensor(texts)
        return batch.plus(text=text, input=text, side=torch.zeros_like(text))
