"""Every strategy with an option or two, and what it learns through three stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from staged import fitted, learnt, made

CASES: dict[str, dict[str, Any]] = {
    "naive": {},
    "joint": {},
    "replay": {"size": 20},
    "der": {"size": 20},
    "derpp": {"size": 20, "balance": "class"},
    "ewc": {"strength": 1e3, "examples": 10},
    "si": {"strength": 1e2},
    "mas": {"strength": 1e2, "examples": 10},
    "lwf": {},
    "agem": {"size": 20},
    "olora": {"strength": 0.1},
    "route": {},
    "dream": {"size": 12, "length": 5},
}
MORE: dict[str, dict[str, Any]] = {"dream": {"shape": "generate", "scenario": None}}  # what else of the recipe a strategy wants


def given(work: Path, name: str, **more: Any) -> dict[str, Any]:
    return made(work, {"kind": name, **CASES[name]}, **{**MORE.get(name, {}), **more})


def trained(work: Path, name: str, **more: Any) -> dict[str, Tensor]:
    """Losses of all steps, and what was learnt."""
    job = fitted(given(work, name, **more))
    return {"losses": torch.tensor([r["loss"] for r in job.run.log]), **learnt(job)}
