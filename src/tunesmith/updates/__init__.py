"""How the trainable part moves: AdamW around a way of forming the gradient. One file a family of ways; this table is the recipe's vocabulary."""

from __future__ import annotations

from .balance import DWA, FAMO, UW, GradNorm
from .descend import Descend, Form, Formed, Summed
from .gradcache import Cached
from .search import Search
from .surgery import MGDA, CAGrad, PCGrad, TorchJD, UPGrad

UPDATES: dict[str, type[Form]] = {
    "descend": Summed,
    "gradcache": Cached,
    "uncertainty": UW,
    "dwa": DWA,
    "gradnorm": GradNorm,
    "famo": FAMO,
    "pcgrad": PCGrad,
    "cagrad": CAGrad,
    "mgda": MGDA,
    "upgrad": UPGrad,
    "torchjd": TorchJD,
}

__all__ = ["UPDATES", "Descend", "Form", "Formed", "Search"]
