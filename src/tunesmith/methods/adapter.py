"""Bottleneck adapters: small modules inserted in every block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from ..core import Graft, Insert, Method, Network
from ..errors import Refusal
from .linear import features

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": nn.functional.gelu, "relu": nn.functional.relu, "silu": nn.functional.silu}


@dataclass(frozen=True)
class Adapter(Method):
    """h + scale * up(act(down(h))), `up` zero at the start, so that the network starts unchanged.

    placement  houlsby: after the attention's output projection and after the feed-forward's, both before the residual
               pfeiffer: after the feed-forward only
               parallel: beside the feed-forward, reading what it reads (He et al. 2022, eq. 9; they use scale 4)
    width      of the bottleneck; or `reduction`: the model's width divided by it
    We place the bottleneck before the sub-layer's dropout (Houlsby: after it), and start `up` at zero (they: nearly).
    """

    placement: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    width: Annotated[int, Ge(0)] = 0
    reduction: Annotated[float, Gt(0)] = 16.0
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    scale: Annotated[float, Gt(0)] = 1.0

    paper: ClassVar[str] = "Houlsby et al. 2019, https://arxiv.org/abs/1902.00751; Pfeiffer et al. 2021, https://arxiv.org/abs/2005.00247"
    matrices: ClassVar[bool] = True
    rates: ClassVar[Mapping[str, float]] = {"encoder": 5e-3, "decoder": 5e-4, "seq2seq": 3e-3}

    def refuse(self, net: Network) -> None:
        roles = {"out", "down"} if self.placement == "houlsby" else {"down"} if self.placement == "pfeiffer" else {"up", "down"}
        if missing := [r for r in sorted(roles) if not net.anatomy.projections(r)]:
            raise Refusal(f"no projection of role {missing[0]!r} was found in this architecture", where="method.placement", fix="another placement, or lora")

    def inject(self, net: Network) -> list[Insert]:
        if self.placement == "parallel":
            return [insert for block in net.anatomy.blocks for insert in self.beside(net, block)]
        roles = ("out", "down") if self.placement == "houlsby" else ("down",)
        return [self.after(net.get_submodule(path)) for path in net.anatomy.projections(*roles)]

    def size(self, width: int) -> int:
        return self.width or max(1, round(width / self.reduction))

    def after(self, host: nn.Module) -> Insert:
        bottleneck = Bottleneck(features(host)[1], self, host.weight.device)  # type: ignore[arg-type]
        bottleneck.graft(host, "adapter")
        return bottleneck

    def beside(self, net: Network, block: str) -> list[Insert]:
        """One reader at the feed-forward's entrance, one bottleneck at its exit."""
        inside = [p for p in net.anatomy.projections("up", "down") if p.startswith(block + ".")]
        entrance = next(p for p in inside if "up" in net.anatomy.linears[p].split("+"))
        exit_ = next(p for p in inside if net.anatomy.linears[p] == "down")
        tap = Tap()
        tap.graft(net.get_submodule(entrance), "tap")
        host = net.get_submodule(exit_)
        bottleneck = Parallel(features(host)[1], self, host.weight.device, tap)  # type: ignore[arg-type]
        bottleneck.graft(host, "adapter")
        return [tap, bottleneck]

    def trains(self, name: str, net: Network) -> bool:
        return ".adapter." in name


class Bottleneck(Graft):
    """Serial: reads what the host writes. (..., D) -> (..., D)."""

    def __init__(self, dim: int, method: Adapter, device: torch.device):
        super().__init__()
        size = method.size(dim)
        self.down, self.up = nn.Linear(dim, size, device=device), nn.Linear(size, dim, device=device)
        nn.init.normal_(self.down.weight, std=dim**-0.5)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.act, self.scale = ACTIVATIONS[method.activation], method.scale

    def through(self, h: Tensor) -> Tensor:
        if torch.is_autocast_enabled(h.device.type):
            return self.scale * self.up(self.act(self.down(h)))
        return self.scale * self.up(self.act(self.down(h.to(self.down.weight.dtype)))).to(h.dtype)

    def forward(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        y = inner(x)
        return y + self.through(y)


class Tap(Graft):
    """Remembers what enters a feed-forward until its exit is reached, in the same block of the same pass."""

    seen: Tensor | None = None

    def forward(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self.seen = x
        return inner(x)


class Parallel(Graft):
    """Reads what the feed-forward read, adds to what it writes."""

    def __init__(self, dim: int, method: Adapter, device: torch.device, tap: Tap):
        super().__init__()
        self.body = Bottleneck(dim, method, device)
        self.taps = (tap,)

    def forward(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        y, (tap,) = inner(x), self.taps
        assert tap.seen is not None
        read, tap.seen = tap.seen, None
        return y + self.body.through(read)
