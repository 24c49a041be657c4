"""How a sequence of tasks keeps what it has learnt. One file a family; this table is the recipe's vocabulary."""

from __future__ import annotations

from .agem import AGEM
from .anchors import EWC, MAS, SI
from .bounds import Joint, Naive
from .dream import Dream
from .lwf import LwF
from .olora import OLoRA
from .replay import Der, Derpp, Replay
from .route import Route
from .strategy import Strategy

STRATEGIES: dict[str, type[Strategy]] = {
    "naive": Naive,
    "joint": Joint,
    "replay": Replay,
    "der": Der,
    "derpp": Derpp,
    "ewc": EWC,
    "si": SI,
    "mas": MAS,
    "lwf": LwF,
    "agem": AGEM,
    "olora": OLoRA,
    "route": Route,
    "dream": Dream,
}

__all__ = ["STRATEGIES", "Strategy"]
