"""The two bounds between which every strategy lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .strategy import Strategy


@dataclass
class Naive(Strategy):
    """Nothing is done against forgetting: the lower bound."""


@dataclass
class Joint(Strategy):
    """All tasks at once, as if they had not come one after the other: the upper bound."""

    joins: ClassVar[bool] = True
