"""Attention over packed rows, and over a prefix, for any class that asks transformers' AttentionInterface for its kernel.

Tokens of all rows lie end to end, (1, heads, N, d); the rows are grouped into buckets of like length, and padding exists only
inside a bucket's kernel. Where a model cannot run packed, the same function serves the padded batch, so that a prefix works
there too. Positions, masks and indices depend on the lengths alone and are made once per batch, not once per layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from .kernels import KERNELS, Kernel, Rules, by_matmul, by_sdpa, takes, varlen
from .layout import Bucket, Gather, Layout, Share, spread
from .memory import Memory

NAME = "tunesmith"  # under which the functions are registered with transformers
NO_MASK: ContextVar[bool] = ContextVar("no_mask", default=False)


# ------------------------------------------------------------------------------------------------ what an attention module knows


@dataclass
class Room:
    """What the modules of one network share: the current layout, the prefix, (2 layers, p, kv heads, d), and whose rows pass: a task with a head, or nobody's."""

    layout: Layout | None = None
    prefix: Tensor | None = None
    task: str = ""
    kernel: str = "matmul"
    heard: list[Sound] | None = None  # while somebody listens to the attention
    watched: bool = False  # while somebody looks at what passes on the way: every row passes by itself
    memory: Memory | None = None  # while rows are written: what they have said so far; each brings one token a pass

    def again(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """For gradient checkpointing: nothing at the first pass; at the second, what this room holds now."""
        return nullcontext(), self.as_of(self.layout, self.prefix, self.task)

    @contextmanager
    def as_of(self, lay: Layout | None, prefix: Tensor | None, task: str) -> Iterator[None]:
        here = self.layout, self.prefix, self.task
        self.layout, self.prefix, self.task = lay, prefix, task
        try:
            yield
        finally:
            self.layout, self.prefix, self.task = here

    @contextmanager
    def watching(self) -> Iterator[None]:
        was, self.watched = self.watched, True
        try:
            yield
        finally:
            self.watched = was

    def __deepcopy__(self, memo: dict) -> Room:
        """A copied network shares nothing with the last batch of the first."""
        return Room(kernel=self.kernel)


@dataclass(frozen=True)
class Sound:
    """What an attention module was called with: query (., H, ., d), key and value (., kv heads, ., d), positions already turned in."""

    seat: int
    query: Tensor
    key: Tensor
    value: Tensor


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
        seat.room.heard.append(Sound(seat.index, query, key, value))
    if seat and seat.room.memory:
        return seat.room.memory.attend(seat.index, query[0], key[0], value[0], rules), None
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
    if room.kernel == "varlen" and takes(rules, prefix):
        if lay.stems is None:
            return varlen(q, k, v, lay, rules, prefix)[None]
        q, k, v = (Share.apply(x, lay.stems.copies) for x in (q, k, v))
        return Gather.apply(varlen(q, k, v, lay, rules, prefix), lay.stems.kept)[None]
    if lay.order is not None:
        gather = Gather if lay.stems is None else Share
        q, k, v = Gather.apply(q, lay.asks), gather.apply(k, lay.order), gather.apply(v, lay.order)
    kernel = KERNELS["sdpa" if room.kernel == "varlen" else room.kernel]
    asked = [bucket.queries.stop - bucket.queries.start for bucket in lay.buckets] + [lay.filler]
    known = [bucket.keys.stop - bucket.keys.start for bucket in lay.buckets] + [lay.filler]
    *pieces, rest = zip(q.split(asked), k.split(known), v.split(known), strict=True)  # split's backward is one pass, slices' would be one of all tokens each
    parts = [one_bucket(piece, bucket, kernel, rules, prefix) for piece, bucket in zip(pieces, lay.buckets, strict=True)]
    parts += [rest[2].new_zeros(lay.filler, *parts[0].shape[1:])] if lay.filler else []
    out = torch.cat(parts) if len(parts) > 1 else parts[0]
    return (out if lay.back is None else Gather.apply(out, lay.back))[None]


def one_bucket(qkv: tuple[Tensor, ...], bucket: Bucket, kernel: Kernel, rules: Rules, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
    """(n, H, d) for the n queries of one bucket."""
    cells = (bucket.queries, bucket.keys, bucket.keys)
    q, k, v = (spread(x, of).transpose(1, 2) for x, of in zip(qkv, cells, strict=True))  # (rows, heads, width, d)
    mask = bucket.mask(rules.causal, rules.window, q.dtype, q.device)
    k, v, mask = with_prefix(k, v, mask, prefix)
    out = kernel(q, k, v, mask if mask is None else mask[:, None], rules).transpose(1, 2).flatten(0, 1)  # (rows * width, H, d)
    return out if bucket.queries.spots is None else Gather.apply(out, bucket.queries.spots)


def with_prefix(k: Tensor, v: Tensor, mask: Tensor | None, prefix: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values (p, kv heads, d) put before those of each row; every query sees them."""
    if prefix is None:
        return k, v, mask
    k, v = (torch.cat([rows.transpose(0, 1).expand(len(x), -1, -1, -1), x], 2) for rows, x in zip(prefix, (k, v), strict=True))
    return k, v, None if mask is None else F.pad(mask, (len(prefix[0]), 0))


def padded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, rules: Rules, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
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
