"""Attention over packed rows, and over a prefix, for any class that asks transformers' AttentionInterface for its kernel.

Tokens of all rows lie end to end, (1, heads, N, d); the rows are grouped into buckets of like length, and padding exists only
inside a bucket's kernel. Where a model cannot run packed, the same function serves the padded batch, so that a prefix works
there too. Positions, masks and indices depend on the lengths alone and are made once per batch, not once per layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from .dropout import dropout as drop

NAME = "tunesmith"  # under which the functions are registered with transformers
CALL_COST = 24_000  # what a further bucket costs, in cells of a score matrix; measured, see docs/LOG.md
NO_MASK: ContextVar[bool] = ContextVar("no_mask", default=False)


# ------------------------------------------------------------------------------------------------ where the rows lie


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
    """How one packed batch lies: buckets over the tokens in order of row length; `order`/`back` where rows come unsorted."""

    lengths: tuple[int, ...]
    buckets: tuple[Bucket, ...]
    order: Tensor | None
    back: Tensor | None
    positions: Tensor  # (1, N)
    bounds: Tensor  # (B + 1,) int32, for kernels that take cumulative lengths


@lru_cache(maxsize=64)
def layout(lengths: tuple[int, ...], first_position: int, device: torch.device) -> Layout:
    """The layout of rows of these lengths, whose positions count from `first_position`."""
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    order = None
    if by_length != list(range(len(lengths))):
        spans = torch.arange(sum(lengths)).split(list(lengths))
        order = torch.cat([spans[i] for i in by_length])
    positions = torch.cat([torch.arange(n) for n in lengths]) + first_position
    bounds = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    buckets = tuple(group(tuple(sorted(lengths)), device))
    back = None if order is None else order.argsort().to(device)
    return Layout(lengths, buckets, None if order is None else order.to(device), back, positions[None].to(device), bounds.to(device))


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


# ------------------------------------------------------------------------------------------------ what an attention module knows


@dataclass
class Room:
    """What all attention modules of one network share: the current layout and the prefix, (2 layers, p, kv heads, d)."""

    layout: Layout | None = None
    prefix: Tensor | None = None
    kernel: str = "matmul"
    heard: list[tuple[Tensor, Tensor]] | None = None  # keys and values, while somebody listens

    def again(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """For gradient checkpointing: nothing at the first pass; at the second, what this room holds now."""
        return nullcontext(), self.as_of(self.layout, self.prefix)

    @contextmanager
    def as_of(self, lay: Layout | None, prefix: Tensor | None) -> Iterator[None]:
        here = self.layout, self.prefix
        self.layout, self.prefix = lay, prefix
        try:
            yield
        finally:
            self.layout, self.prefix = here

    def __deepcopy__(self, memo: dict) -> Room:
        """A copied network shares nothing with the last batch of the first."""
        return Room(kernel=self.kernel)


@dataclass(frozen=True)
class Seat:
    """The place of one attention module in its network: the prefix's keys are at 2 index, its values at 2 index + 1."""

    room: Room
    index: int

    def prefix(self) -> tuple[Tensor, Tensor] | None:
        rows = self.room.prefix
        return None if rows is None else (rows[2 * self.index], rows[2 * self.index + 1])


@contextmanager
def packed_masks() -> Iterator[None]:
    """While this lasts, models build no mask: the layout says who sees whom."""
    token = NO_MASK.set(True)
    try:
        yield
    finally:
        NO_MASK.reset(token)


def mask_function(*args, **kwargs) -> Tensor | None:  # the signature is transformers'
    if NO_MASK.get():
        return None
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


# ------------------------------------------------------------------------------------------------ the attention function


@dataclass(frozen=True)
class Rules:
    """What an architecture asks of its attention."""

    scale: float
    causal: bool
    window: int
    softcap: float | None
    dropout: float


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """What transformers calls: query (1, H, N, d) packed or (B, H, L, d) padded -> (1, N, H, d) or (B, L, H, d)."""
    seat: Seat | None = module.__dict__.get("seat")
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    rules = Rules(scaling or query.shape[-1] ** -0.5, causal, sliding_window or 0, softcap, dropout)
    prefix = seat.prefix() if seat else None
    if seat and seat.room.heard is not None:
        seat.room.heard.append((key, value))
    if seat and seat.room.layout and NO_MASK.get() | (attention_mask is None and query.shape[0] == 1):
        return packed(query, key, value, seat.room, rules, prefix), None
    return padded(query, key, value, attention_mask, position_bias, rules, prefix).transpose(1, 2), None


def packed(query: Tensor, key: Tensor, value: Tensor, room: Room, rules: Rules, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
    """(1, N, H, d): every row attends to itself, and to the prefix, only."""
    lay, dtype = room.layout, torch.get_autocast_dtype(query.device.type) if torch.is_autocast_enabled(query.device.type) else value.dtype
    assert lay is not None
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))  # (N, heads, d)
    if prefix is not None:
        prefix = (prefix[0].to(dtype), prefix[1].to(dtype))
    if room.kernel == "varlen" and prefix is None and rules.softcap is None and not rules.dropout:
        return varlen(q, k, v, lay, rules)[None]
    if lay.order is not None:
        q, k, v = q[lay.order], k[lay.order], v[lay.order]
    kernel = KERNELS["matmul" if room.kernel == "varlen" else room.kernel]
    parts = [one_bucket(q, k, v, bucket, kernel, rules, prefix) for bucket in lay.buckets]
    out = torch.cat(parts) if len(parts) > 1 else parts[0]
    return (out if lay.back is None else out[lay.back])[None]


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, Rules], Tensor]


def one_bucket(q: Tensor, k: Tensor, v: Tensor, bucket: Bucket, kernel: Kernel, rules: Rules, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
    """(n, H, d) for the n tokens of one bucket."""
    q, k, v = (spread(x[bucket.start : bucket.stop], bucket).transpose(1, 2) for x in (q, k, v))  # (rows, heads, width, d)
    mask = bucket.mask(rules.causal, rules.window, q.dtype, q.device)
    k, v, mask = with_prefix(k, v, mask, prefix)
    out = kernel(q, k, v, mask if mask is None else mask[:, None], rules).transpose(1, 2).flatten(0, 1)  # (rows * width, H, d)
    return out if bucket.spots is None else Gather.apply(out, bucket.spots)


def with_prefix(k: Tensor, v: Tensor, mask: Tensor | None, prefix: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values (p, kv heads, d) put before those of each row; every query sees them."""
    if prefix is None:
        return k, v, mask
    k, v = (torch.cat([rows.transpose(0, 1).expand(len(x), -1, -1, -1), x], 2) for rows, x in zip(prefix, (k, v), strict=True))
    return k, v, None if mask is None else F.pad(mask, (len(prefix[0]), 0))


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


# ------------------------------------------------------------------------------------------------ kernels


def by_matmul(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rules: Rules) -> Tensor:
    """Two batched products and a softmax; heads that share keys are rows of one product. q (B, H, L, d) -> the same shape."""
    rows, heads, length, dim = q.shape
    kv, groups = k.shape[1], heads // k.shape[1]
    q = q.reshape(rows * kv, groups * length, dim)
    k, v = k.reshape(rows * kv, -1, dim), v.reshape(rows * kv, -1, dim)
    mask = None if mask is None else by_head(mask, rows, kv, groups)
    if mask is None or rules.softcap is not None:
        scores = torch.bmm(q * rules.scale, k.mT)
        scores = scores if rules.softcap is None else rules.softcap * torch.tanh(scores / rules.softcap)
        scores = scores if mask is None else scores + mask
    else:
        scores = torch.baddbmm(mask, q, k.mT, alpha=rules.scale)
    weights = scores.softmax(-1)
    weights = drop(weights, rules.dropout) if rules.dropout else weights
    return torch.bmm(weights.to(v.dtype), v).view(rows, kv, groups * length, dim).view(rows, heads, length, dim)


def by_head(mask: Tensor, rows: int, kv: int, groups: int) -> Tensor:
    """(rows or 1, 1, L or 1, keys) -> what broadcasts over scores (rows * kv, groups * L, keys)."""
    mask = mask.repeat(1, 1, groups, 1) if mask.shape[2] > 1 else mask
    return mask[0] if len(mask) == 1 else mask.expand(rows, kv, -1, -1).reshape(rows * kv, *mask.shape[2:])


def by_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rules: Rules) -> Tensor:
    """torch's fused kernel, which has no soft cap."""
    if rules.softcap is not None:
        return by_matmul(q, k, v, mask, rules)
    return F.scaled_dot_product_attention(q, k, v, mask, rules.dropout, scale=rules.scale, enable_gqa=q.shape[1] != k.shape[1])


KERNELS: dict[str, Kernel] = {"matmul": by_matmul, "sdpa": by_sdpa}


def varlen(q: Tensor, k: Tensor, v: Tensor, lay: Layout, rules: Rules) -> Tensor:
    """CUDA, torch >= 2.10: no bucket and no padding at all. (N, H, d)."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    groups, longest = q.shape[1] // k.shape[1], max(lay.lengths)
    extra: dict[str, object] = {"scale": rules.scale} if "scale" in known else {}
    if "window_size" in known:
        extra["window_size"] = (rules.window - 1 if rules.window else -1, 0 if rules.causal else rules.window - 1 if rules.window else -1)
    else:
        extra["is_causal"] = rules.causal
    if groups > 1 and "enable_gqa" in known:
        extra["enable_gqa"] = True
    elif groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return varlen_attn(q, k, v, lay.bounds, lay.bounds, longest, longest, **extra)  # type: ignore[return-value]


def padded(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, rules: Rules, prefix: tuple[Tensor, Tensor] | None
) -> Tensor:
    """(B, H, L, d). `mask` is boolean (True: may look) or additive; `bias` (1 or B, H, L, keys) is added to the scores (T5)."""
    if mask is None and rules.causal and q.shape[2] > 1:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])[None, None]
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, torch.finfo(q.dtype).min)
    if bias is not None:
        mask = bias if mask is None else bias + mask
    if prefix is not None:
        rows = tuple(x.to(v.dtype).transpose(0, 1).expand(len(k), -1, -1, -1) for x in prefix)
        k, v = torch.cat([rows[0], k], 2), torch.cat([rows[1], v], 2)
        mask = None if mask is None else F.pad(mask, (len(prefix[0]), 0))
    mask = None if mask is None else mask.to(q.dtype).expand(-1, q.shape[1], -1, -1) if mask.shape[1] > 1 else mask.to(q.dtype)
    if rules.softcap is None or mask is None or mask.shape[1] > 1:
        return by_sdpa(q, k.to(q.dtype), v.to(q.dtype), mask, rules)
    return by_matmul(q, k.to(q.dtype), v.to(q.dtype), mask, rules)


def register() -> None:
    """Tell transformers about the two functions. Idempotent."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask_function)
