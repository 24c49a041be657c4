"""The recipe's vocabulary for sources and streams."""

from __future__ import annotations

from .answers import Answers
from .features import Features
from .mix import Mix
from .rollouts import Rollouts
from .table import Table
from .witness import Witness

SOURCES: dict[str, type] = {"table": Table, "features": Features, "witness": Witness, "answers": Answers, "rollouts": Rollouts, "mix": Mix}
