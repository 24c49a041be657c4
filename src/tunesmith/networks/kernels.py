"""Attention kernels: what is computed inside one bucket. Which is fastest is measured (precision.py)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .dropout import dropout as drop
from .layout import Gather, Layout, bounds_of, with_prompt


@dataclass(frozen=True)
class Rules:
    """What an architecture asks of its attention."""

    scale: float
    causal: bool
    window: int
    softcap: float | None
    dropout: float


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, Rules], Tensor]


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


@cache
def options_of(function: Callable[..., object]) -> frozenset[str]:
    """The names of its parameters, which differ between versions of torch."""
    return frozenset(inspect.signature(function).parameters)


def varlen(q: Tensor, k: Tensor, v: Tensor, lay: Layout, rules: Rules, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
    """CUDA, torch >= 2.10: no bucket and no padding at all. (N, H, d). A prefix lies before the keys of each row; the kernel counts who is seen from the end."""
    from torch.nn.attention.varlen import varlen_attn

    known = options_of(varlen_attn)
    groups, longest, before, bounds = q.shape[1] // k.shape[1], max(lay.lengths), 0, lay.bounds
    if prefix is not None:
        before = len(prefix[0])
        order = with_prompt(lay.lengths, before, q.device)
        k, v = (Gather.apply(torch.cat([rows.repeat(len(lay.lengths), 1, 1), x]), order) for rows, x in zip(prefix, (k, v), strict=True))
        bounds = bounds_of(lay.lengths, before, q.device)
    extra: dict[str, object] = {"scale": rules.scale} if "scale" in known else {}
    if "window_size" in known:
        extra["window_size"] = (rules.window - 1 if rules.window else -1, 0 if rules.causal else rules.window - 1 if rules.window else -1)
    else:
        extra["is_causal"] = rules.causal
    if groups > 1 and "enable_gqa" in known:
        extra["enable_gqa"] = True
    elif groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return varlen_attn(q, k, v, lay.bounds, bounds, longest, longest + before, **extra)  # type: ignore[return-value]


def takes(rules: Rules, prefix: tuple[Tensor, Tensor] | None) -> bool:
    """Whether `varlen` can do this: it has no soft cap and no dropout, and a window would shut the prefix out."""
    return rules.softcap is None and not rules.dropout and not (rules.window and prefix is not None)
