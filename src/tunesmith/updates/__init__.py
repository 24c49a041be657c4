"""How the trainable part moves: AdamW around a way of forming the gradient. One file a way; this table is the recipe's vocabulary."""

from __future__ import annotations

from .descend import Descend, Form, summed
from .gradcache import cached
from .search import Search

UPDATES: dict[str, Form] = {"descend": summed, "gradcache": cached}

__all__ = ["UPDATES", "Descend", "Form", "Search"]
