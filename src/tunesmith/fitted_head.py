"""A head that no gradient makes: softmax regression on what the body says of the training rows, fitted whenever the network is about to be judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .comparison.logistic import fitted
from .core import Listener, Run, Stage
from .networks.heads import Head
from .networks.transformer import Transformer
from .parallel import told

if TYPE_CHECKING:
    from .job import Job

PENALTY = 10.0  # C, on embeddings of length 1; at scikit-learn's 1, which is SetFit's, many classes lose a point or two (docs/LOG.md)
NEVER = -1e9  # bias of a class without a row, which no embedding outweighs


@dataclass
class FittedHead(Listener):
    """Fits the head of `task` on the rows that `source` gives, every so many steps and at the end. Listens before who judges and who saves."""

    source: Any
    task: str
    every: int
    done: int = -1

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        if run.done % self.every == 0 or run.done in run.ends:
            self.fit(run.net, run.done)

    def end(self, run: Run, stage: Stage) -> None:
        if self.done != run.done:
            self.fit(run.net, run.done)

    @torch.no_grad()
    def fit(self, net: Any, done: int) -> None:
        """All processes have the head that the first has found."""
        x, y = embeddings(net, self.source)
        head: Head = net.heads[self.task]
        weight, bias = told(lambda: regression(x.numpy(), y.numpy(), head.spec.classes))
        head.say(torch.from_numpy(weight), torch.from_numpy(bias))
        self.done = done


def beside(job: Job, every: int) -> list[Listener]:
    """What an objective whose head is fitted has beside the loop. The head is fitted once now, so that the first judgement is of the base with a head of its own."""
    if not job.run.objective.fits_head:
        return []
    head = FittedHead(job.run.stream[0].train, job.data.task.key, every)
    head.fit(job.net, 0)
    return [head]


@torch.no_grad()
def embeddings(net: Transformer, source: Any) -> tuple[Tensor, Tensor]:
    """(n, D) in fp64 and (n,): of every row, read at rest."""
    was = net.training
    net.eval()
    found = [(net.pooled(batch).double().cpu(), batch["label"].cpu()) for batch in source.once(net)]
    net.train(was)
    x, y = zip(*found, strict=True)
    return torch.cat(x), torch.cat(y)


def regression(x: np.ndarray, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight (classes, D) and bias (classes,) for embeddings as they are; the penalty is on embeddings brought to length 1 by one factor for all, around their mean."""
    centre, length = x.mean(0), np.linalg.norm(x, axis=1).mean()
    seen, codes = np.unique(y, return_inverse=True)
    rows, offsets = fitted((x - centre) / length, codes, len(seen), PENALTY)
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, NEVER)
    weight[seen] = rows / length
    bias[seen] = offsets - (rows / length) @ centre
    return weight, bias
