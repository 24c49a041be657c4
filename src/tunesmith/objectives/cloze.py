"""Classes as words of the vocabulary: what a language model would say in a template's open place is the answer, and what is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from ..core import Batch, Counts, Network, Objective, Ragged, Signals, Terms
from ..errors import Refusal

HIDDEN = 0.15  # share of a text's tokens that the masked language model guesses beside the task (Devlin et al. 2019)


class Cloze(Objective):
    """A row is put into a template, and each label is a word, or several, whose log-probability there is its score (PET, Schick & Schütze 2021; LM-BFF, Gao et al.
    2021). The loss is cross-entropy over the scores of the labels, which no other word of the vocabulary enters. Units: rows.

    template     "{text}\\nCategory: {label}"; {pair} for pairs. A masked model may have text behind {label}
    words        {label: word, or several}; by default the label itself
    instruction  stands before everything; `chat`: asked and answered as turns of the model's chat template; `file: prompt.yaml` holds any of these
    verbaliser   manual: sum of the log-probabilities of a word's tokens. soft: a learnt vector a label against the state at the open place, which starts as the output
                 embedding of its words (WARP, Hambardzumyan et al. 2021, eq. 2, without a softmax over other words). prototype: cosine of the projected state to
                 a learnt prototype a label, which starts as its projected words (ProtoVerb, Cui et al. 2022, eq. 5; of its losses the one between instances and
                 prototypes, so that rows of a batch do not see each other)
    gather       of several words a label: `sum` of their probabilities, or `mean` of their log-probabilities
    length       `sum` over a word's tokens, or `mean`: no longer a probability, but long words lose nothing by being long
    loss         choice; or tfew: also the right words' log-probability, and against the wrong words' (Liu et al. 2022, eq. 1-3; each a mean over tokens a row)
    mlm          alpha: (1 - alpha) of the loss above and alpha of predicting the text's own tokens, masked ones or the next, a mean over tokens a row (PET, eq. 3; there 1e-4)
    size         of a prototype
    """

    tasks = ("classify",)
    rows: ClassVar[Mapping[str, str]] = {"single": "cloze"}
    needs = frozenset({"ids", "at", "label", "token", "spot", "side", "word", "words", "truth", "group"})
    judges = needs

    def __init__(
        self,
        kind: str,
        template: str | None = None,
        words: dict[str, str | tuple[str, ...]] | None = None,
        instruction: str = "",
        chat: bool = False,
        verbaliser: Literal["manual", "soft", "prototype"] = "manual",
        gather: Literal["sum", "mean"] = "sum",
        length: Literal["sum", "mean"] = "sum",
        loss: Literal["choice", "tfew"] = "choice",
        mlm: Annotated[float, Ge(0), Lt(1)] = 0.0,
        size: Annotated[int, Ge(1)] = 128,
        temperature: Annotated[float, Gt(0)] = 0.1,
    ):
        super().__init__()
        if kind != "cloze":
            raise Refusal("these rows may have several labels, and a template has one open place", where="objective", fix="objective: supervised")
        if loss == "tfew" and verbaliser != "manual":
            raise Refusal(f"`loss: tfew` and `verbaliser: {verbaliser}`, which says no words", where="objective.loss", fix="loss: choice")
        self.verbaliser, self.gather, self.length, self.loss, self.mlm, self.size, self.temperature = verbaliser, gather, length, loss, mlm, size, temperature
        self.words = words or {}
        self.lead = " " if template is None or template.partition("{label}")[0][-1:].isspace() else ""
        self.vectors: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        self.project: nn.Linear | None = None
        self.mask: int | None = None
        self.special: tuple[int, ...] = ()

    def meet(self, net: Network) -> None:
        if self.mlm:
            reader: Any = net.tokenizer
            self.mask, self.special = (reader.mask_token_id if net.anatomy.kind == "encoder" else None), tuple(reader.all_special_ids)
        if self.verbaliser != "manual":
            self.start(net)

    def start(self, net: Network) -> None:
        """Vectors from the output embeddings (V, D) of the words' tokens: the mean over a word's, then over a label's words."""
        table, shift, _ = net.vocabulary()  # type: ignore[attr-defined]
        words = [self.words.get(label, label.replace("_", " ")) for label in net.labels]
        spelt = [[net.token_ids(self.lead + word) for word in ([said] if isinstance(said, str) else said)] for said in words]
        mean = lambda of: torch.stack([torch.stack([of[ids].detach().float().mean(0) for ids in found]).mean(0) for found in spelt])
        rows = mean(table)
        if self.verbaliser == "prototype":
            self.project = nn.Linear(table.shape[1], self.size, bias=False, device=table.device)
            rows = self.project(rows).detach()
        else:
            self.bias = nn.Parameter(rows.new_zeros(len(rows)) if shift is None else mean(shift))
        self.vectors = nn.Parameter(rows.clone())

    # -------------------------------------------------------------------------------------------- reading

    def read(self, net: Network, batch: Batch) -> Signals:
        found: dict[str, Tensor] = {"logp": token_logp(net, batch)} if self.verbaliser == "manual" else {"state": place_states(net, batch)}
        return found | ({"own": own_words(net, batch, self.mask, self.special)} if self.mlm and net.training else {})

    def scores(self, signals: Signals, batch: Batch) -> Tensor:
        """(E, C): of each example's labels. `prior` (C) a row, where there is one, is what the labels score without a text (Zhao et al. 2021, section 5: W = diag(p_cf)^-1)."""
        found = SCORES[self.verbaliser](self, signals, batch)
        return found - batch["prior"][firsts(batch)] if "prior" in batch else found

    def manual(self, signals: Signals, batch: Batch) -> Tensor:
        logp, counts = word_logp(signals["logp"], batch, self.length == "mean")
        absent = counts == 0
        if self.gather == "sum":
            return logp.masked_fill(absent, -math.inf).logsumexp(-1)
        return logp.masked_fill(absent, 0.0).sum(-1) / (~absent).sum(-1)

    def soft(self, signals: Signals, batch: Batch) -> Tensor:
        assert self.vectors is not None
        assert self.bias is not None
        return signals["state"].float() @ self.vectors.T + self.bias

    def prototype(self, signals: Signals, batch: Batch) -> Tensor:
        assert self.vectors is not None
        assert self.project is not None
        return F.normalize(self.project(signals["state"].float()), dim=-1) @ F.normalize(self.vectors, dim=-1).T / self.temperature

    # -------------------------------------------------------------------------------------------- scoring

    def score(self, signals: Signals, batch: Batch) -> Terms:
        truth, share = batch["truth"][firsts(batch)], 1 - self.mlm
        terms = {batch.task: share * F.cross_entropy(self.scores(signals, batch), truth, reduction="sum")}
        if self.loss == "tfew":
            likely, unlikely = language(signals["logp"], batch, truth)
            terms |= {"language": share * likely, "unlikely": share * unlikely}
        return terms | ({"mlm": self.mlm * signals["own"].sum()} if "own" in signals else {})

    def count(self, batch: Batch) -> Counts:
        n = float(len(batch.groups()))
        names = [batch.task, *(("language", "unlikely") if self.loss == "tfew" else ()), *(("mlm",) if self.mlm else ())]
        return dict.fromkeys(names, n)


SCORES: dict[str, Callable[[Any, Signals, Batch], Tensor]] = {"manual": Cloze.manual, "soft": Cloze.soft, "prototype": Cloze.prototype}


# ------------------------------------------------------------------------------------------------ examples and their words


def firsts(batch: Batch) -> Tensor:
    """(E,): the first row of each example."""
    return torch.tensor([group.start for group in batch.groups()], device=batch["ids"].device)


def token_logp(net: Network, batch: Batch) -> Tensor:
    """(M,): log-probability of each token of each label word where it is read. A place that several words ask about goes through the vocabulary once."""
    places, tokens = batch.ragged("at"), batch.ragged("token")
    many = torch.tensor(tokens.lengths, device=tokens.values.device)
    place = batch["spot"] + places.starts().repeat_interleave(many, output_size=len(tokens.values))
    order = place.argsort(stable=True)
    run = torch.arange(len(order), device=order.device)
    sizes = torch.zeros(len(places.values), dtype=torch.long, device=order.device).index_add(0, place, torch.ones_like(place))
    rank = torch.empty_like(order).scatter(0, order, run - (sizes.cumsum(0) - sizes)[place[order]])
    width = batch["words"][0].numel()
    ids = torch.zeros(len(places.values), width, dtype=torch.long, device=order.device).index_put((place, rank), tokens.values)
    return net.bucket_logp(batch, ids, 1.0).logp[place, rank]


def word_logp(logp: Tensor, batch: Batch, mean: bool) -> tuple[Tensor, Tensor]:
    """(E, C, J): of each word, the sum (or mean) over its tokens; and how many it has, 0 for a word that is not there."""
    counts = batch["words"][firsts(batch)]
    summed = logp.new_zeros(counts.numel()).index_add(0, owners(batch), logp).view(counts.shape)
    return (summed / counts.clamp(min=1) if mean else summed), counts


def owners(batch: Batch) -> Tensor:
    """(M,): index into the words (E, C, J), laid flat, that each token belongs to."""
    groups, tokens = batch.groups(), batch.ragged("token")
    _, classes, most = batch["words"].shape
    example = [e for e, rows in enumerate(groups) for _ in range(sum(tokens.lengths[i] for i in rows))]
    return (torch.tensor(example, device=tokens.values.device) * classes + batch["side"]) * most + batch["word"]


def language(logp: Tensor, batch: Batch, truth: Tensor) -> tuple[Tensor, Tensor]:
    """T-Few's two further terms, summed over examples: -mean log p of the right label's tokens, and -mean log(1 - p) of the wrong ones'."""
    examples = len(truth)
    example = owners(batch) // batch["words"][0].numel()
    right = batch["side"] == truth[example]
    mean = lambda values, of: (
        values.new_zeros(examples).index_add(0, example[of], values[of])
        / values.new_zeros(examples).index_add(0, example[of], torch.ones_like(values[of])).clamp(min=1)
    )
    return -mean(logp, right).sum(), -mean(torch.log1p(-logp.exp().clamp(max=1 - 1e-6)), ~right).sum()


def place_states(net: Network, batch: Batch) -> Tensor:
    """(E, D): what the vocabulary reads at the open place."""
    return net.voiced(batch)  # type: ignore[attr-defined]


def own_words(net: Network, batch: Batch, mask: int | None, special: tuple[int, ...]) -> Tensor:
    """(E,): mean negative log-likelihood of the tokens of each example's first row: of a masked model those that are hidden this time, else each by those before it."""
    rows = batch.ragged("ids").pick([group.start for group in batch.groups()])
    asked = [following(row) if mask is None else hidden(row, mask, special) for row in rows.rows()]
    lengths = tuple(len(at) for _, at, _ in asked)
    read, at, label = (torch.cat(parts) for parts in zip(*asked, strict=True))
    logp = net.label_logp(Batch({"ids": Ragged(read, rows.lengths), "at": Ragged(at, lengths), "label": Ragged(label, lengths)}, batch.task))
    return -torch.stack([part.sum() / max(1, len(part)) for part in logp.split(list(lengths))])


def following(row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is read, where, and what is expected: each next token."""
    return row, torch.arange(len(row) - 1, device=row.device), row[1:]


def hidden(row: Tensor, mask: int, special: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The same of tokens that are masked: at least one, never a special one or the open place. Drawn as dropout is, from the step's own state."""
    dice = torch.rand(len(row), device=row.device).masked_fill(torch.isin(row, torch.tensor(special, device=row.device)), 2.0)
    chosen = (dice < HIDDEN) | ((dice == dice.min()) & (dice < 1))
    return row.masked_fill(chosen, mask), chosen.nonzero()[:, 0], row[chosen]
