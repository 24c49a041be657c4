"""How the trainable part moves. One file a way; this table is the recipe's vocabulary."""

from __future__ import annotations

from .descend import Descend

UPDATES: dict[str, type] = {"descend": Descend}
