"""The recipe's vocabulary for sources and streams."""

from __future__ import annotations

from .features import Features
from .table import Table

SOURCES: dict[str, type] = {"table": Table, "features": Features}
