"""How far a student's distribution is from a teacher's: functions of two sets of log-probabilities (n, k), summed over k -> (n,)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Loss = Literal["forward", "reverse", "jsd", "skew"]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities, which must be finite."""
    return (p.exp() * (p - q)).sum(-1)


def forward(p: Tensor, q: Tensor, share: float) -> Tensor:
    """KL(teacher || student): the student covers all that the teacher may say (Hinton et al. 2015)."""
    return kl(p, q)


def reverse(p: Tensor, q: Tensor, share: float) -> Tensor:
    """KL(student || teacher): the student says nothing that the teacher would not (Gu et al. 2024, MiniLLM, eq. 1)."""
    return kl(q, p)


def jsd(p: Tensor, q: Tensor, share: float) -> Tensor:
    """b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q (Agarwal et al. 2024, GKD, eq. 1).

    At b = 0 and 1 it is 0 for any p and q; as trl does, these stand for the limits of jsd / b and jsd / (1 - b), forward and reverse KL.
    """
    if share in (0.0, 1.0):
        return kl(p, q) if share == 0.0 else kl(q, p)
    m = mixture(p, q, share)
    return share * kl(p, m) + (1 - share) * kl(q, m)


def skew(p: Tensor, q: Tensor, share: float) -> Tensor:
    """KL(p || a p + (1 - a) q) (Ko et al. 2024, DistiLLM, eq. 4): bounded by -log a where the student has no mass."""
    return kl(p, mixture(p, q, share))


def mixture(p: Tensor, q: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q)."""
    return torch.logaddexp(p + math.log(share), q + math.log1p(-share))


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"forward": forward, "reverse": reverse, "jsd": jsd, "skew": skew}
