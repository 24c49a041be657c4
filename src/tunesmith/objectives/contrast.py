"""Contrastive learning: what belongs together comes close, what does not goes apart. One loss a row of LOSSES; all on cosines.

Repeated texts are read once a pass, and answer once: a text that stands in a batch twice is nobody's wrong answer, where most toolkits leave a floor
of ln(copies) on such rows. Rows of a batch see each other, so the gradient is formed by `gradcache`: exact, in pieces and over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from ..core import Batch, Counts, Network, Objective, Ragged, Signals, Terms
from ..errors import Refusal
from .contest import Contest, comparable, of_labels, of_pairs, of_texts, of_views

Name = Literal["auto", "infonce", "supcon", "triplet", "cosent", "cosine", "pairwise", "simcse"]
IMPLIED = {"pairs": "infonce", "similar": "cosent", "grouped": "supcon", "texts": "simcse"}
ROWS = {"pairs": "pairs", "similar": "pairs with a score", "grouped": "texts with a label", "texts": "texts alone"}


class Contrast(Objective):
    """What belongs together comes close, what does not goes apart.

    loss          by default as the rows have it: pairs infonce, scored pairs cosent, labelled texts supcon, texts alone simcse
    temperature   of the softmax, in cosines; default: of the loss
    symmetric     infonce both ways, the mean of the two (as CLIP; sentence-transformers' `per_direction`)
    margin        triplet: by how much, in cosines, the right one has to be nearer
    scores        cosine: the lowest and the highest score, brought to 0 and 1; default: scores are cosines already
    dims          the loss is summed over the first d components, for each d (Matryoshka; Kusupati et al. 2022, eq. 1, weights 1)
    projection    a layer with tanh stands on the embedding while training and is thrown away then (SimCSE, section 6.3)
    guide         infonce, simcse: `base` (the model as it was), or a model: what it finds nearer than the right answer, less
                  `guide_margin` cosines, is no wrong answer (GISTEmbed, Solatorio 2024; anchors are not contrasted with each other)

    Units: who is asked (infonce, simcse: anchors; supcon, triplet: rows that have a right, and for triplet a wrong, answer in the batch; cosine: pairs);
    of cosent and pairwise, which look at all pairs of pairs or of texts, a batch is one unit.
    """

    tasks = ("embed",)
    whole = True

    def __init__(
        self,
        kind: str,
        loss: Name = "auto",
        temperature: Annotated[float, Gt(0)] | None = None,
        symmetric: bool = False,
        margin: Annotated[float, Gt(0)] | None = None,
        scores: tuple[float, float] | None = None,
        dims: tuple[Annotated[int, Ge(1)], ...] = (),
        projection: bool = False,
        guide: str | None = None,
        guide_margin: Annotated[float, Ge(0)] = 0.0,
    ):
        super().__init__()
        name = IMPLIED[kind] if loss == "auto" else loss
        self.kind, self.loss, self.how = kind, name, LOSSES[name]
        self.symmetric, self.scores, self.dims, self.projection, self.guide, self.guide_margin = symmetric, scores, dims, projection, guide, guide_margin
        self.project: nn.Module = nn.Identity()
        self.refuse(temperature, margin)
        self.temperature, self.margin = temperature or self.how.temperature, margin or 0.25
        self.needs = frozenset({"ids", "group", "side", "text", "input"}) | self.how.needs | ({"guide"} if guide else set())

    def refuse(self, temperature: float | None, margin: float | None) -> None:
        """What makes no sense together."""
        if self.kind not in self.how.kinds:
            raise Refusal(
                f"`loss: {self.loss}` reads {' or '.join(ROWS[k] for k in self.how.kinds)}, and these rows are {ROWS[self.kind]}",
                where="objective.loss",
                fix=f"loss: {' or '.join(name for name, row in LOSSES.items() if self.kind in row.kinds)}",
            )
        if len(set(self.dims)) < len(self.dims):
            raise Refusal(f"`objective.dims` is {list(self.dims)}", where="objective.dims", fix="each once")
        if self.scores and self.scores[0] >= self.scores[1]:
            raise Refusal(f"`objective.scores` is {list(self.scores)}", where="objective.scores", fix="scores: [lowest, highest]")
        checks = [
            (self.symmetric and self.loss != "infonce", "symmetric", "loss: infonce"),
            (bool(self.guide) and self.loss not in ("infonce", "simcse"), "guide", "loss: infonce or simcse"),
            (bool(self.scores) and self.loss != "cosine", "scores", "loss: cosine"),
            (bool(temperature) and self.loss in ("triplet", "cosine", "pairwise"), "temperature", "leave it out"),
            (bool(margin) and self.loss != "triplet", "margin", "loss: triplet"),
            (self.guide_margin > 0 and not self.guide, "guide_margin", "guide: base"),
            (self.projection and bool(self.dims), "projection", "leave `dims` out: what is thrown away has no components to keep"),
        ]
        for wrong, key, fix in checks:
            if wrong:
                raise Refusal(f"`{key}` says nothing with `loss: {self.loss}` as the rest stands", where=f"objective.{key}", fix=fix)

    def accept(self, columns: Mapping[str, Tensor | Ragged], size: int) -> None:
        """Rows of the right kind that teach nothing all the same."""
        data = Batch(columns)
        if self.loss == "cosine" and self.scores is None and not (-1 <= float(data["score"].min()) <= float(data["score"].max()) <= 1):
            low, high = float(data["score"].min()), float(data["score"].max())
            fix = f"objective: {{kind: contrast, loss: cosine, scores: [{low:g}, {high:g}]}}, or loss: cosent, which asks for their order alone"
            raise Refusal(f"scores run from {low:g} to {high:g}, and a cosine from -1 to 1", where="objective.scores", fix=fix)
        if self.kind == "similar" and float(data["score"].min()) == float(data["score"].max()):
            raise Refusal(
                "all pairs have the same score", where="data.train", fix="scores that differ, or the pairs that belong together, without a score column"
            )
        if self.kind == "grouped" and not comparable(data):
            raise Refusal("no label has two different texts, or there is one label only", where="data.train", fix="two texts a label at least, and two labels")
        if size == 1 and self.loss != "cosine" and max(data.numbers("side")) < 2:
            raise Refusal("`update.batch: 1`: an example alone has nothing to be told apart from", where="update.batch", fix="update.batch: 32")

    def meet(self, net: Network) -> None:
        width = net.anatomy.width
        if long := [d for d in self.dims if d > width]:
            raise Refusal(f"`objective.dims` has {long[0]}, and the model has {width} components", where="objective.dims", fix=f"at most {width}")
        if self.loss == "simcse" and not drops(net):
            raise Refusal(
                "unsupervised SimCSE needs dropout, and nothing here has any: both readings of a text would be the same",
                where="dropout",
                fix="dropout: 0.1 where the model has places for it, else method: {kind: lora, dropout: 0.1}",
            )
        if self.projection:
            self.project = nn.Sequential(nn.Linear(width, width, device=next(net.parameters()).device), nn.Tanh())

    def presumed(self, net: Network, batch: Batch) -> Batch:
        return batch.plus(guide=torch.zeros(len(batch), net.anatomy.width)) if self.guide else batch

    def read(self, net: Network, batch: Batch) -> Signals:
        """z (B, D); for simcse also `again` (B, D), the same rows under another dropout."""
        return self.how.read(net, batch)

    def score(self, signals: Signals, batch: Batch) -> Terms:
        z = self.project(torch.cat([signals["z"], signals["again"]]) if "again" in signals else signals["z"])
        unit = lambda d: F.normalize(z[:, :d], dim=-1)
        return {batch.task: torch.stack([self.how.score(unit(d), batch, self) for d in self.dims or (z.shape[-1],)]).sum()}

    def count(self, batch: Batch) -> Counts:
        return {batch.task: self.how.units(batch)}

    def logits(self, z: Tensor, found: Contest, batch: Batch) -> Tensor:
        """(Q, A): cosines over the temperature; -inf where an answer is neither right nor wrong."""
        cosines, barred = z[list(found.asked)] @ z[list(found.answers)].T, found.barred(z)
        if self.guide:
            g = F.normalize(batch["guide"].to(z), dim=-1).repeat(len(z) // len(batch), 1)
            seen = g[list(found.asked)] @ g[list(found.answers)].T
            right = torch.tensor(found.right, device=z.device)[:, None]
            near = seen > seen.gather(1, right) - self.guide_margin
            barred = barred | near.scatter(1, right, torch.zeros_like(right, dtype=torch.bool))
        return (cosines / self.temperature).masked_fill(barred, -torch.inf)


def drops(net: Network) -> bool:
    """Whether anything in the network draws dropout in training."""
    names = ("p", "dropout", "attention_dropout", "dropout_prob")
    return any(isinstance(rate := module.__dict__.get(name), float) and rate > 0 for module in net.modules() for name in names)


# ------------------------------------------------------------------------------------------------ reading


def once(net: Network, batch: Batch) -> Signals:
    """Rows that are read alike (`input`) are read once: same text, same prompt."""
    inputs = batch.numbers("input")
    firsts = {key: i for i, key in reversed(list(enumerate(inputs)))}
    if len(firsts) == len(inputs):
        return {"z": net.pooled(batch)}
    rows = sorted(firsts.values())
    place = {inputs[row]: k for k, row in enumerate(rows)}
    return {"z": net.pooled(batch.pick(rows))[[place[key] for key in inputs]]}


def twice(net: Network, batch: Batch) -> Signals:
    """Every row two times in one pass; dropout is drawn element by element, so the two differ (Gao, Yao, Chen 2021, section 3)."""
    n = len(batch)
    z = net.pooled(batch.pick([*range(n), *range(n)]))
    return {"z": z[:n], "again": z[n:]}


# ------------------------------------------------------------------------------------------------ losses: unit vectors (rows, d) -> a sum over units


def infonce(z: Tensor, batch: Batch, how: Contrast) -> Tensor:
    """- log e^{s_ii / t} / sum_j e^{s_ij / t} over all positives and negatives of the batch (van den Oord et al. 2018, eq. 4)."""
    ways = [of_pairs(batch), of_pairs(batch, backwards=True)] if how.symmetric else [of_pairs(batch)]
    return torch.stack([entropy(z, found, batch, how) for found in ways]).sum() / len(ways)


def simcse(z: Tensor, batch: Batch, how: Contrast) -> Tensor:
    """InfoNCE of each text with itself under another dropout (Gao, Yao, Chen 2021, eq. 4)."""
    return entropy(z, of_views(batch), batch, how)


def entropy(z: Tensor, found: Contest, batch: Batch, how: Contrast) -> Tensor:
    return F.cross_entropy(how.logits(z, found, batch), torch.tensor(found.right, device=z.device), reduction="sum")


def supcon(z: Tensor, batch: Batch, how: Contrast) -> Tensor:
    """- 1/|P| sum_{p in P} log e^{s_ip / t} / sum_{a != i} e^{s_ia / t}, P the rows of i's label (Khosla et al. 2020, eq. 2)."""
    found = of_labels(batch)
    if not found.asked:
        return z.sum() * 0
    same, own = found.same.to(z.device), found.own.to(z.device)
    s = z[list(found.asked)] @ z[list(found.answers)].T / how.temperature
    logp = s - s.masked_fill(own, -torch.inf).logsumexp(1, keepdim=True)
    return -(logp.masked_fill(~same, 0).sum(1) / same.sum(1)).sum()


def triplet(z: Tensor, batch: Batch, how: Contrast) -> Tensor:
    """max(0, margin + s_in - s_ip) with the farthest right and the nearest wrong answer (Hermans et al. 2017, eq. 5, on cosines)."""
    if how.kind == "grouped":
        classes = of_labels(batch, wrong=True)
        s, same, own = z[list(classes.asked)] @ z[list(classes.answers)].T, classes.same.to(z.device), classes.own.to(z.device)
        near, far = s.masked_fill(same | own, -torch.inf), s.masked_fill(~same, torch.inf)
        return F.relu(how.margin + near.amax(1) - far.amin(1)).sum() if classes.asked else z.sum() * 0
    found = of_pairs(batch)
    asked = [i for i, n in enumerate(found.wrong) if n]
    if not asked:
        return z.sum() * 0
    s, right = (z[list(found.asked)] @ z[list(found.answers)].T)[asked], torch.tensor(found.right, device=z.device)[asked, None]
    wrong = s.masked_fill(found.barred(z)[asked], -torch.inf).scatter(1, right, -torch.inf)
    return F.relu(how.margin + wrong.amax(1) - s.gather(1, right)[:, 0]).sum()


def cosent(z: Tensor, batch: Batch, how: Contrast) -> Tensor:
    """log(1 + sum e^{(s_i - s_j) / t}) over all pairs i, j of which j has the higher score (Su 2022, https://kexue.fm/archives/8847; Huang et al. 2024)."""
    s, y = similarities(z, batch)
    s = s / how.temperature
    gaps = (s[:, None] - s).masked_fill(y[:, None] >= y, -torch.inf)
    return torch.cat([s.new_zeros(1), gaps.flatten()]).logsumexp(0)


def cosine(z: Tensor, batch: Batch, how: Contrast) -> Tensor:
    """(s - y)^2 (Reimers & Gurevych 2019, section 3)."""
    s, y = similarities(z, batch)
    low, high = how.scores or (0.0, 1.0)
    return ((y - low) / (high - low) - s).square().sum()


def pairwise(z: Tensor, batch: Batch, how: Contrast) -> Tensor:
    """(s - [same label])^2 over all pairs of different texts in the batch: the mean over those of one label, and the mean over the others, halved.

    What drawing pairs so that half of them are of one label has as its expectation (Tunstall et al. 2022, section 3.1), at one reading a text, not two a pair.
    """
    found = of_texts(batch)
    same, own = found.same.to(z.device), found.own.to(z.device)
    s = z[list(found.asked)] @ z[list(found.answers)].T
    mean = lambda x, where: x.masked_fill(~where, 0).sum() / where.sum().clamp(min=1)
    return (mean((s - 1).square(), same) + mean(s.square(), ~(same | own))) / 2


def similarities(z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The cosine and the score of each pair."""
    sides = batch.numbers("side")
    a, b = ([i for i, s in enumerate(sides) if s == side] for side in (0, 1))
    return (z[a] * z[b]).sum(-1), batch["score"].to(z)[a]


@dataclass(frozen=True)
class Loss:
    """kinds of rows that it reads, columns that it needs besides the text's, its usual temperature, how it reads, scores and counts."""

    kinds: tuple[str, ...]
    score: Callable[[Tensor, Batch, Contrast], Tensor]
    units: Callable[[Batch], int]
    temperature: float = 0.05
    read: Callable[[Network, Batch], Signals] = once
    needs: frozenset[str] = frozenset()


LOSSES: dict[str, Loss] = {
    "infonce": Loss(("pairs",), infonce, lambda batch: batch.numbers("side").count(0)),
    "supcon": Loss(("grouped",), supcon, lambda batch: len(of_labels(batch).asked), 0.07, needs=frozenset({"label"})),
    "triplet": Loss(("pairs", "grouped"), triplet, lambda batch: rivals(batch)),
    "cosent": Loss(("similar",), cosent, lambda batch: 1, needs=frozenset({"score"})),
    "cosine": Loss(("similar",), cosine, lambda batch: batch.numbers("side").count(0), needs=frozenset({"score"})),
    "pairwise": Loss(("grouped",), pairwise, lambda batch: 1, needs=frozenset({"label"})),
    "simcse": Loss(("texts",), simcse, len, read=twice),
}


def rivals(batch: Batch) -> int:
    """Who is asked in a triplet: who has a right and a wrong answer."""
    return len(of_labels(batch, wrong=True).asked) if "label" in batch else sum(n > 0 for n in of_pairs(batch).wrong)
