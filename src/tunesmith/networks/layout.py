"""Where the rows of a packed batch lie: buckets of like length, positions, masks. All of it depends on the lengths alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from .heads import exact
from .stems import Stems

CALL_COST = 24_000  # what a further bucket costs, in cells of a score matrix; measured, see docs/LOG.md


@dataclass(frozen=True)
class Bucket:
    """`rows` rows padded to `width`; they are the tokens start:stop. `spots` are the (stop - start) real cells of rows * width."""

    start: int
    stop: int
    rows: int
    width: int
    spots: Tensor | None
    masks: dict[tuple[bool, int, torch.dtype], Tensor | None] = field(default_factory=dict)

    def mask(self, causal: bool, window: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Additive, (rows or 1, width or 1, width): -inf where a query may not look; None where it may look everywhere."""
        key = (causal, window, dtype)
        if key not in self.masks:
            self.masks[key] = self._mask(causal, window, dtype, device)
        return self.masks[key]

    def _mask(self, causal: bool, window: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        seen = None
        if causal or window:
            i = torch.arange(self.width, device=device)
            far = (i[:, None] - i[None]).abs() >= (window or self.width)
            seen = ~(far | (i[None] > i[:, None]) if causal else far)[None]
        if self.spots is not None and not causal:  # causal rows never see the padding behind them
            real = torch.zeros(self.rows * self.width, dtype=torch.bool, device=device)
            real = real.index_fill(0, self.spots, True).view(self.rows, 1, self.width)
            seen = real if seen is None else seen & real | torch.eye(self.width, dtype=torch.bool, device=device)
        return None if seen is None else torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))


@dataclass(frozen=True)
class Layout:
    """How one packed batch lies: buckets over the tokens in order of row length; `order`/`back` where rows come unsorted.

    Behind the rows lie `filler` tokens of no row, which attend to nothing. With `stems`, tokens that several rows share lie there once: `order` names them more
    than once, and `back` what attention made of one of them.
    """

    lengths: tuple[int, ...]
    buckets: tuple[Bucket, ...]
    order: Tensor | None
    back: Tensor | None
    positions: Tensor  # (1, N)
    bounds: Tensor  # (B + 1,) int32, for kernels that take cumulative lengths
    filler: int = 0
    stems: Stems | None = None


@lru_cache(maxsize=64)
def layout(lengths: tuple[int, ...], first_position: int, device: torch.device, filler: int = 0) -> Layout:
    """The layout of rows of these lengths, whose positions count from `first_position`, and of filler tokens behind them, all at the first."""
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    order = None
    if by_length != list(range(len(lengths))):
        spans = torch.arange(sum(lengths) + filler).split([*lengths, filler])
        order = torch.cat([*(spans[i] for i in by_length), spans[-1]])
    positions = torch.cat([*(torch.arange(n) for n in lengths), torch.zeros(filler, dtype=torch.long)]) + first_position
    buckets = tuple(group(tuple(sorted(lengths)), device))
    back = None if order is None else order.argsort().to(device)
    return Layout(lengths, buckets, None if order is None else order.to(device), back, positions[None].to(device), bounds_of(lengths, 0, device), filler)


def shared(lay: Layout, stems: Stems, filler: int) -> Layout:
    """The layout (without filler) of the same rows where a beginning that some have in common lies there once."""
    behind, first = torch.arange(filler, device=stems.kept.device), lay.positions[:, :1]
    order = stems.copies if lay.order is None else stems.copies[lay.order]
    back = stems.kept if lay.back is None else lay.back[stems.kept]
    return replace(
        lay,
        order=torch.cat([order, len(stems.kept) + behind]),
        back=torch.cat([back, len(stems.copies) + behind]),
        positions=torch.cat([lay.positions[:, stems.kept], first.expand(1, filler)], 1),
        filler=filler,
        stems=stems,
    )


def group(lengths: tuple[int, ...], device: torch.device) -> Iterator[Bucket]:
    """Sorted lengths cut into buckets so that padded score cells plus the cost of each call are least."""
    cuts, start, token = cheapest_cuts(lengths), 0, 0
    for stop in cuts:
        rows = lengths[start:stop]
        width, tokens = rows[-1], sum(rows)
        spots = None
        if tokens < width * len(rows):
            spots = torch.cat([torch.arange(n) + i * width for i, n in enumerate(rows)]).to(device)
        yield Bucket(token, token + tokens, len(rows), width, spots)
        start, token = stop, token + tokens


def cheapest_cuts(lengths: tuple[int, ...]) -> list[int]:
    """Where to cut sorted lengths, by dynamic programming over the places where the length changes: O(distinct^2)."""
    ends = [i + 1 for i, n in enumerate(lengths) if i + 1 == len(lengths) or lengths[i + 1] != n]
    best: list[tuple[float, int]] = [(0.0, 0)]
    starts = [0, *ends]
    for j in range(1, len(starts)):
        square = lengths[starts[j] - 1] ** 2
        best.append(min((best[i][0] + square * (starts[j] - starts[i]) + CALL_COST, i) for i in range(j)))
    cuts, j = [], len(starts) - 1
    while j:
        cuts.append(starts[j])
        j = best[j][1]
    return cuts[::-1]


def spread(x: Tensor, bucket: Bucket) -> Tensor:
    """(n, heads, d) -> (rows, width, heads, d)."""
    flat = x if bucket.spots is None else Scatter.apply(x, bucket.spots, bucket.rows * bucket.width)
    return flat.reshape(bucket.rows, bucket.width, *x.shape[1:])


class Scatter(torch.autograd.Function):
    """Rows of x put at distinct `spots` of `size` zero rows. Backward is a gather; autograd's own would be a slow index_add."""

    @staticmethod
    def forward(ctx, x: Tensor, spots: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(spots)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, spots, x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


@lru_cache(maxsize=64)
def bounds_of(lengths: tuple[int, ...], prompt: int, device: torch.device) -> Tensor:
    """(B + 1,) int32: where rows begin and the last one ends, with `prompt` more before each."""
    return F.pad((torch.tensor(lengths) + prompt).cumsum(0), (1, 0)).int().to(device)


@lru_cache(maxsize=64)
def with_prompt(lengths: tuple[int, ...], prompt: int, device: torch.device) -> Tensor:
    """Order of [`prompt` rows for each row, all tokens] that puts those before each row."""
    heads = torch.arange(prompt * len(lengths)).split(prompt)
    spans = torch.arange(prompt * len(lengths), prompt * len(lengths) + sum(lengths)).split(list(lengths))
    return torch.cat([part for pair in zip(heads, spans, strict=True) for part in pair]).to(device)


@lru_cache(maxsize=64)
def own_tokens(lengths: tuple[int, ...], prompt: int, device: torch.device) -> Tensor:
    """Where, among rows with a prompt before each, the rows' own tokens are."""
    ends = accumulate(n + prompt for n in lengths)
    return torch.cat([torch.arange(end - n, end) for n, end in zip(lengths, ends, strict=True)]).to(device)


class Gather(torch.autograd.Function):
    """Rows of x at distinct `spots`; the inverse of Scatter."""

    @staticmethod
    def forward(ctx, x: Tensor, spots: Tensor) -> Tensor:
        ctx.save_for_backward(spots)
        ctx.size = len(x)
        return x.index_select(0, spots)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, ctx.saved_tensors[0], grad), None


class Share(Gather):
    """The same where `spots` may name a row more than once: its gradients add up, in fp32 or better."""

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        fine = exact(grad)
        return fine.new_zeros(ctx.size, *grad.shape[1:]).index_add_(0, ctx.saved_tensors[0], fine).to(grad.dtype), None
