"""BitFit: biases only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core import Delta, Graft, Insert, Method, Network
from ..errors import Refusal
from .linear import features, quantised


@dataclass(frozen=True)
class BitFit(Method):
    """The biases of linear layers and norms. Projections that have none are given one, which starts at zero (`add`).

    The paper's models have biases everywhere; adding them to bias-free ones (Llama, ModernBERT, T5) is our extension.
    """

    add: bool = True

    paper: ClassVar[str] = "Ben Zaken, Goldberg, Ravfogel 2022, https://arxiv.org/abs/2106.10199"
    merges: ClassVar[bool] = True
    rates: ClassVar[Mapping[str, float]] = {"encoder": 3e-3, "decoder": 3e-3, "seq2seq": 5e-3}

    def bare(self, net: Network) -> list[str]:
        """Projections without a bias."""
        return [p for p in net.anatomy.linears if getattr(net.get_submodule(p), "bias", None) is None] if self.add else []

    def notes(self, net: Network) -> list[str]:
        added = sum(n.endswith(".bitfit.bias") for n, _ in net.named_parameters())
        return [f"bitfit: {added} projections had no bias; they got one, zero at the start"] if added else []

    def inject(self, net: Network) -> list[Insert]:
        return [added_bias(net.get_submodule(path)) for path in self.bare(net)]

    def trains(self, name: str, net: Network) -> bool:
        return name.endswith(".bias")


def added_bias(host: nn.Module) -> Insert:
    bias = AddedBias(features(host)[1], host.weight.device)  # type: ignore[arg-type]
    bias.graft(host, "bitfit")
    return bias


def make_room(net: Network, delta: Delta, config: Any, where: str, fix: str) -> None:
    """Tell a published configuration, in place, that there are biases where they were added. Raises Refusal where it has no word for them."""
    if not any(name.endswith(".bitfit.bias") for name in delta.added):
        return
    keys = [key for key in ("attention_bias", "mlp_bias") if hasattr(config, key)]
    if len(keys) < 2:
        what = f"the class {type(net.model).__name__} has no place for the biases that bitfit added"
        raise Refusal(what, where=where, fix=fix)
    for key in keys:
        setattr(config, key, True)


class AddedBias(Graft):
    """y = W x + b, b = 0 at the start."""

    def __init__(self, size: int, device: torch.device):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size, device=device))

    def forward(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        y = inner(x)
        return y + self.bias.to(y.dtype)

    def folded(self) -> dict[str, Tensor]:
        dtype = torch.float32 if quantised(self.host) else self.host.weight.dtype  # a 4-bit weight's dtype is that of its storage
        return {"bias": self.bias.detach().to(dtype)}  # type: ignore[arg-type]
