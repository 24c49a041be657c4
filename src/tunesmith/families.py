"""`tunesmith demo --all`: one run of every family on what is embedded, and one table of what each was before and after."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .progress import Reporter
from .recipe import recipe
from .train import run

CLASSIFY = {"model": "minilm", "task": "classify", "data": {"train": "desk", "eval": "desk"}}
WRITE = {"model": "desk-lm", "task": "generate", "evaluate": {"samples": 0}}
REPLY = {"kind": "regex", "pattern": "(?i)order|订单"}
ROWS: dict[str, Callable[[Path], dict[str, Any]]] = {  # the family and its recipe, given the folder of all
    "supervised, full": lambda out: {**CLASSIFY, "method": "full", "budget": {"epochs": 4}},
    "few-shot": lambda out: {**CLASSIFY, "method": {"kind": "layers", "last": 2}, "stream": {"kind": "few", "k": 8}},
    "multi-task": lambda out: {
        "model": "minilm", "method": {"kind": "layers", "last": 2}, "budget": {"epochs": 4},
        "tasks": {"intent": {"task": "classify", "data": "desk"}, "urgency": {"task": "classify", "data": "desk/urgency"}, "entities": {"task": "tag", "data": "desk"}},
    },
    "continual": lambda out: {
        **CLASSIFY, "method": {"kind": "layers", "last": 2}, "stream": {"kind": "sequence", "by": "label", "into": 4}, "strategy": {"kind": "derpp", "size": 200},
    },
    "distillation": lambda out: {
        **CLASSIFY, "model": {"name": "minilm", "blocks": [0, 3]}, "method": "full", "update": {"rate": 3e-4}, "budget": {"epochs": 4},
        "objective": {"kind": "distil", "teacher": str(out / "supervised-full")},
    },
    "contrastive": lambda out: {
        "model": "minilm", "task": "embed", "data": {"train": "desk", "eval": "desk"}, "method": "lora", "update": {"batch": 64}, "budget": {"epochs": 4},
    },
    "reward model": lambda out: {
        "model": "minilm", "task": "score", "data": {"train": "desk/prefer", "eval": "desk/prefer"}, "method": "lora", "objective": "prefer", "budget": {"epochs": 2},
    },
    "generation": lambda out: {**WRITE, "data": {"train": "desk", "eval": "desk"}, "method": "lora", "update": {"batch": 16}, "budget": {"epochs": 2}},
    "preferences": lambda out: {
        **WRITE, "data": {"train": "desk/prefer", "eval": "desk/prefer"}, "method": "lora", "objective": {"kind": "prefer", "beta": 0.3}, "update": {"batch": 16, "rate": 2e-3},
        "budget": {"epochs": 1},
    },
    "reinforcement": lambda out: {
        **WRITE, "data": {"train": "desk", "eval": "desk"}, "method": "lora", "update": {"batch": 32, "rate": 2.5e-3}, "budget": {"steps": 60},
        "objective": {"kind": "reinforce", "algorithm": "grpo", "reward": REPLY, "group": 8, "length": 32, "beta": 0.04},
    },
}  # fmt: skip


def families(out: Path) -> list[dict[str, Any]]:
    """Begins anew each time; the runs stay, and can be asked. One row a family: metric, before, after, parameters, seconds."""
    reporter = Reporter()
    shutil.rmtree(out / "families", ignore_errors=True)
    found = []
    for name, made in ROWS.items():
        reporter.say(f"\n{name}")
        folder = out / "families"
        plan = recipe({**made(folder), "out": str(folder / name.replace(", ", "-").replace(" ", "-"))})
        found.append(row(name, run(plan, reporter).record))
    return found


def row(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    metric = record["metric"]
    return {
        "family": name, "model": record["model"], "method": record["method"], "objective": record["objective"], "metric": metric,
        "before": record["before"].get(metric), "after": record["after"].get(metric), "trainable_parameters": record["trainable_parameters"],
        "seconds": round(record["train_seconds"], 1),
    }  # fmt: skip
