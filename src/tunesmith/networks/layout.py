"""Where the rows of a packed batch lie: buckets of like length, positions, masks. All of it depends on the lengths alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .heads import exact
from .stems import Stems

CALL_COST = 24_000  # what a further bucket costs, in cells of a score matrix; measured, see docs/LOG.md


@dataclass(frozen=True)
class Cells:
    """`rows` rows padded to `width`; they are the tokens start:stop. `spots` are the (stop - start) real cells of rows * width; None: all are."""

    start: int
    stop: int
    rows: int
    width: int
    spots: Tensor | None


@dataclass(frozen=True)
class Bucket:
    """Rows of like length: whole as keys, and as queries the last columns of that, or the same cells."""

    keys: Cells
    queries: Cells
    masks: dict[tuple[bool, int, torch.dtype], Tensor | None] = field(default_factory=dict)

    def mask(self, causal: bool, window: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Additive, (rows or 1, queries or 1, keys): -inf where a query may not look; None where it may look everywhere."""
        key = (causal, window, dtype)
        if key not in self.masks:
            self.masks[key] = self._mask(causal, window, dtype, device)
        return self.masks[key]

    def _mask(self, causal: bool, window: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        seen, rows, width = None, self.keys.rows, self.keys.width
        if causal or window:
            key = torch.arange(width, device=device)
            query = key[width - self.queries.width :, None]
            far = (query - key).abs() >= (window or width)
            seen = ~(far | (key > query) if causal else far)[None]
        if self.keys.spots is not None and not causal:  # causal rows never see the padding behind them
            real = torch.zeros(rows * width, dtype=torch.bool, device=device).index_fill(0, self.keys.spots, True).view(rows, 1, width)
            seen = real if seen is None else seen & real | torch.eye(width, dtype=torch.bool, device=device)
        return None if seen is None else torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))


@dataclass(frozen=True)
class Layout:
    """How one packed batch lies: buckets over the tokens in the `order` of their rows' length, and `back`; None where rows come so.

    Behind the rows lie `filler` tokens of no row, which attend to nothing. With `stems`, tokens that several rows share lie there once: `order` names the keys
    of whole rows, so those more than once, and `asks` each token once, as a query of the row that is the first to have it.
    """

    lengths: tuple[int, ...]
    buckets: tuple[Bucket, ...]
    order: Tensor | None
    asks: Tensor | None  # `order` without stems
    back: Tensor | None
    positions: Tensor  # (1, N)
    bounds: Tensor  # (B + 1,) int32, for kernels that take cumulative lengths
    filler: int = 0
    stems: Stems | None = None


@lru_cache(maxsize=64)
def layout(lengths: tuple[int, ...], first_position: int, device: torch.device, filler: int = 0) -> Layout:
    """The layout of rows of these lengths, whose positions count from `first_position`, and of filler tokens behind them, all at the first."""
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    order = back = None
    if by_length != list(range(len(lengths))):
        spans = torch.arange(sum(lengths) + filler).split([*lengths, filler])
        order = torch.cat([*(spans[i] for i in by_length), spans[-1]])
        order, back = order.to(device), order.argsort().to(device)
    positions = torch.cat([*(torch.arange(n) for n in lengths), torch.zeros(filler, dtype=torch.long)]) + first_position
    buckets = tuple(group([(0, lengths[i]) for i in by_length], device))
    return Layout(lengths, buckets, order, order, back, positions[None].to(device), bounds_of(lengths, 0, device), filler)


def shared(lay: Layout, stems: Stems, filler: int) -> Layout:
    """The layout (without filler) of the same rows where a beginning that some have in common lies there once, and asks once."""
    device, tokens = stems.kept.device, len(stems.kept)
    spans = [(n - own, n) for n, own in zip(lay.lengths, stems.own, strict=True)]
    asking = sorted((i for i, own in enumerate(stems.own) if own), key=spans.__getitem__)  # not those who are the beginning of another
    whole, own = stems.copies.split(lay.lengths), torch.arange(tokens, device=device).split(stems.own)
    behind, first = torch.arange(tokens, tokens + filler, device=device), lay.positions[:, :1]
    asks = torch.cat([*(own[i] for i in asking), behind])
    return replace(
        lay,
        buckets=tuple(group([spans[i] for i in asking], device)),
        order=torch.cat([*(whole[i] for i in asking), behind]),
        asks=asks,
        back=asks.argsort(),
        positions=torch.cat([lay.positions[:, stems.kept], first.expand(1, filler)], 1),
        filler=filler,
        stems=stems,
    )


def group(spans: Sequence[tuple[int, int]], device: torch.device) -> Iterator[Bucket]:
    """Rows by the sorted spans of their queries, cut into buckets so that padded score cells plus the cost of each call are least. Keys are all up to a span's end."""
    key = query = 0
    for start, stop in pairwise([0, *cheapest_cuts(spans)]):
        asked = spans[start:stop]
        whole = [(0, end) for _, end in asked]
        width = max(end for _, end in asked)
        keys = cells(whole, key, 0, width, device)
        queries = keys if query == key and asked == whole else cells(asked, query, asked[0][0], width, device)
        yield Bucket(keys, queries)
        key, query = keys.stop, queries.stop


def cells(spans: Sequence[tuple[int, int]], start: int, first: int, width: int, device: torch.device) -> Cells:
    """Of rows whose tokens, from the `start`-th on, are in these spans of the columns first:width."""
    wide, tokens = width - first, sum(end - begin for begin, end in spans)
    spots = None
    if tokens < wide * len(spans):
        spots = torch.cat([torch.arange(begin, end) + (i * wide - first) for i, (begin, end) in enumerate(spans)]).to(device)
    return Cells(start, start + tokens, len(spans), wide, spots)


def cheapest_cuts(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Where to cut sorted spans, by dynamic programming over the places where they change: O(distinct^2). A row of a bucket costs its queries times its keys."""
    starts = [0, *(i + 1 for i, span in enumerate(spans) if i + 1 == len(spans) or spans[i + 1] != span)]
    best: list[tuple[float, int]] = [(0.0, 0)]
    for j in range(1, len(starts)):
        width, found = 0, []
        for i in reversed(range(j)):
            first, end = spans[starts[i]]
            width = max(width, end)
            found.append((best[i][0] + width * (width - first) * (starts[j] - starts[i]) + CALL_COST, i))
        best.append(min(found))
    cuts, j = [], len(starts) - 1
    while j:
        cuts.append(starts[j])
        j = best[j][1]
    return cuts[::-1]


def spread(x: Tensor, of: Cells) -> Tensor:
    """(n, heads, d) -> (rows, width, heads, d)."""
    flat = x if of.spots is None else Scatter.apply(x, of.spots, of.rows * of.width)
    return flat.reshape(of.rows, of.width, *x.shape[1:])


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
