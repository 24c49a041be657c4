"""What the label of a new row is told apart from: all labels that have come, or those of its stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Batch, Listener, Objective, Run, Signals, Stage, Terms
from .around import Around


class Among(Around):
    """What `inner` says of new rows over the outputs whose labels their stage has, and of replayed ones over all.

    Over all outputs every new row also says that it is none of the old labels, and where no old row answers, this is what a stage teaches first: its old outputs
    fall. Li & Hoiem 2016 have no such term, since the outputs of their tasks are apart; Caccia et al. 2022 (ER-ACE) leave it out beside a memory.

    present  the labels of each stage, ascending
    """

    def __init__(self, inner: Objective, present: Sequence[Sequence[int]]):
        super().__init__(inner)
        self.present, self.stage = [torch.tensor(labels) for labels in present], 0

    def score(self, signals: Signals, batch: Batch) -> Terms:
        present, outputs = self.present[self.stage], signals["logits"].shape[-1]
        if "replayed" in batch or len(present) == outputs:
            return self.inner.score(signals, batch)
        present = present.to(signals["logits"].device)
        return self.inner.score({**signals, "logits": signals["logits"][:, present]}, batch.plus(label=placed(batch["label"], present)))


def placed(label: Tensor, present: Tensor) -> Tensor:
    """Labels (B,) as places among those that are present; of several labels a row, (B, C), their columns."""
    return label[:, present] if label.dim() == 2 else torch.searchsorted(present, label)


@dataclass
class Narrowing(Listener):
    """Which stage it is."""

    among: Among

    def begin(self, run: Run, stage: Stage) -> None:
        self.among.stage = run.stream.index(stage)
