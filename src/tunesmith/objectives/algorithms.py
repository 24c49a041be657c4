"""Policy gradients are one objective. Here are its special cases, as rows of data: what each takes for a baseline, a ratio, a mean and a KL."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Algorithm:
    """What a name stands for; every field is an option of the recipe's objective, which replaces it.

    paper      where it is from, and what it is a special case of
    baseline   critic, group, others or mean (sources/advantages.py); scale, whiten: what the advantage is divided by
    ratio      token: pi / pi_old of each token; sequence: of the whole sample; geometric: its mean over tokens
    mean       how tokens are averaged: token, sequence, constant or sum (objectives/reinforce.py)
    low, high  the ratio is clipped to [1 - low, 1 + high]
    kl         reward: k1 taken off the rewards; loss: an estimate of it (k2, or ratio x k3) added to the loss
    """

    paper: str
    baseline: str
    ratio: str = "token"
    mean: str = "token"
    low: float = 0.2
    high: float = 0.2
    scale: bool = False
    whiten: bool = False
    kl: str = "loss"
    beta: float = 0.0
    group: int = 8
    epochs: int = 1
    minibatches: int = 1
    truncated: str = "keep"


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm("Schulman et al. 2017, https://arxiv.org/abs/1707.06347, with GAE, a critic and the KL of Ziegler et al. 2019 in the reward",
                     "critic", whiten=True, kl="reward", beta=0.05, group=1, epochs=4, minibatches=4),
    "grpo": Algorithm("Shao et al. 2024, https://arxiv.org/abs/2402.03300: PPO's clipped ratio with the group's mean for a critic, over its deviation",
                      "group", mean="sequence", scale=True, beta=0.04),
    "dr_grpo": Algorithm("Liu et al. 2025, https://arxiv.org/abs/2503.20783: GRPO without the two divisions that favour length and easy prompts",
                         "group", mean="constant"),
    "dapo": Algorithm("Yu et al. 2025, https://arxiv.org/abs/2503.14476: GRPO with a mean over tokens, a higher upper clip, and samples cut off left out",
                      "group", scale=True, high=0.28, truncated="mask"),
    "gspo": Algorithm("Zheng et al. 2025, https://arxiv.org/abs/2507.18071: GRPO with one ratio a sample, the geometric mean of its tokens'",
                      "group", ratio="geometric", mean="sequence", scale=True, low=3e-4, high=4e-4),
    "rloo": Algorithm("Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740: REINFORCE whose baseline is the mean of the prompt's other samples",
                      "others", ratio="sequence", mean="sequence", kl="reward", beta=0.05, group=4),
    "reinforce": Algorithm("Williams 1992, https://doi.org/10.1007/BF00992696, with the rollout's mean for a baseline: the clipped ratio, never clipped",
                           "mean", mean="sum", low=math.inf, high=math.inf, kl="reward", beta=0.05, group=1),
}  # fmt: skip
