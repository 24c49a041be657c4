"""What arrives, when. A source wraps a source; none of them knows what the batch is for."""

from __future__ import annotations

from .features import Features
from .table import Table

SOURCES: dict[str, type] = {"table": Table, "features": Features}
