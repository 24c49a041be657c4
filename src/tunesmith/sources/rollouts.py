"""What the policy does, as it is now: samples for a few prompts, their rewards and advantages, and several passes over them in minibatches.

A rollout is a function of the weights at its start, the seed and its number. Those weights are gone once its first step is taken, so it remembers
itself over an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ..core import Batch, Network, Ragged
from ..parallel import told
from .advantages import Estimator, adapted, sums, token_rewards
from .table import Table

COLLAPSED = 0.5  # of the first rollout's distinct-2
Look = Callable[[Network, Batch], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Played:
    """One sample. `columns`: ids, at, label (decoders) or ids, target, label (encoder-decoders), each of one row.

    scores    by token that the policy wrote: a reward on the last of each turn; NaN where it could not be scored
    parts     the reward by its parts, and what else is worth a mean (success)
    """

    columns: Mapping[str, Sequence[int]]
    scores: Sequence[float]
    drawn: Sequence[float]
    ended: bool
    text: str
    parts: Mapping[str, float] = field(default_factory=dict)


Play = Callable[[Network, Sequence[int], int, int], list[Played]]  # (network, rows, samples a row, seed) -> rows x samples


@dataclass(frozen=True)
class Plan:
    """prompts, group: samples a rollout are prompts x group; batch: samples a step; epochs: passes over them.

    beta, target, horizon   weight of the KL, and how it adapts where a target is given; in_reward: it is taken off the rewards
    keep_cut                samples that a limit cut off count; penalty: what is taken off their score
    cap                     another engine draws: a token counts by how much likelier it is to the policy than to that one, at most `cap` times
                            (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training")
    """

    prompts: int
    group: int
    batch: int
    epochs: int
    beta: float
    in_reward: bool
    target: float | None = None
    horizon: float = 10_000.0
    keep_cut: bool = True
    penalty: float = 0.0
    cap: float | None = None
    diverse: bool = True  # say so where answers become all the same; an agent that plays well always does the same

    @property
    def fresh(self) -> bool:
        """One step a rollout: the policy that learns is the one that wrote, so its ratio is 1 whatever was drawn, and nobody need read it again.
        With the KL in the rewards it is read all the same, by the kernel that reads the reference."""
        return self.steps == 1 and not self.in_reward and self.cap is None

    @property
    def samples(self) -> int:
        return self.prompts * self.group

    @property
    def steps(self) -> int:
        """Optimiser steps a rollout."""
        return self.epochs * -(-self.samples // self.batch)


@dataclass
class Rollouts:
    """`table` holds the prompts. `play` samples and scores, `look(net, batch)` is how the objective reads, `base` puts the reference in the policy's place,
    `cut` parts a minibatch as the update will, so that the first ratio is exactly 1.

    Batches carry label, old, reference, advantage, value and return by token, weight and beta by row.
    """

    table: Table
    plan: Plan
    estimator: Estimator
    play: Play
    look: Look
    base: Callable[[], AbstractContextManager]
    cut: Callable[[Batch], Iterator[Batch]]
    warn: Callable[[str], None] = lambda text: None
    index: int = -1
    held: Batch | None = None  # all samples of rollout `index`
    beta: float = 0.0  # of the next rollout
    first: dict[str, float] = field(default_factory=dict)  # what was said of the first rollout
    warned: bool = False

    def __post_init__(self) -> None:
        self.beta = self.beta or self.plan.beta

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({"ids", "at", "label", "target", "old", "reference", "advantage", "value", "return", "weight", "beta", "row"})

    @cached_property
    def period(self) -> int:
        """Steps until every prompt was asked once."""
        return -(-len(self.table.examples) * self.plan.steps // self.plan.prompts)

    def fill(self, net: Network) -> None:
        """Nothing can be known before the policy acts."""

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]:
        index, step = divmod(start, self.plan.steps)
        while True:
            if self.index != index or self.held is None:
                self.begin(net, index)
            assert self.held is not None
            for rows in self.order(index, self.held)[step:]:
                batch = self.held.pick(rows).to(self.table.device)
                yield Batch(batch.columns, batch.task, self.held.said)
            index, step = index + 1, 0

    def begin(self, net: Network, index: int) -> None:
        """Play rollout `index`. The first process plays; all learn from it."""
        held = told(lambda: self.rollout(net, index))
        self.held, self.index = held, index
        kl = held.said["kl"]
        if self.plan.target is not None:
            self.beta = adapted(self.beta, kl, self.plan.target, self.plan.horizon, self.plan.samples)
        self.first = self.first or dict(held.said)
        self.look_for_collapse(held.said)

    def prompts(self, index: int) -> list[int]:
        """Which prompts: the next ones of the epochs' orders, one behind another."""
        n, start = len(self.table.examples), index * self.plan.prompts
        return [int(self.table.order(k // n)[k % n]) for k in range(start, start + self.plan.prompts)]

    def order(self, index: int, held: Batch) -> list[list[int]]:
        """The rows of each step: shuffled anew in each epoch, short to long within a step."""
        lengths, plan = held.ragged("ids").lengths, self.plan
        steps: list[list[int]] = []
        for epoch in range(plan.epochs):
            generator = torch.Generator().manual_seed((self.table.seed * 1_000_003 + index) * 64 + epoch)
            steps += [sorted(rows.tolist(), key=lambda i: (lengths[i], i)) for rows in torch.randperm(len(lengths), generator=generator).split(plan.batch)]
        return steps

    @torch.no_grad()
    def rollout(self, net: Network, index: int) -> Batch:
        """All samples, with everything that the objective needs."""
        rows = self.prompts(index)
        return self.judged(net, rows, self.plan.group, (self.table.seed * 1_000_003 + index) & 0x7FFF_FFFF, lambda batch: self.order(index, batch))[0]

    @torch.no_grad()
    def judged(self, net: Network, rows: Sequence[int], group: int, seed: int, order: Callable[[Batch], list[list[int]]]) -> tuple[Batch, list[Played]]:
        """Play and judge: (the samples as a batch on the CPU, the samples). `order` gives the minibatches in which the update will first see them."""
        was = net.training
        net.eval()
        played = self.play(net, rows, group, seed)
        batch = Batch({name: ragged([p.columns[name] for p in played], torch.long) for name in played[0].columns}, self.table.task)
        raw = ragged([p.scores for p in played], torch.float32)
        total = sums(raw)
        scored = total.isfinite()
        counted = scored & torch.tensor([p.ended or self.plan.keep_cut for p in played])
        scores = Ragged(raw.values.nan_to_num(0.0), raw.lengths)
        scores.values[scores.starts() + torch.tensor(scores.lengths) - 1] -= self.plan.penalty * torch.tensor([float(not p.ended) for p in played])
        drawn = ragged([p.drawn for p in played], torch.float32)
        fresh = group == self.plan.group and self.plan.fresh and bool(drawn.values.isfinite().all())
        seen = self.seen(net, batch, order(batch), again=not fresh)
        net.train(was)
        logp = seen.get("old", drawn)
        rewards = token_rewards(scores, logp.values, seen["reference"].values, self.beta if self.plan.in_reward else 0.0)
        advantage, returns = self.estimator(rewards, seen.get("value"), group, counted.float())
        if self.plan.cap is not None:
            advantage = Ragged(advantage.values * (logp.values - drawn.values).exp().clamp(max=self.plan.cap), advantage.lengths)
        said = self.said(played, total[scored], logp, seen["reference"])
        columns = {**seen, "advantage": advantage, "return": returns, "weight": counted.float(), "beta": torch.full((len(played),), self.beta)}
        columns["row"] = torch.tensor(rows).repeat_interleave(group)
        return Batch({**batch.columns, **columns}, batch.task, said), played

    def seen(self, net: Network, batch: Batch, minibatches: Sequence[Sequence[int]], again: bool) -> dict[str, Ragged]:
        """reference and, where the policy is asked again, old (and value, with a critic) by token: read in the very pieces in which the update's first pass
        reads them."""
        found: dict[str, dict[int, Tensor]] = {"old": {}, "reference": {}, "value": {}}
        for rows in minibatches[: -(-len(batch) // len(minibatches[0]))]:
            for piece in self.cut(batch.pick(rows).plus(place=torch.tensor(rows)).to(self.table.device)):
                own = self.look(net, piece) if again else {}
                with self.base():
                    columns = {"reference": self.look(net, piece)["logp"]}
                columns |= {name: own[key] for name, key in (("old", "logp"), ("value", "value")) if key in own}
                for name, values in columns.items():
                    found[name] |= zip(piece["place"].tolist(), values.float().cpu().split(list(piece.ragged("label").lengths)), strict=True)
        return {name: rows_of([rows[i] for i in range(len(batch))]) for name, rows in found.items() if rows}

    def said(self, played: Sequence[Played], total: Tensor, old: Ragged, reference: Ragged) -> dict[str, float]:
        """reward: mean score; kl: nats a sample, the k1 estimate; entropy: nats a token; length: tokens; truncated: share that a limit cut off;
        distinct_2: different pairs of neighbouring tokens over all of them; mismatch: mean |log-probability drawn - scored|."""
        drawn = torch.tensor([x for p in played for x in p.drawn])
        labels = [list(p.columns["label"]) for p in played]
        pairs = [pair for row in labels for pair in pairwise(row)]
        parts = {name: sum(p.parts[name] for p in played) / len(played) for name in played[0].parts}
        return {
            "reward": float(total.double().mean()) if len(total) else 0.0,
            **parts,
            "kl": float((old.values - reference.values).double().sum()) / len(played),
            "entropy": -float(old.values.double().mean()),
            "distinct_2": len(set(pairs)) / max(1, len(pairs)),
            "length": sum(map(len, labels)) / len(played),
            "truncated": sum(not p.ended for p in played) / len(played),
            **({"mismatch": float((drawn - old.values).abs().mean())} if drawn.isfinite().all() and not torch.equal(drawn, old.values) else {}),
            **({"beta": self.beta} if self.plan.target is not None else {}),
        }

    def look_for_collapse(self, said: Mapping[str, float]) -> None:
        """Once: the reward rises, and the answers become all the same."""
        less = said["distinct_2"] < COLLAPSED * self.first["distinct_2"]
        if self.plan.diverse and less and said["reward"] > self.first["reward"] and not self.warned:
            self.warned = True
            self.warn(
                f"rollout {self.index + 1}: the reward has risen from {self.first['reward']:.3g} to {said['reward']:.3g}, while distinct-2 fell from "
                f"{self.first['distinct_2']:.3g} to {said['distinct_2']:.3g} (KL {said['kl']:.3g} nats a sample): answers become all the same; "
                "a larger objective.beta, a lower update.rate, or a reward that sees through it"
            )

    # -------------------------------------------------------------------------------------------- over an interruption

    def state_dict(self) -> dict[str, Tensor]:
        if self.held is None:
            return {}
        number = lambda x: torch.tensor(x, dtype=torch.float64)
        state = {"index": torch.tensor(self.index), "beta": number(self.beta), "warned": torch.tensor(self.warned)}
        for name, column in self.held.columns.items():
            state |= {f"row.{name}": column} if isinstance(column, Tensor) else {f"token.{name}": column.values, f"length.{name}": torch.tensor(column.lengths)}
        return state | {f"said.{k}": number(v) for k, v in self.held.said.items()} | {f"first.{k}": number(v) for k, v in self.first.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if not state:
            return
        under = lambda prefix: {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
        lengths = under("length.")
        columns: dict[str, Tensor | Ragged] = dict(under("row."))
        columns |= {name: Ragged(t, tuple(lengths[name].tolist())) for name, t in under("token.").items()}
        # safetensors returns entries in an order of its own; a record keeps the order in which things are said
        said = {k: float(v) for k, v in under("said.").items()}
        self.held, self.index = Batch(columns, self.table.task, said), int(state["index"])
        self.beta, self.warned, self.first = float(state["beta"]), bool(state["warned"]), {k: float(v) for k, v in under("first.").items()}


def ragged(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Ragged:
    return Ragged(torch.tensor([x for row in rows for x in row], dtype=dtype), tuple(map(len, rows)))


def rows_of(rows: Sequence[Tensor]) -> Ragged:
    return Ragged(torch.cat(list(rows)), tuple(map(len, rows)))
