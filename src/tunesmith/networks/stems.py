"""Rows that begin alike: what a decoder makes of a token depends on the tokens before it alone, so a beginning that several rows have in common is read once.

Prompts with several answers, pairs of answers, labels as continuations, and the instruction before every row: their tokens go through the network as a tree. Only
attention sees whole rows, as keys, so the states and the gradients are what they would be (of pairs: Wang & Hegde 2024, https://arxiv.org/abs/2410.20305, who mask one
long row instead).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

SAVES = 1 / 12  # share of the tokens that must be spared for it to be worth while; measured, see docs/LOG.md


@dataclass(frozen=True)
class Stems:
    """`kept`: (n,) which of the N tokens are read, of each row the last `own`; `copies`: (N,) which of the n stands for each of the N."""

    kept: Tensor
    copies: Tensor
    own: tuple[int, ...]


def stems(rows: Sequence[Sequence[int]], device: torch.device) -> Stems | None:
    """Of rows of ids (any 32-bit numbers); None where they have too little in common."""
    cells = [np.asarray(row, dtype=">i4") for row in rows]
    starts = list(accumulate(map(len, cells), initial=0))
    copies, own = np.arange(starts[-1]), list(map(len, cells))
    order = sorted(range(len(cells)), key=lambda i: cells[i].tobytes())  # after which the row with the longest common beginning is a neighbour
    for before, i in pairwise(order):
        n = alike(cells[before], cells[i])
        copies[starts[i] : starts[i] + n] = copies[starts[before] : starts[before] + n]
        own[i] -= n
    kept, copies = np.unique(copies, return_inverse=True)
    if len(kept) > (1 - SAVES) * len(copies):
        return None
    return Stems(torch.from_numpy(kept).to(device), torch.from_numpy(copies).to(device), tuple(own))


def alike(a: np.ndarray, b: np.ndarray) -> int:
    """How many cells two rows have in common before they part."""
    n = min(len(a), len(b))
    parted = np.flatnonzero(a[:n] != b[:n])
    return int(parted[0]) if len(parted) else n
