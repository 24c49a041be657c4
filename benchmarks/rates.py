"""Which learning rate suits which method: a sweep on real data, the same budget for each, one line a run.

    TUNESMITH_DATA=... python benchmarks/rates.py --methods lora,full --steps 90 --json rates.json

SST-2 and TREC (1,000 training rows each, a stated subset), the embedded desk; judged on rows that no run trained on. The chosen
rates stand in each method's `rates`; the sweep itself in docs/LOG.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from tunesmith.errors import Diverged
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.train import run

GRID = {
    "full": (5e-5, 1e-4, 2e-4),
    "head": (3e-3, 1e-2, 3e-2),
    "layers": (2e-4, 5e-4, 1e-3),
    "adapter": (1e-3, 2e-3, 5e-3),
    "prompt": (1e-2, 3e-2, 1e-1),
    "prefix": (3e-3, 1e-2, 3e-2),
    "lora": (5e-4, 1e-3, 2e-3),
    "bitfit": (1e-3, 3e-3, 1e-2),
}


def sets(root: str) -> dict[str, dict]:
    """Training and judging rows by data set."""
    found: dict[str, dict] = {"desk": {"train": "desk", "eval": "desk"}}
    if root:
        base = Path(root)
        trec = {"columns": {"text": "column3", "label": "column1"}, "encoding": "latin-1"}
        found["sst2"] = {"train": str(base / "sst2/train.tsv"), "eval": str(base / "sst2/dev.tsv"), "limit": 1000, "header": False}
        found["trec"] = {"train": str(base / "trec/TREC.train"), "eval": str(base / "trec/TREC.test"), "limit": 1000, **trec}
    return found


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--methods", default=",".join(GRID))
    args.add_argument("--sets", default="sst2,trec")
    args.add_argument("--steps", type=int, default=94)
    args.add_argument("--json", type=Path)
    options = args.parse_args()
    data, rows = sets(os.environ.get("TUNESMITH_DATA", "")), []
    for name in options.methods.split(","):
        for rate in GRID[name]:
            for chosen in options.sets.split(","):
                rows.append(one(name, rate, chosen, data[chosen], options.steps))
                print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def one(name: str, rate: float, chosen: str, data: dict, steps: int) -> dict:
    made = {
        "model": "minilm", "task": "classify", "data": data, "method": name, "budget": {"steps": steps}, "update": {"rate": rate},
        "evaluate": {"every": 10**6, "best": False}, "checkpoint": {"every": 10**6}, "out": tempfile.mkdtemp(),
    }  # fmt: skip
    try:
        result = run(recipe(made), Reporter(quiet=True))
    except Diverged:
        return {"method": name, "rate": rate, "data": chosen, "accuracy": None}
    return {
        "method": name,
        "rate": rate,
        "data": chosen,
        "accuracy": round(result["after"]["accuracy"], 4),
        "loss": round(result["after"]["loss"], 4),
        "seconds": result["train_seconds"],
    }


if __name__ == "__main__":
    main()
