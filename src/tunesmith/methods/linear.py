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
    """(out, in), a view."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight  # type: ignore[return-value]


def quantised(layer: nn.Module) -> bool:
    return not layer.weight.is_floating_point()  # type: ignore[union-attr,operator]


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
