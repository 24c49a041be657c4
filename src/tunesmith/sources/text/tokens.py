"""Which tokens of a row are read, and what is learnt there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core import Ragged
from .examples import Tagged


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    return Ragged(torch.tensor([x for row in rows for x in row], dtype=torch.long), tuple(len(row) for row in rows))


def first_tokens(example: Tagged, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(word, token) for each word that has a token: the first whose characters reach into it."""
    starts, ends, place = [], [], 0
    for token, space in zip(example.tokens, example.spaces, strict=True):
        starts.append(place)
        ends.append(place + len(token))
        place += len(token) + space
    found: list[tuple[int, int]] = []
    word = 0
    for t, (start, end) in enumerate(offsets):
        while word < len(starts) and ends[word] <= start:
            word += 1
        if start < end and word < len(starts) and starts[word] < end:
            found.append((word, t))
            word += 1
    return found


def learnt(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Positions t whose token t + 1 begins inside a span to be learnt. Specials that the tokenizer added (empty offsets) are not."""
    inside = [start < end and any(a <= start < b for a, b in spans) for start, end in offsets]
    return [t - 1 for t, yes in enumerate(inside) if yes and t > 0]


def next_tokens(rows: Sequence[Sequence[int]], at: Sequence[Sequence[int]]) -> dict[str, Tensor | Ragged]:
    label = [[row[t + 1] for t in places] for row, places in zip(rows, at, strict=True)]
    return {"ids": ragged(rows), "at": ragged(at), "label": ragged(label)}


def last_run(places: list[int]) -> int:
    """Where the last run of consecutive numbers begins: of labelled positions, those of the last answer."""
    start = len(places) - 1
    while start and places[start - 1] == places[start] - 1:
        start -= 1
    return places[start]
