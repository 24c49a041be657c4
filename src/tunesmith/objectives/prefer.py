"""Learning from what was preferred: a better and a worse answer, an answer with a verdict, or a reward that ranks answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ..core import Batch, Counts, Network, Objective, Ragged, Signals, Terms
from ..errors import Refusal

Positive = Annotated[float, Gt(0)]
Weight = Annotated[float, Ge(0)]
DEFAULTS = {"preferred": "dpo", "judged": "kto", "reward": "reward"}  # kind of rows -> loss


class Prefer(Objective):
    """Learning from preferences: the better answer is made likelier than the worse one, against a reference, or a reward is learnt that ranks them.

    loss             dpo, ipo, orpo, simpo for pairs of answers; kto for judged answers, and for pairs as two of these; reward for a model that scores.
                     auto: dpo for pairs, kto for judged answers, reward with `task: score`
    beta             dpo, kto: how dearly distance from the reference is paid (0.1); ipo: tau, 1 / (2 tau) is the gap to reach (0.1);
                     orpo: weight of the odds ratio, lambda (0.1); simpo: scale of the mean log-probability (2)
    label_smoothing  dpo, simpo: share of the pairs that may be the wrong way round (conservative DPO), in [0, 0.5)
    gamma            simpo: the margin to reach (0.5)
    sft              weight of the chosen answer's mean negative log-likelihood a token: 0 for dpo and ipo (1 is the RPO of Pang et al. 2024,
                     https://arxiv.org/abs/2404.19733, eq. 1, over the answer's tokens alone), 0 for simpo, 1 for orpo
    desirable, undesirable   kto: weights of good and of bad answers (1, 1)
    center           reward: weight of (r_w + r_l)^2, which keeps rewards around 0 (0.01)

    Signals: logp (B,), summed over the answer's tokens in fp32, or reward (B,). The reference is the base with the delta absent, asked once a row.
    Units: pairs, of which row 2k is the chosen and row 2k + 1 the rejected answer; for kto, rows. Dropout is off unless the recipe says otherwise,
    so that the first loss compares the base with itself.
    """

    tasks = ("generate", "score")
    still = True

    def __init__(
        self,
        kind: str,
        loss: Literal["auto", "dpo", "ipo", "kto", "orpo", "simpo", "reward"] = "auto",
        beta: Positive | None = None,
        label_smoothing: Annotated[float, Ge(0), Lt(0.5)] | None = None,
        gamma: Weight | None = None,
        sft: Weight | None = None,
        desirable: Positive | None = None,
        undesirable: Positive | None = None,
        center: Weight | None = None,
    ):
        super().__init__()
        given = dict(beta=beta, label_smoothing=label_smoothing, gamma=gamma, sft=sft, desirable=desirable, undesirable=undesirable, center=center)
        self.kind, self.loss = kind, chosen(kind, loss)
        self.row = LOSSES[self.loss]
        self.options = filled(self.loss, self.row, {k: v for k, v in given.items() if v is not None})
        self.whole = "other" in self.row.needs
        self.pace = self.row.pace
        self.judges = self.row.needs & {"reference"}
        self.needs = frozenset({"ids", "good" if kind == "judged" else "side"}) | self.row.needs

    def accept(self, columns: Mapping[str, Tensor | Ragged], size: int) -> None:
        if self.whole and len(set(prompts(columns))) < 2:
            raise Refusal("`loss: kto` and rows that all ask the same", where="objective.loss", why=ELSEWHERE, fix="rows with other prompts, or loss: dpo")

    def presumed(self, net: Network, batch: Batch) -> Batch:
        other = {"other": batch.ragged("ids"), **{f"other_{k}": batch.ragged(k) for k in ("at", "label") if k in batch}} if self.whole else {}
        return batch.plus(**other, **{name: torch.zeros(len(batch)) for name in ("reference", "other_reference") if name in self.needs})

    def read(self, net: Network, batch: Batch) -> Signals:
        if self.loss == "reward":
            return {"reward": net.logits(batch)[:, 0]}
        read = {"logp": answer_logp(net, batch)}
        return {**read, "other": other_logp(net, batch)} if self.whole else read

    def score(self, signals: Signals, batch: Batch) -> Terms:
        return {batch.task: self.row.form(signals, batch, self.options).sum()}

    def count(self, batch: Batch) -> Counts:
        return {batch.task: len(batch) if self.whole else len(batch) // 2}


def chosen(kind: str, loss: str) -> str:
    """The loss for rows of a kind. Raises Refusal where they do not go together."""
    if kind not in DEFAULTS:
        why = "they hold one answer each" if kind == "generate" else "they are scored one by one"
        raise Refusal(
            "these rows are no preferences",
            where="objective",
            why=why,
            fix="objective: supervised; else columns chosen and rejected, or a verdict of true or false",
        )
    loss = DEFAULTS[kind] if loss == "auto" else loss
    if kind not in LOSSES[loss].kinds:
        fits = " or ".join(name for name, row in LOSSES.items() if kind in row.kinds)
        other = {"reward": "; or task: generate", "preferred": "; or task: score"}.get(kind, "") if "reward" in (kind, loss) else ""
        raise Refusal(f"`loss: {loss}` and {ROWS[kind]}", where="objective.loss", fix=f"loss: {fits}{other}")
    return loss


ROWS = {
    "preferred": "pairs of answers to write",
    "judged": "answers that were judged one by one",
    "reward": "`task: score`, where answers are ranked by a reward",
}


def filled(loss: str, row: Loss, given: Mapping[str, float]) -> dict[str, float]:
    """The loss' options, defaults where none are given. Raises Refusal for one that it does not have."""
    for name in given:
        if name not in row.options:
            having = " or ".join(n for n, r in LOSSES.items() if name in r.options)
            raise Refusal(
                f"`{name}` and `loss: {loss}`",
                where=f"objective.{name}",
                why=f"{name} belongs to {having}",
                fix=f"leave it out; {loss} has {', '.join(row.options)}",
            )
    return {**row.options, **given}


# ------------------------------------------------------------------------------------------------ reading


def answer_logp(net: Network, batch: Batch) -> Tensor:
    """(B,): log-probability of each row's answer, summed over its tokens in fp32, row by row: the sum does not depend on who shares the batch."""
    return torch.stack([row.sum() for row in net.label_logp(batch).float().split(list(batch.ragged("label").lengths))])


@torch.no_grad()
def other_logp(net: Network, batch: Batch) -> Tensor:
    """(B,): the same of an answer to another prompt, which stands in the columns `other...`."""
    names = {"ids": "other", "at": "other_at", "target": "other_label", "label": "other_label"}
    here = {name: batch.ragged(column) for name, column in names.items() if name in batch}
    return answer_logp(net, Batch(here, batch.task))


ELSEWHERE = "how far the policy is from the reference is estimated on answers to other prompts"


def prompts(columns: Mapping[str, Tensor | Ragged]) -> list[tuple[int, ...]]:
    """What each row asks: its tokens up to the first that is learnt; of an encoder-decoder all of them."""
    ids = columns["ids"]
    assert isinstance(ids, Ragged)
    at = columns.get("at")
    ends = [int(row[0]) + 1 for row in at.rows()] if isinstance(at, Ragged) else ids.lengths
    return [tuple(row[:end].tolist()) for row, end in zip(ids.rows(), ends, strict=True)]


# ------------------------------------------------------------------------------------------------ losses

Options = Mapping[str, float]


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """(P,) of the chosen and (P,) of the rejected answers."""
    return x[0::2], x[1::2]


def lengths(batch: Batch, like: Tensor) -> Tensor:
    """(B,): tokens of each answer."""
    return torch.tensor(batch.ragged("label").lengths, dtype=like.dtype, device=like.device)


def ratio(signals: Signals, batch: Batch) -> Tensor:
    """(B,): log pi(y|x) - log pi_ref(y|x), the implicit reward over beta (Rafailov et al. 2023, eq. 5)."""
    return signals["logp"] - batch["reference"]


def each_token(signals: Signals, batch: Batch) -> Tensor:
    """(B,): mean log-probability of an answer's token."""
    return signals["logp"] / lengths(batch, signals["logp"])


def ranked(margin: Tensor, smoothing: float) -> Tensor:
    """-log sigmoid, of which a share counts the other way round (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3)."""
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def supervised(signals: Signals, batch: Batch, weight: float) -> Tensor | float:
    """(P,): what the chosen answers' tokens cost on average; nothing at weight 0."""
    return -weight * halves(each_token(signals, batch))[0] if weight else 0.0


def dpo(signals: Signals, batch: Batch, o: Options) -> Tensor:
    """Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7. Sums over tokens, never means: those would be another loss."""
    better, worse = halves(ratio(signals, batch))
    return ranked(o["beta"] * (better - worse), o["label_smoothing"]) + supervised(signals, batch, o["sft"])


def ipo(signals: Signals, batch: Batch, o: Options) -> Tensor:
    """Azar et al. 2023, https://arxiv.org/abs/2310.12036, eq. 17, with log-ratios averaged over each answer's tokens.

    The paper does not speak of the average; trl does so and says that the authors confirmed it (DPOTrainer, `loss_type="ipo"`).
    """
    better, worse = halves(ratio(signals, batch) / lengths(batch, signals["logp"]))
    return (better - worse - 1 / (2 * o["beta"])).square() + supervised(signals, batch, o["sft"])


def kto(signals: Signals, batch: Batch, o: Options) -> Tensor:
    """(B,): Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, eq. 7 and 8.

    z0, the distance from the reference, is the batch's mean log-ratio of answers to other prompts, at least 0, and takes no gradient. The paper
    takes these answers from the batch; here each row has one for the whole run, so that the reference is asked once.
    """
    z = (signals["other"] - batch["other_reference"]).mean().clamp(min=0).detach()
    good = batch["good"] > 0 if "good" in batch else batch["side"] == 0
    above = o["beta"] * (ratio(signals, batch) - z)
    return torch.where(good, o["desirable"] * torch.sigmoid(-above), o["undesirable"] * torch.sigmoid(above))


def orpo(signals: Signals, batch: Batch, o: Options) -> Tensor:
    """Hong et al. 2024, https://arxiv.org/abs/2403.07691, eq. 6 and 7: of mean log-probabilities a token (eq. 1), a loss on the chosen answer and the odds ratio.

    trl takes the first over the tokens of a whole batch, the prompt's too; here each answer counts once, as in the paper.
    """
    mean = each_token(signals, batch)
    better, worse = halves(mean - torch.log(-torch.expm1(mean.clamp(max=-1e-6))))
    return supervised(signals, batch, o["sft"]) - o["beta"] * F.logsigmoid(better - worse)


def simpo(signals: Signals, batch: Batch, o: Options) -> Tensor:
    """Meng et al. 2024, https://arxiv.org/abs/2405.14734, eq. 6: means over tokens, and no reference."""
    better, worse = halves(each_token(signals, batch))
    return ranked(o["beta"] * (better - worse) - o["gamma"], o["label_smoothing"]) + supervised(signals, batch, o["sft"])


def reward(signals: Signals, batch: Batch, o: Options) -> Tensor:
    """Bradley & Terry 1952, as in Ouyang et al. 2022, eq. 1; centred as in Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244, eq. 2."""
    better, worse = halves(signals["reward"])
    return ranked(better - worse, 0.0) + o["center"] * (better + worse).square()


@dataclass(frozen=True)
class Loss:
    """form: (signals, batch, options) -> a loss a pair or a row; options with their defaults; the kinds of rows and the columns that it takes.

    pace: at the rates that learn answers from nothing, a policy runs away from its reference (measured, docs/LOG.md)
    """

    form: Callable[[Signals, Batch, Options], Tensor]
    options: Mapping[str, float]
    kinds: tuple[str, ...]
    needs: frozenset[str]
    pace: float = 1.0


LABELLED, COMPARED = frozenset({"label"}), frozenset({"label", "reference"})
LOSSES: dict[str, Loss] = {
    "dpo": Loss(dpo, {"beta": 0.1, "label_smoothing": 0.0, "sft": 0.0}, ("preferred",), COMPARED, 0.2),
    "ipo": Loss(ipo, {"beta": 0.1, "sft": 0.0}, ("preferred",), COMPARED, 0.2),
    "kto": Loss(kto, {"beta": 0.1, "desirable": 1.0, "undesirable": 1.0}, ("preferred", "judged"), COMPARED | {"other", "other_reference"}, 0.2),
    "orpo": Loss(orpo, {"beta": 0.1, "sft": 1.0}, ("preferred",), LABELLED),
    "simpo": Loss(simpo, {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0, "sft": 0.0}, ("preferred",), LABELLED, 0.2),
    "reward": Loss(reward, {"center": 0.01}, ("reward",), frozenset()),
}
