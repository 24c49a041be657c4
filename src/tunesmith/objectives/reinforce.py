"""Reinforcement: more of what was better than expected, less of what was worse. One clipped surrogate; PPO, GRPO, RLOO ... are rows of ALGORITHMS."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from ..core import Batch, Counts, Network, Objective, Ragged, Signals, Terms
from ..errors import Refusal
from .algorithms import ALGORITHMS, Algorithm

Positive = Annotated[int, Ge(1)]
Above = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
Weight = Annotated[float, Ge(0)]


class Reinforce(Objective):
    """Raises the probability of tokens by their advantage, as far as the clipped ratio lets it (Schulman et al. 2017, equation 7).

    Batches of a rollout that one step uses up have no column `old`: it is the policy that learns.

    algorithm    a row of ALGORITHMS: the defaults of baseline, ratio, mean, low, high, scale, whiten, kl, beta, group, epochs, minibatches, truncated
    reward       a row of REWARDS, `file.py:function`, the folder of a run, or a list of {reward, weight} (rewards.py)
    environment  instead: what the policy talks or plays with (environments/)
    group        samples a prompt; minibatches: steps that share a rollout, of update.batch samples each; epochs: passes over it
    length       tokens that the policy may write, a turn; turns: of an episode at most; temperature: of sampling and scoring alike
    estimate     of the KL in the loss: k2 = (log ratio)^2 / 2, or k3 = ratio x (exp r - r - 1). Both have the gradient of the exact KL, weighted
                 by the ratio where the sample is older than the policy; k1 in the loss has the gradient 0, and k3 without the ratio that of the reverse KL
    target       nats a sample at which an adaptive beta holds the KL; horizon: samples after which it has moved by that share
    engine       who writes while it learns: own, or vllm (vllm_writer.py; judging is always by own), which keeps keys and values in `cache` GiB.
                 cap: how much more than once a token may count that is likelier to the policy than to that engine
    truncated    what a limit cut off: keep, or mask (no loss); penalty: what is taken off its score
    dual         an advantage below 0 never counts more than dual times (Ye et al. 2020, equation 5)
    value_weight, value_clip, discount, trace, critic    PPO: of the critic's loss, how far its values may move, gamma and lambda;
                 critic: shared (its loss shapes the trunk); detached; or own, a second network that the same method tunes. What rests is in memory once
    """

    tasks = ("generate",)
    needs = frozenset({"ids", "label", "old", "reference", "advantage", "weight", "beta"})
    still: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    pace: ClassVar[float] = 0.1

    def __init__(
        self,
        kind: str,
        algorithm: Literal["ppo", "grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce"] = "grpo",
        reward: str | dict[str, Any] | list[Any] | None = None,
        environment: str | dict[str, Any] | None = None,
        group: Positive | None = None,
        minibatches: Positive | None = None,
        epochs: Positive | None = None,
        length: Positive = 64,
        turns: Positive = 20,
        temperature: Above = 1.0,
        engine: Literal["own", "vllm"] = "own",
        cache: Above = 4.0,
        cap: Above = 2.0,
        baseline: Literal["critic", "group", "others", "mean"] | None = None,
        ratio: Literal["token", "sequence", "geometric"] | None = None,
        mean: Literal["token", "sequence", "constant", "sum"] | None = None,
        low: Above | None = None,
        high: Above | None = None,
        dual: Annotated[float, Gt(1)] = math.inf,
        scale: bool | None = None,
        whiten: bool | None = None,
        kl: Literal["reward", "loss"] | None = None,
        estimate: Literal["k1", "k2", "k3"] | None = None,
        beta: Weight | None = None,
        target: Above | None = None,
        horizon: Above = 10_000.0,
        truncated: Literal["keep", "mask"] | None = None,
        penalty: Weight = 0.0,
        value_weight: Weight = 0.1,
        value_clip: Above = 0.2,
        discount: Share = 1.0,
        trace: Share = 0.95,
        critic: Literal["shared", "detached", "own"] = "shared",
    ):
        super().__init__()
        given = dict(locals())
        self.name, self.row = algorithm, replaced(ALGORITHMS[algorithm], given)
        self.length, self.turns, self.temperature, self.dual = length, turns, temperature, dual
        self.target, self.horizon, self.penalty = target, horizon, penalty
        self.value_weight, self.value_clip, self.discount, self.trace, self.over = value_weight, value_clip, discount, trace, critic
        self.reward, self.environment, self.engine, self.cache, self.cap = reward, environment, engine, cache, cap
        self.estimate = estimate or ("k1" if self.row.kl == "reward" else "k3")
        self.critic: nn.Linear | None = None
        self.own: tuple[Any, ...] = ()  # the critic's network: in a tuple, lest what rests in it be stored; `moved` is what trains
        self.needs = type(self).needs | ({"value", "return"} if self.values else set())
        refuse(self, kind)

    @property
    def values(self) -> bool:
        """Whether it has a critic."""
        return self.row.baseline == "critic"

    def accept(self, columns: Mapping[str, Tensor | Ragged], size: int) -> None:
        samples = size * self.row.minibatches
        if samples % self.row.group:
            raise Refusal(
                f"{samples} samples a rollout (update.batch {size} x minibatches {self.row.minibatches}) are no whole number of groups of {self.row.group}",
                where="update.batch",
                fix=f"update.batch: {-(-size // self.row.group) * self.row.group}",
            )

    def meet(self, net: Network) -> None:
        """The critic: a line over a trunk's last states, 0 at the start. Nothing may be left to chance between sampling and scoring."""
        if self.values:
            critic = nn.Linear(net.anatomy.width, 1, device=next(net.parameters()).device)
            nn.init.zeros_(critic.weight)
            nn.init.zeros_(critic.bias)
            self.critic = critic
            if self.over == "own":
                self.own = (twin(net),)
                self.moved = nn.ParameterDict({n.replace(".", "/"): p for n, p in self.own[0].named_parameters() if p.requires_grad})
        if loose := [name for name, m in net.named_modules() if isinstance(m, nn.Dropout) and m.p > 0]:
            raise Refusal(
                f"{loose[0]} drops out: the policy that is scored would not be the one that wrote",
                where="objective",
                fix="dropout 0, in the recipe and the method",
            )

    def presumed(self, net: Network, batch: Batch) -> Batch:
        """As if the data's own answers had been sampled."""
        if self.values and self.critic is None:
            self.meet(net)
        label = batch.ragged("label")
        tokens = Ragged(torch.zeros(len(label.values), device=label.values.device), label.lengths)
        rows = torch.ones(len(label.lengths), device=label.values.device)
        return batch.plus(**dict.fromkeys(("old", "reference", "advantage", "value", "return"), tokens), weight=rows, beta=rows)

    def read(self, net: Network, batch: Batch) -> Signals:
        """logp, and with a critic value, each (N,) by token that the policy wrote."""
        logp, states = net.spoken(batch, self.temperature)
        if self.critic is None:
            return {"logp": logp}
        seen = self.own_states(net, batch) if self.own else states if self.over == "shared" else states.detach()
        with torch.autocast(states.device.type, enabled=False):
            return {"logp": logp, "value": self.critic(seen.float())[:, 0]}

    def own_states(self, net: Network, batch: Batch) -> Tensor:
        """(N, D): of the critic's network, which computes as the policy does."""
        (own,) = self.own
        own.train(net.training)
        own.compute, own.room.kernel = net.compute, net.room.kernel  # type: ignore[attr-defined]
        return own.voiced(batch) if "at" in batch else own.spoken(batch)[1]

    def score(self, signals: Signals, batch: Batch) -> Terms:
        lengths = torch.tensor(batch.ragged("label").lengths, device=signals["logp"].device)
        owner = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=len(signals["logp"]))
        kept = batch["weight"][owner]
        weight = kept * MEANS[self.row.mean](lengths, self.length * self.turns_counted)[owner]
        log = signals["logp"] - (batch["old"] if "old" in batch else signals["logp"].detach())
        ratio, advantage = RATIOS[self.row.ratio](log, owner, lengths).exp(), batch["advantage"]
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.row.low, 1 + self.row.high) * advantage)
        if math.isfinite(self.dual):
            gain = torch.where(advantage < 0, torch.maximum(gain, self.dual * advantage), gain)
        terms = {"policy": -(weight * gain).sum()}
        if self.row.kl == "loss":
            terms["divergence"] = (weight * batch["beta"][owner] * DIVERGENCES[self.estimate](batch["reference"] - signals["logp"], log.exp())).sum()
        if self.values:
            terms["value"] = self.value_weight * (kept * clipped_square(signals["value"], batch["value"], batch["return"], self.value_clip)).sum()
        return terms

    @property
    def turns_counted(self) -> int:
        return self.turns if self.environment is not None else 1

    def count(self, batch: Batch) -> Counts:
        """Rows that count, or their tokens."""
        weight = batch["weight"]
        rows, tokens = float(weight.sum()), float((weight * torch.tensor(batch.ragged("label").lengths, device=weight.device)).sum())
        units = tokens if self.row.mean == "token" else rows
        return {"policy": units} | ({"divergence": units} if self.row.kl == "loss" else {}) | ({"value": tokens} if self.values else {})


def twin(net: Network) -> Network:
    """A copy of what moves, around what rests."""
    rests = [*(p for p in net.parameters() if not p.requires_grad), net.tokenizer]  # type: ignore[attr-defined]
    return copy.deepcopy(net, {id(x): x for x in rests})


def replaced(row: Algorithm, given: Mapping[str, Any]) -> Algorithm:
    """The algorithm with the options that the recipe gives."""
    values = {f.name: getattr(row, f.name) for f in fields(Algorithm)}
    return Algorithm(**{name: value if given.get(name) is None else given[name] for name, value in values.items()})


def refuse(r: Reinforce, kind: str) -> None:
    """What is senseless, before anything is loaded."""
    where, loss = "objective", r.row.kl == "loss"
    checks = [
        (kind != "generate", where, "these rows are compared or judged answers, and reinforcement asks its own reward", "objective: prefer"),
        ((r.reward is None) == (r.environment is None), f"{where}.reward", "reinforcement needs a reward or an environment, one of them",
         "reward: exact, numeric, regex, format, rewards.py:function, or the folder of a run"),
        (loss and r.estimate == "k1", f"{where}.estimate", "k1 in the loss: its gradient is zero on average, so it holds nothing", "estimate: k3, or kl: reward"),
        (not loss and r.estimate != "k1", f"{where}.estimate", f"{r.estimate} in the reward: sum_t r_t would not be score - beta KL", "estimate: k1, or kl: loss"),
        (r.row.baseline in ("group", "others") and r.row.group == 1, f"{where}.group", f"{r.name} compares the samples of one prompt, and group is 1",
         "group: 8, or algorithm: reinforce"),
        (r.over == "own" and not r.values, f"{where}.critic", f"{r.name} has no critic", "algorithm: ppo; or leave `critic` out"),
        (r.target is not None and r.row.beta == 0, f"{where}.target", "an adaptive KL that starts from beta 0 stays at 0", "beta: 0.05"),
    ]  # fmt: skip
    for wrong, key, what, fix in checks:
        if wrong:
            raise Refusal(what, where=key, fix=fix)


# ------------------------------------------------------------------------------------------------ ratios, means, divergences

Log = Callable[[Tensor, Tensor, Tensor], Tensor]


def of_sequence(log: Tensor, owner: Tensor, lengths: Tensor) -> Tensor:
    """log ratio of the whole sample, at each of its tokens."""
    return log.new_zeros(len(lengths)).index_add(0, owner, log)[owner]


RATIOS: dict[str, Log] = {
    "token": lambda log, owner, lengths: log,
    "sequence": of_sequence,
    "geometric": lambda log, owner, lengths: of_sequence(log, owner, lengths) / lengths[owner],
}
MEANS: dict[str, Callable[[Tensor, int], Tensor]] = {  # (B,): weight of a row's tokens; the update divides by tokens for `token`, by rows for the others
    "token": lambda lengths, longest: torch.ones(len(lengths), device=lengths.device),
    "sequence": lambda lengths, longest: 1.0 / lengths,
    "constant": lambda lengths, longest: torch.full((len(lengths),), 1.0 / longest, device=lengths.device),
    "sum": lambda lengths, longest: torch.ones(len(lengths), device=lengths.device),
}
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of r = log pi_ref - log pi and the ratio pi / pi_old; gradient of KL(pi | pi_ref) on average
    "k2": lambda r, ratio: ratio.detach() * r**2 / 2,
    "k3": lambda r, ratio: ratio * (r.exp() - r - 1),
}


def clipped_square(value: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """max of the two squared errors, of the value and of the value that moved at most `clip`, halved (Schulman et al.'s code; Huang et al. 2022, detail 9)."""
    near = old + (value - old).clamp(-clip, clip)
    return torch.maximum((value - returns) ** 2, (near - returns) ** 2) / 2
