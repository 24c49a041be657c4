"""Rows to embed, as batches for a tiny network."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tiny import rows
from tunesmith.core import Batch, Ragged


def related(texts: Sequence[Sequence[int]], labels: Sequence[int] = (), scores: Sequence[float] = (), seed: int = 1) -> Batch:
    """Examples by the numbers of their texts; a text's tokens are a function of its number, its length too."""
    flat = [t for example in texts for t in example]
    made = {t: rows(3 + (5 * t) % 9, seed=1000 * seed + t).values for t in flat}
    sizes = torch.tensor([len(example) for example in texts])
    columns = {
        "ids": Ragged(torch.cat([made[t] for t in flat]), tuple(len(made[t]) for t in flat)),
        "group": torch.arange(len(texts)).repeat_interleave(sizes),
        "side": torch.cat([torch.arange(n) for n in sizes.tolist()]),
        "text": torch.tensor(flat),
        "input": torch.tensor(flat),
    }
    columns |= {"label": torch.tensor(labels).repeat_interleave(sizes)} if labels else {}
    columns |= {"score": torch.tensor(scores).repeat_interleave(sizes)} if scores else {}
    return Batch(columns)


def kind(name: str, n: int = 6) -> Batch:
    """n examples of each kind of rows, no text twice."""
    two = [(2 * i, 2 * i + 1) for i in range(n)]
    return {
        "pairs": lambda: related(two),
        "negatives": lambda: related([(*pair, 100 + 2 * i, 101 + 2 * i) for i, pair in enumerate(two)]),
        "similar": lambda: related(two, scores=[float(i % 4) / 4 for i in range(n)]),
        "grouped": lambda: related([(i,) for i in range(n)], labels=[i % 3 for i in range(n)]),
        "texts": lambda: related([(i,) for i in range(n)]),
    }[name]()


LOSSES = {  # loss -> the kind of batch and what Contrast is made with
    "infonce": ("negatives", {"kind": "pairs"}),
    "symmetric": ("negatives", {"kind": "pairs", "symmetric": True}),
    "triplet": ("negatives", {"kind": "pairs", "loss": "triplet"}),
    "hard": ("grouped", {"kind": "grouped", "loss": "triplet"}),
    "supcon": ("grouped", {"kind": "grouped"}),
    "pairwise": ("grouped", {"kind": "grouped", "loss": "pairwise"}),
    "cosent": ("similar", {"kind": "similar"}),
    "cosine": ("similar", {"kind": "similar", "loss": "cosine"}),
    "simcse": ("texts", {"kind": "texts"}),
    "projected": ("texts", {"kind": "texts", "projection": True}),
    "matryoshka": ("pairs", {"kind": "pairs", "dims": (32, 16, 8)}),
}
