"""How a sequence of tasks keeps what it has learnt. One file a family; this table is the recipe's vocabulary."""

from __future__ import annotations

from .bounds import Joint, Naive
from .strategy import Strategy

STRATEGIES: dict[str, type[Strategy]] = {"naive": Naive, "joint": Joint}

__all__ = ["STRATEGIES", "Strategy"]
