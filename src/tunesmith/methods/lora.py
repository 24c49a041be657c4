"""LoRA and its kin: a low-rank change to weight matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from ..core import Graft, Insert, Method, Network
from ..errors import Refusal
from .linear import as_stored, features, find, quantised, weight_of


@dataclass(frozen=True)
class LoRA(Method):
    """W x + s B A x; A (rank, in) is random, B (out, rank) starts at zero (Hu et al. 2022, eq. 3).

    targets   `all` linear layers of the blocks, or roles (query, value, up ...) or names (q_proj ...)
    alpha     s = alpha / rank, or alpha / sqrt(rank) with `rslora` (Kalajdzievski 2023)
    dora      the change moves the direction of W's rows, a trained vector their length (Liu et al. 2024, eq. 5; norm detached, 4.3)
    start     `pissa`: A and B start as W's leading singular vectors (Meng et al. 2024). We leave W itself alone and subtract the
              starting product instead, which is the same function and lets the base be given back
    ratio     learning rate of B over that of A (LoRA+, Hayou et al. 2024: 16)
    dropout   on the low-rank branch only; 0 takes the fused path
    """

    rank: Annotated[int, Ge(1)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    targets: tuple[str, ...] = ("all",)
    rslora: bool = False
    dora: bool = False
    start: Literal["zero", "pissa"] = "zero"
    ratio: Annotated[float, Gt(0)] = 1.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0

    paper: ClassVar[str] = "Hu et al. 2022, https://arxiv.org/abs/2106.09685"
    merges: ClassVar[bool] = True
    matrices: ClassVar[bool] = True
    rates: ClassVar[Mapping[str, float]] = {"encoder": 2e-3, "decoder": 2e-4, "seq2seq": 2e-3}

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def refuse(self, net: Network) -> None:
        hosts = [net.get_submodule(path) for path in find(net, self.targets)]
        if (self.dora or self.start == "pissa") and any(quantised(host) for host in hosts):
            which = "dora" if self.dora else "start: pissa"
            raise Refusal(f"{which} reads the base weights, and these are stored in 4 or 8 bits", where="method", fix="plain lora works on a quantised base")
        small = min(min(features(host)) for host in hosts)
        if self.rank > small:
            raise Refusal(f"rank {self.rank} exceeds the smallest side ({small}) of a target", where="method.rank", fix=f"at most {small}, usually 4 to 64")

    def inject(self, net: Network) -> list[Insert]:
        inserts = [self.one(net.get_submodule(path)) for path in find(net, self.targets)]
        packed = any(quantised(insert.host) for insert in inserts)
        for insert in inserts:
            insert.packed = packed
        return list(inserts)

    def one(self, host: nn.Module) -> LowRank:
        insert = LowRank(host, self)
        insert.graft(host, "lora")
        return insert

    def trains(self, name: str, net: Network) -> bool:
        return name.endswith((".lora.A", ".lora.B", ".lora.m"))

    def pace(self, name: str, net: Network) -> float:
        return self.ratio if name.endswith(".lora.B") else 1.0


class LowRank(Graft):
    """A (rank, in), B (out, rank); m (out) for DoRA; A0 and B0 what PiSSA started from."""

    packed: bool = False  # some host of the network is quantised, so that none may fold: a network is never half merged

    def __init__(self, host: nn.Module, method: LoRA):
        super().__init__()
        width, out = features(host)
        device: torch.device = host.weight.device  # type: ignore[assignment]
        self.scale, self.p = method.scale, method.dropout
        drawn = nn.init.kaiming_uniform_(torch.empty(method.rank, width), a=5**0.5)  # by the CPU's dice: a seed means the same on every device
        self.A = nn.Parameter(drawn.to(device))
        self.B = nn.Parameter(torch.zeros(out, method.rank, device=device))
        if method.start == "pissa":
            self.start_at_singular_vectors(host)
        if method.dora:
            self.m = nn.Parameter(weight_of(host).detach().float().norm(dim=1))
        self.pissa, self.dora = method.start == "pissa", method.dora

    def start_at_singular_vectors(self, host: nn.Module) -> None:
        u, s, v = torch.svd_lowrank(weight_of(host).detach().float(), q=min(len(self.A) + 4, *weight_of(host).shape), niter=16)
        root = (s[: len(self.A)] / self.scale).sqrt()
        self.A.data, self.B.data = (root[:, None] * v.T[: len(self.A)]).contiguous(), (u[:, : len(self.A)] * root).contiguous()
        self.register_buffer("A0", self.A.detach().clone())
        self.register_buffer("B0", self.B.detach().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole change; PiSSA's have twice the rank."""
        return (torch.cat([self.A, self.A0]), torch.cat([self.B, -self.B0], 1)) if self.pissa else (self.A, self.B)  # type: ignore[list-item,operator]

    def change(self) -> Tensor:
        """s B A, (out, in), fp32."""
        a, b = self.factors()
        return self.scale * (b.float() @ a.float())

    def forward(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        host, (a, b) = self.host, self.factors()
        if self.dora:
            return self.directed(x, a, b)
        if quantised(host) or (self.p and self.training):
            y = inner(x)
            return y + self.scale * nn.functional.linear(nn.functional.linear(nn.functional.dropout(x, self.p, self.training).to(a.dtype), a), b).to(y.dtype)
        return fused(x, weight_of(host), host.bias, a, b, self.scale)  # type: ignore[arg-type]

    def directed(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """DoRA: m (W + sBA) / ||W + sBA|| x, the norm of each row treated as a constant."""
        z = fused(nn.functional.dropout(x, self.p, self.training), weight_of(self.host), None, a, b, self.scale)
        y = z * (self.m / self.length()).to(z.dtype)  # type: ignore[operator]
        return y if self.host.bias is None else y + self.host.bias.to(y.dtype)  # type: ignore[union-attr]

    @torch.no_grad()
    def length(self) -> Tensor:
        return (weight_of(self.host).float() + self.change()).norm(dim=1)

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        if self.packed:
            why = "rounding W + sBA to 4 bits changes the outputs"
            raise Refusal("a quantised base cannot take the change in", where="export", why=why, fix="load the base unquantised")
        weight = weight_of(self.host)
        tuned = weight.float() + self.change()
        tuned = tuned if not self.dora else tuned * (self.m / tuned.norm(dim=1))[:, None]
        return {"weight": as_stored(self.host, tuned.to(weight.dtype))}


def fused(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """x W^T + b + s (x A^T) B^T. Without gradients `Fused`'s own products and bits, without the cost of its call, which tells where a token is little work."""
    if torch.is_grad_enabled():
        return Fused.apply(x, weight, bias, a, b, scale)  # type: ignore[return-value]
    return products(x, weight, bias, a, b, scale)[0]


def products(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, ...]:
    """y (..., out); and what its gradient needs, in the type that the products are in: x (n, in), x A^T (n, r), W, A and B."""
    device, dtype = x.device.type, x.dtype
    if mixed := torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    flat, w, low_a, low_b = x.reshape(-1, x.shape[-1]).to(dtype), weight.to(dtype), a.to(dtype), b.to(dtype)
    with torch.autocast(device, enabled=False) if mixed else nullcontext():
        xa = flat @ low_a.T
        y = flat @ w.T if bias is None else torch.addmm(bias.to(dtype), flat, w.T)
        y.addmm_(xa, low_b.T, alpha=scale)
    return y.view(*x.shape[:-1], -1), flat, xa, w, low_a, low_b


class Fused(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T with W and b frozen: one pass forward, one backward, always contracting through the rank first.

    x (..., in), W (out, in), A (r, in), B (out, r). Saves x and x A^T; no activation of size (..., out) is kept. Where the
    base itself trains (it never does in this package) its gradient is not formed.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float):
        y, *kept = products(x, weight, bias, a, b, scale)
        ctx.save_for_backward(*kept)
        ctx.scale, ctx.shape, ctx.dtypes = scale, x.shape, (x.dtype, a.dtype, b.dtype)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        flat, xa, w, a, b = ctx.saved_tensors
        dy = grad.reshape(-1, grad.shape[-1])
        d_xa = (dy @ b).mul_(ctx.scale)
        dx = torch.addmm(dy @ w, d_xa, a).view(ctx.shape).to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        return dx, None, None, (d_xa.T @ flat).to(ctx.dtypes[1]), (dy.T @ xa).mul_(ctx.scale).to(ctx.dtypes[2]), None
