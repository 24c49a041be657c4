"""How good an embedding is, by what the rows are: scored pairs by rank correlation, pairs by retrieval, labelled texts by their nearest neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..core import Batch, Network
from .outcome import Outcome
from .ranking import Ranks, neighbours, retrieval
from .ranking import similar as correlations

if TYPE_CHECKING:
    from .evaluate import Probe

TEMPERATURE = 0.05  # of the losses, which are comparable between runs whatever they were trained with
CHUNK = 256  # texts that are compared with all others at a time


@dataclass(frozen=True)
class Texts:
    """`z` (n, D): unit vectors of all rows of a part, fp32 on the CPU; the columns that say what they are to each other, a number a row."""

    z: Tensor
    group: Tensor
    side: Tensor
    text: Tensor

    def of_side(self, side: int) -> Tensor:
        return (self.side == side).nonzero()[:, 0]


def read(probe: Probe, net: Network) -> Texts:
    """Every row of the part in its order; rows that are read alike are read once."""
    batches: list[Batch] = []
    seen: dict[int, Tensor] = {}
    for batch in probe.once(net):
        inputs = batch.numbers("input")
        fresh = {key: i for i, key in reversed(list(enumerate(inputs))) if key not in seen}
        if fresh:
            rows = sorted(fresh.values())
            seen |= zip([inputs[i] for i in rows], net.pooled(batch if len(rows) == len(batch) else batch.pick(rows)).float().cpu(), strict=True)
        batches.append(batch)
    column = lambda name: torch.cat([b[name] for b in batches]).cpu()
    order = column("row").argsort()
    z = torch.stack([seen[key] for key in column("input").tolist()])
    return Texts(torch.nn.functional.normalize(z, dim=-1)[order], *(column(name)[order] for name in ("group", "side", "text")))


def similar(probe: Probe, net: Network) -> Outcome:
    """loss: log(1 + e^{(s_i - s_j) / t}), mean over all pairs i, j of which j has the higher score, in nats; ln 2 where cosines say nothing."""
    found = read(probe, net)
    cosines, truth = (found.z[found.of_side(0)] * found.z[found.of_side(1)]).sum(-1), torch.tensor(probe.references, dtype=torch.double)
    loss, count = 0.0, 0
    for s, y in zip(cosines.split(CHUNK), truth.split(CHUNK), strict=True):
        gaps = ((s[:, None] - cosines) / TEMPERATURE)[y[:, None] < truth]
        loss, count = loss + float(torch.nn.functional.softplus(gaps).sum()), count + len(gaps)
    return Outcome(correlations(cosines.tolist(), probe.references), cosines.tolist(), loss / max(1, count))


def pairs(probe: Probe, net: Network) -> Outcome:
    """Each anchor seeks its positives among all positives and negatives of the part, each text once; an anchor that has several positives is one query.

    A document that repeats the anchor is left out, unless it is its positive. predictions: the rank of the first right text, by row.
    loss: - log of the positive's share in a softmax over itself and all wrong texts, in nats, mean over pairs.
    """
    found = read(probe, net)
    anchors, positives = found.of_side(0), found.of_side(1)
    documents = {int(found.text[row]): row for row in (found.side > 0).nonzero()[:, 0].tolist()}  # one row a text
    place = {text: k for k, text in enumerate(documents)}
    asked, answers = found.text[anchors].tolist(), [place[text] for text in found.text[positives].tolist()]
    partners: dict[int, set[int]] = {}
    for text, answer in zip(asked, answers, strict=True):
        partners.setdefault(text, set()).add(answer)
    ranks, loss, z = list[Ranks](), 0.0, found.z[list(documents.values())]
    for i, scores in enumerate(row for chunk in anchors.split(CHUNK) for row in found.z[chunk] @ z.T):
        right = torch.zeros(len(z), dtype=torch.bool)
        right[list(partners[asked[i]])] = True
        wrong = ~right
        if asked[i] in place:
            wrong[place[asked[i]]] = False
        ranks.append(ranked(scores[right], scores[wrong]))
        s = scores.double() / TEMPERATURE
        loss += float(torch.cat([s[wrong], s[answers[i], None]]).logsumexp(0) - s[answers[i]])
    often = Counter(asked)
    weights = [1 / often[text] for text in asked]
    shares = [(w * r.ndcg(10), w) for w, r in zip(weights, ranks, strict=True)]
    return Outcome(retrieval(ranks, weights), [r.first for r in ranks], loss / len(ranks), shares)


def grouped(probe: Probe, net: Network) -> Outcome:
    """Each text seeks others of its label among all others of the part. Copies of the asking text do not answer, texts whose label has no other do not ask.

    predictions: the label of the nearest. loss: - log of the share that a softmax over all others gives to the label (neighbourhood components
    analysis, Goldberger et al. 2004, eq. 2), in nats.
    """
    found, labels = read(probe, net), [str(label) for label in probe.references]
    codes = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    ranks, guesses, loss = dict[int, Ranks](), list[str](), 0.0
    for i, scores in enumerate(row for chunk in found.z.split(CHUNK) for row in chunk @ found.z.T):
        others = found.text != found.text[i]
        right = (codes == codes[i]) & others
        guesses.append(labels[int(scores.masked_fill(~others, -torch.inf).argmax())] if others.any() else "")
        if right.any():
            ranks[i] = ranked(scores[right], scores[others & ~right])
            s = scores.double() / TEMPERATURE
            loss += float(s[others].logsumexp(0) - s[right].logsumexp(0))
    shares = [(float(ranks[i].first == 1), 1.0) if i in ranks else (0.0, 0.0) for i in range(len(labels))]
    return Outcome(neighbours(list(ranks.values())), guesses, loss / max(1, len(ranks)), shares)


def ranked(right: Tensor, wrong: Tensor) -> Ranks:
    """Scores of the right and of the wrong answers. Between equals the wrong ones come first, so that a constant embedding has no luck."""
    mine = right.sort(descending=True).values
    above = len(wrong) - torch.searchsorted(wrong.sort().values, mine)
    return Ranks(tuple((above + torch.arange(1, len(mine) + 1)).tolist()))


EMBEDDING: dict[str, Callable[[Probe, Network], Outcome]] = {"similar": similar, "pairs": pairs, "grouped": grouped}
