"""Log-probabilities of labels under a large vocabulary, without ever holding all logits in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 4_000_000  # logits formed at a time
KEEP = 64_000_000  # logits whose softmax may be kept for the backward pass; above, they are formed again


class LabelLogp(torch.autograd.Function):
    """logp[m] = log softmax(cap(h[m] W^T + b) / temperature)[label[m]], in chunks of rows.

    h (M, D), W (V, D), b (V) or None, label (M) -> (M,) fp32. `cap` is Gemma's c tanh(x / c). Saves the softmax where it is
    small and forms it again where it is large; a frozen W costs no gradient.
    """

    @staticmethod
    def forward(ctx, h: Tensor, weight: Tensor, bias: Tensor | None, label: Tensor, cap: float | None, heat: float, learns: bool):
        step, w = max(1, CHUNK // len(weight)), weight.to(h.dtype)
        logp = h.new_empty(len(h), dtype=torch.float32)
        kept = h.new_empty(len(h), len(weight)) if len(h) * len(weight) <= KEEP and learns else None
        for rows in chunks(len(h), step):
            logits = heated(logits_of(h[rows], w, bias, cap), heat)
            chosen = logits.gather(-1, label[rows, None])[:, 0]
            norm = logits.logsumexp(-1)
            logp[rows] = chosen - norm
            if kept is not None:
                kept[rows] = pull(logits, norm).to(h.dtype)
        ctx.save_for_backward(h, weight, *(() if bias is None else (bias,)), label)
        ctx.kept, ctx.cap, ctx.heat, ctx.step = kept, cap, heat, step
        return logp

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        h, weight, *rest = ctx.saved_tensors
        bias, label = (rest[0], rest[1]) if len(rest) == 2 else (None, rest[0])
        w = weight.to(h.dtype)
        dh, dw, db = torch.zeros_like(h), torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None, None
        db = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        for rows in chunks(len(h), ctx.step):
            d = ctx.kept[rows] if ctx.kept is not None else again(h[rows], w, bias, ctx.cap, ctx.heat)
            d = d_logits(d, label[rows], heated(grad[rows], ctx.heat), ctx.cap, h[rows], w, bias)
            dh[rows] = d @ w
            if dw is not None:
                dw += d.mT @ h[rows]
            if db is not None:
                db += d.sum(0)
        return dh, dw if dw is None else dw.to(weight.dtype), db if bias is None or db is None else db.to(bias.dtype), None, None, None, None


def chunks(rows: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, rows, step)]


def logits_of(h: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None) -> Tensor:
    """(m, V) fp32."""
    raw = torch.nn.functional.linear(h, weight.to(h.dtype), bias if bias is None else bias.to(h.dtype)).float()
    return raw if cap is None else cap * torch.tanh(raw / cap)


def heated(x: Tensor, temperature: float) -> Tensor:
    return x if temperature == 1 else x / temperature


def pull(logits: Tensor, norm: Tensor) -> Tensor:
    """softmax(logits), what the backward pass needs. (m, V)."""
    return (logits - norm[:, None]).exp_()


def again(h: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None, heat: float) -> Tensor:
    logits = heated(logits_of(h, weight, bias, cap), heat)
    return pull(logits, logits.logsumexp(-1)).to(h.dtype)


def d_logits(p: Tensor, label: Tensor, grad: Tensor, cap: float | None, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """d logp / d raw logits, times the incoming gradient: (onehot - p) grad, and the slope of the soft cap."""
    d = p.neg().scatter_add_(-1, label[:, None], torch.ones_like(p[:, :1])) * grad[:, None].to(p.dtype)
    return d if cap is None else d * (1 - (logits_of(h, weight, bias, cap) / cap) ** 2).to(d.dtype)


def label_logp(h: Tensor, weight: Tensor, bias: Tensor | None, label: Tensor, cap: float | None = None, temperature: float = 1.0) -> Tensor:
    """(M,) fp32; see LabelLogp."""
    return LabelLogp.apply(h, weight, bias, label, cap, temperature, torch.is_grad_enabled())  # type: ignore[return-value]
