"""Log-probabilities of labels under a large vocabulary, without ever holding all logits in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

CHUNK = 4_000_000  # logits formed at a time
ON_GPU = 32  # times as many there, half a gigabyte, so that a product fills it; measured, see docs/LOG.md
rehearsed: ContextVar[bool] = ContextVar("rehearsed", default=False)  # as if on a GPU
KEEP = 64_000_000  # logits whose softmax may be kept for the backward pass; above, they are formed again


class LabelLogp(torch.autograd.Function):
    """logp[m] = log softmax(cap(h[m] W^T + b) / temperature)[label[m]], in chunks of rows.

    h (M, D), W (V, D), b (V) or None, label (M) -> (M,) fp32. `cap` is Gemma's c tanh(x / c). Keeps the softmax where it is small, to be
    turned into its own gradient where it stands, and forms it again where it is large; a frozen W costs no gradient.
    """

    @staticmethod
    def forward(ctx, h: Tensor, weight: Tensor, bias: Tensor | None, label: Tensor, cap: float | None, heat: float, learns: bool):
        step, w = at_once(weight), weight.to(h.dtype)
        logp = h.new_empty(len(h), dtype=torch.float32)
        keeps = learns and cap is None and len(h) * len(weight) <= KEEP
        kept = h.new_empty(len(h), len(weight)) if keeps else None
        for rows in chunks(len(h), step):
            logits = heated(logits_of(h[rows], w, bias, cap), heat)
            chosen = logits.gather(-1, label[rows, None])[:, 0]
            norm = logits.logsumexp(-1)
            logp[rows] = chosen - norm
            if kept is not None:
                kept[rows] = soften_(logits, norm)
        ctx.save_for_backward(h, weight, *(() if bias is None else (bias,)), label)
        ctx.kept, ctx.cap, ctx.heat, ctx.step = kept, cap, heat, step
        return logp

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        h, weight, *rest = ctx.saved_tensors
        bias, label = (rest[0], rest[1]) if len(rest) == 2 else (None, rest[0])
        w, grad = weight.to(h.dtype), heated(grad, ctx.heat)
        dh, dw, db = torch.zeros_like(h), torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None, None
        db = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        kept, ctx.kept = ctx.kept, None  # spent; a second backward pass forms it again
        for rows in chunks(len(h), ctx.step if kept is None else len(h)):
            p, slope = (kept, None) if kept is not None else again(h[rows], w, bias, ctx.cap, ctx.heat)
            d = d_logits_(p, label[rows], grad[rows], slope)
            dh[rows] = d @ w
            if dw is not None:
                dw += d.mT @ h[rows]
            if db is not None:
                db += d.sum(0)
        return dh, dw if dw is None else dw.to(weight.dtype), db if bias is None or db is None else db.to(bias.dtype), None, None, None, None


def at_once(weight: Tensor) -> int:
    """Rows whose logits are formed at a time."""
    return max(1, CHUNK * (ON_GPU if weight.is_cuda or rehearsed.get() else 1) // len(weight))


@contextmanager
def as_on(device: torch.device) -> Iterator[None]:
    """Within, as much is formed at a time as on this device, though the tensors claim to lie on the CPU."""
    token = rehearsed.set(device.type == "cuda")
    try:
        yield
    finally:
        rehearsed.reset(token)


def chunks(rows: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, rows, max(step, 1))]


def logits_of(h: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None) -> Tensor:
    """(m, V) fp32."""
    raw = torch.nn.functional.linear(h, weight.to(h.dtype), bias if bias is None else bias.to(h.dtype)).float()
    return raw if cap is None else cap * torch.tanh(raw / cap)


def heated(x: Tensor, temperature: float) -> Tensor:
    return x if temperature == 1 else x / temperature


def soften_(logits: Tensor, norm: Tensor) -> Tensor:
    """Logits (m, V) become their softmax, where they stand; norm (m,) is their logsumexp."""
    return logits.sub_(norm[:, None]).exp_()


def again(h: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None, heat: float) -> tuple[Tensor, Tensor | None]:
    """Softmax (m, V), and the slope of the soft cap where there is one."""
    logits = logits_of(h, weight, bias, cap)
    slope = None if cap is None else (1 - (logits / cap) ** 2).to(h.dtype)
    logits = heated(logits, heat)
    return soften_(logits, logits.logsumexp(-1)).to(h.dtype), slope


def d_logits_(p: Tensor, label: Tensor, grad: Tensor, slope: Tensor | None) -> Tensor:
    """d logp / d raw logits, times the incoming gradient, in the softmax's own place: (onehot - p) grad, and the slope of the soft cap."""
    p.neg_().scatter_add_(-1, label[:, None], torch.ones_like(p[:, :1])).mul_(grad[:, None].to(p.dtype))
    return p if slope is None else p.mul_(slope)


def label_logp(h: Tensor, weight: Tensor, bias: Tensor | None, label: Tensor, cap: float | None = None, temperature: float = 1.0) -> Tensor:
    """(M,) fp32; see LabelLogp."""
    return LabelLogp.apply(h, weight, bias, label, cap, temperature, torch.is_grad_enabled())  # type: ignore[return-value]
