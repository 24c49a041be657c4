"""What methods ask of a linear layer, whichever way its class stores the weight."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..core import Network
from ..errors import Refusal


def features(layer: nn.Module) -> tuple[int, int]:
    """(in, out). GPT-2's Conv1D stores its weight as (in, out)."""
    return (layer.weight.shape[0], layer.weight.shape[1]) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)  # type: ignore[return-value]


def weight_of(layer: nn.Module) -> Tensor:
    """(out, in), a view. A packed weight has neither this shape nor these values, so there is none to give."""
    if quantised(layer):
        raise TypeError(f"{type(layer).__name__} holds packed values, not a weight")
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight  # type: ignore[return-value]


def as_stored(layer: nn.Module, weight: Tensor) -> Tensor:
    """(out, in) as the layer lays its weight out."""
    return weight.T if isinstance(layer, Conv1D) else weight


def quantised(layer: nn.Module) -> bool:
    """Stored in 4 or 8 bits. Packed 4-bit values may lie in a floating dtype; their scales give them away."""
    return not layer.weight.is_floating_point() or "quant_state" in vars(layer.weight)  # type: ignore[union-attr,operator]


def need_floats(net: Network, instead: str) -> None:
    """Raise Refusal where the linear layers of the blocks are stored in 4 or 8 bits. `instead` is what works on them."""
    if any(quantised(net.get_submodule(path)) for path in net.anatomy.linears):
        raise Refusal(
            "the weights of this base are stored in 4 or 8 bits, which take no gradient",
            where="method",
            why="of the blocks only norms and biases could move",
            fix=instead,
        )


def find(net: Network, targets: tuple[str, ...]) -> list[str]:
    """Paths of the projections that these targets name: `all`, roles (query, value, ...) or endings of paths (q_proj)."""
    linears = net.anatomy.linears
    chosen: list[str] = []
    for target in targets:
        hit = [p for p, role in linears.items() if target == "all" or target in role.split("+") or p.endswith("." + target)]
        if not hit:
            roles = sorted({r for role in linears.values() for r in role.split("+")})
            names = sorted({p.rsplit(".", 1)[-1] for p in linears})
            raise Refusal(f"no projection is named {target!r}", where="method.targets", fix=f"all, a role ({', '.join(roles)}) or a name ({', '.join(names)})")
        chosen += [p for p in hit if p not in chosen]
    return sorted(chosen, key=list(linears).index)
