"""A large vocabulary as a few tokens and the rest: log-probabilities of buckets, without ever holding all logits of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Buckets
from .vocabulary import at_once, chunks, logits_of


class BucketLogp(torch.autograd.Function):
    """h (M, D), W (V, D), ids (M, K) or K -> ids (M, K), logp (M, K + 1), own (M,); see core's Buckets. Both passes form the logits, in chunks of rows.

    The mass of all other tokens is summed from their own logits, not taken as one minus the rest: it has no rounding error of its own.
    """

    @staticmethod
    def forward(ctx, h: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor | int, label: Tensor, temperature: float, cap: float | None):
        w, step = weight.to(h.dtype), at_once(weight)
        found = [
            buckets_of(logits_of(h[rows], w, bias, cap), ids if isinstance(ids, int) else ids[rows], label[rows], temperature) for rows in chunks(len(h), step)
        ]
        chosen, logp, own = (torch.cat(parts) for parts in zip(*found, strict=True)) if found else empty(h, ids, len(weight))
        ctx.save_for_backward(h, weight, chosen, label, logp, *(() if bias is None else (bias,)))
        ctx.temperature, ctx.cap, ctx.step = temperature, cap, step
        ctx.mark_non_differentiable(chosen)
        return chosen, logp, own

    @staticmethod
    def backward(ctx, _, grad: Tensor, own: Tensor):  # type: ignore[override]
        h, weight, ids, label, logp, *rest = ctx.saved_tensors
        bias, w = rest[0] if rest else None, weight.to(h.dtype)
        dh, dw = torch.zeros_like(h), torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        db = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        for rows in chunks(len(h), ctx.step):
            logits = logits_of(h[rows], w, bias, ctx.cap)
            d = d_logits(logits, ids[rows], label[rows], logp[rows], grad[rows], own[rows], ctx.temperature)
            d = (d if ctx.cap is None else d * (1 - (logits / ctx.cap) ** 2)).to(h.dtype)
            dh[rows] = d @ w
            if dw is not None:
                dw += d.mT @ h[rows]
            if db is not None:
                db += d.sum(0)
        return dh, dw if dw is None else dw.to(weight.dtype), db if bias is None or db is None else db.to(bias.dtype), None, None, None, None


def empty(h: Tensor, ids: Tensor | int, vocabulary: int) -> Buckets:
    k = ids if isinstance(ids, int) else ids.shape[1]
    return Buckets(torch.zeros(0, k, dtype=torch.long, device=h.device), h.new_zeros(0, k + (k < vocabulary), dtype=torch.float32), h.new_zeros(0))


def buckets_of(logits: Tensor, ids: Tensor | int, label: Tensor, temperature: float) -> Buckets:
    """Of logits (m, V); differentiable by itself."""
    own = logits.log_softmax(-1).gather(-1, label.clamp(min=0)[:, None])[:, 0]
    logp = (logits / temperature).log_softmax(-1)
    ids = logits.topk(min(ids, logits.shape[-1])).indices if isinstance(ids, int) else ids
    chosen = logp.gather(-1, ids)
    if ids.shape[-1] == logits.shape[-1]:
        return Buckets(ids, chosen, own)
    rest = logp.scatter(-1, ids, -torch.inf).logsumexp(-1)
    return Buckets(ids, torch.cat([chosen, rest[:, None]], -1), own)


def d_logits(logits: Tensor, ids: Tensor, label: Tensor, logp: Tensor, grad: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Of the buckets: onehot a token, the others' share of their sum, less the softmax for each; and the same for the label."""
    cold = (logits / temperature).log_softmax(-1)
    d = -cold.exp() * grad.sum(-1, keepdim=True)
    if grad.shape[-1] > ids.shape[-1]:
        d += (cold - logp[:, -1:]).scatter(-1, ids, -torch.inf).exp() * grad[:, -1:]
    d = d.scatter_add(-1, ids, grad[:, : ids.shape[-1]]) / temperature
    d -= logits.softmax(-1) * own[:, None]
    return d.scatter_add(-1, label.clamp(min=0)[:, None], own[:, None])


def bucket_logp(h: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor | int, label: Tensor, temperature: float, cap: float | None = None) -> Buckets:
    return Buckets(*BucketLogp.apply(h, weight, bias, ids, label, temperature, cap))  # type: ignore[misc]
