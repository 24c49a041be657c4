"""How much better than expected a token was: pure functions of rewards, by row laid end to end. The policy's tokens only; what it read is not here.

Shapes: R rows, N tokens of all of them. A row that could not be scored is not `counted`: it is in no mean and its advantage is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core import Ragged

Baseline = Literal["critic", "group", "others", "mean"]


@dataclass(frozen=True)
class Estimator:
    """What is subtracted from a return, and what it is divided by.

    baseline  critic: V of each token, GAE; group: the mean of a prompt's samples; others: the mean of its other samples; mean: of the whole rollout
    scale     divide by the standard deviation of the prompt's samples, plus 1e-4
    whiten    mean 0 and deviation 1 over all tokens of the rollout
    discount, trace   gamma and lambda of GAE
    """

    baseline: Baseline
    scale: bool = False
    whiten: bool = False
    discount: float = 1.0
    trace: float = 0.95

    def __call__(self, rewards: Ragged, values: Ragged | None, size: int, counted: Tensor) -> tuple[Ragged, Ragged]:
        """Advantages and returns of each token; `size` rows in a row answer one prompt; counted (R,) of 0 and 1."""
        lengths = torch.tensor(rewards.lengths)
        tokens = counted.repeat_interleave(lengths)
        if self.baseline == "critic":
            assert values is not None
            advantage = gae(rewards, values, self.discount, self.trace).values
            returns = advantage + values.values
        else:
            total = sums(rewards)
            better = (total - BASELINES[self.baseline](total, size, counted)) * counted
            better = better / (spread(total, size, counted) + 1e-4) if self.scale else better
            advantage, returns = better.repeat_interleave(lengths), total.repeat_interleave(lengths)
        if self.whiten:
            advantage = whitened(advantage, tokens)
        return Ragged(advantage * tokens, rewards.lengths), Ragged(returns, rewards.lengths)


def token_rewards(scores: Ragged, logp: Tensor, reference: Tensor, beta: float) -> Ragged:
    """r_t = score_t - beta (log pi - log pi_ref)(t), the k1 estimate: sum_t r_t = score - beta KL. Scores stand on the last token of each turn."""
    return Ragged(scores.values - beta * (logp - reference), scores.lengths)


def sums(rows: Ragged) -> Tensor:
    """(R,): each row's sum."""
    return torch.stack([row.sum() for row in rows.rows()])


def gae(rewards: Ragged, values: Ragged, discount: float, trace: float) -> Ragged:
    """A_t = delta_t + gamma lambda A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t, V after the end 0 (Schulman et al. 2016, equation 16).

    t counts the policy's tokens: what it read between them is skipped, with no step of its own.
    """
    pad = lambda rows: torch.nn.utils.rnn.pad_sequence(rows.rows(), batch_first=True)
    r, v = pad(rewards), pad(values)
    real = torch.arange(r.shape[1])[None] < torch.tensor(rewards.lengths)[:, None]
    advantage, after = torch.zeros_like(r), torch.zeros_like(r[:, 0])
    ahead = torch.zeros_like(after)
    for t in reversed(range(r.shape[1])):
        delta = r[:, t] + discount * ahead - v[:, t]
        advantage[:, t] = after = (delta + discount * trace * after) * real[:, t]
        ahead = v[:, t] * real[:, t]
    return Ragged(advantage[real], rewards.lengths)


def group_mean(total: Tensor, size: int, counted: Tensor) -> Tensor:
    n = counted.view(-1, size).sum(1, keepdim=True)
    mean = (total * counted).view(-1, size).sum(1, keepdim=True) / n.clamp(min=1)
    return mean.expand(-1, size).reshape(-1)


def others_mean(total: Tensor, size: int, counted: Tensor) -> Tensor:
    """The mean of the prompt's other samples; a sample without others is its own baseline (advantage 0). Ahmadian et al. 2024, equation 3."""
    n = counted.view(-1, size).sum(1, keepdim=True)
    whole = (total * counted).view(-1, size).sum(1, keepdim=True)
    rest = (whole - total.view(-1, size)) / (n - 1).clamp(min=1)
    return torch.where(n > 1, rest, total.view(-1, size)).reshape(-1)


def rollout_mean(total: Tensor, size: int, counted: Tensor) -> Tensor:
    return ((total * counted).sum() / counted.sum().clamp(min=1)).expand_as(total)


BASELINES: dict[str, Callable[[Tensor, int, Tensor], Tensor]] = {"group": group_mean, "others": others_mean, "mean": rollout_mean}


def spread(total: Tensor, size: int, counted: Tensor) -> Tensor:
    """(R,): the standard deviation (over n - 1) of the prompt's samples; 0 where there is one. Shao et al. 2024, section 4.1.2, as it is implemented."""
    c = counted.view(-1, size)
    gap = (total - group_mean(total, size, counted)).view(-1, size) * c
    return ((gap**2).sum(1, keepdim=True) / (c.sum(1, keepdim=True) - 1).clamp(min=1)).sqrt().expand(-1, size).reshape(-1)


def whitened(x: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over what the mask (0 or 1) lets through, of the whole rollout, never of a piece of it."""
    n = mask.sum().clamp(min=1)
    mean = (x * mask).sum() / n
    variance = ((x - mean) ** 2 * mask).sum() / n
    return (x - mean) * (variance + 1e-8).rsqrt() * mask


def adapted(beta: float, kl: float, target: float, horizon: float, samples: int) -> float:
    """The next beta: larger where the policy went further than `target` nats a sample (Ziegler et al. 2019, section 2.2)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * samples / horizon)
