"""How often a network ranks a better answer above a worse one: by its implicit reward, or by the reward that it was trained to give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..core import Network
from . import preference_metrics as metrics
from .outcome import Outcome

if TYPE_CHECKING:
    from .evaluate import Probe

Answer = tuple[float, float, int]  # how much it is liked, its log-probability, its tokens
SHARPNESS = {True: 0.1, False: 2.0}  # of the reported loss: the usual beta of DPO, and without a reference of SimPO


def preferred(probe: Probe, net: Network) -> Outcome:
    """Pairs. Liked is what is likelier than under the reference, in nats; without a reference, what is likelier a token."""
    found, compared = answers(probe, net)
    liked, logp, tokens = (np.array(column) for column in zip(*found, strict=True))
    better, worse = liked[0::2], liked[1::2]
    written = probe.write(net) if probe.write else []
    scores = metrics.preferred(better, worse, float(-logp[0::2].sum()), int(tokens[0::2].sum()), compared)
    return Outcome(
        scores,
        written,
        ranking_loss(SHARPNESS[compared] * (better - worse)),
        [(float(w > l) + 0.5 * float(w == l), 1.0) for w, l in zip(better, worse, strict=True)],
    )


def judged(probe: Probe, net: Network) -> Outcome:
    """Answers with a verdict, liked as in `preferred`; every good one is compared with every bad one."""
    found, compared = answers(probe, net)
    liked, logp, tokens = (np.array(column) for column in zip(*found, strict=True))
    good = np.array(probe.references, dtype=bool)
    written = probe.write(net) if probe.write else []
    scores = metrics.judged(liked, good, float(-logp[good].sum()), int(tokens[good].sum()), compared)
    return Outcome(scores, written, ranking_loss(SHARPNESS[compared] * np.where(good, liked, -liked)))


def reward(probe: Probe, net: Network) -> Outcome:
    """Pairs, by a reward. Predictions are the two rewards."""
    found: dict[int, float] = {}
    for batch in probe.once(net):
        found |= zip(batch["row"].tolist(), net.logits(batch)[:, 0].float().tolist(), strict=True)
    rewards = np.array([found[i] for i in range(len(found))])
    better, worse = rewards[0::2], rewards[1::2]
    shares = [(float(w > l) + 0.5 * float(w == l), 1.0) for w, l in zip(better, worse, strict=True)]
    pairs = [{"chosen": round(float(w), 4), "rejected": round(float(l), 4)} for w, l in zip(better, worse, strict=True)]
    return Outcome(metrics.reward(better, worse), pairs, ranking_loss(better - worse), shares)


def answers(probe: Probe, net: Network) -> tuple[list[Answer], bool]:
    """By row, and whether a reference was there to compare with."""
    found: dict[int, Answer] = {}
    compared = False
    for batch in probe.once(net):
        compared = "reference" in batch
        lengths = batch.ragged("label").lengths
        logp = torch.stack([row.sum() for row in net.label_logp(batch).float().split(list(lengths))])
        liked = logp - batch["reference"] if compared else logp / torch.tensor(lengths, device=logp.device)
        found |= zip(batch["row"].tolist(), zip(liked.tolist(), logp.tolist(), lengths, strict=True), strict=True)
    return [found[i] for i in range(len(found))], compared


def ranking_loss(margin: np.ndarray) -> float:
    """-log sigmoid, on average."""
    return float(np.logaddexp(0.0, -margin).mean())
