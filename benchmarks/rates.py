"""Which learning rate suits which method: a sweep on real data, the same budget for each, one line a run.

    TUNESMITH_DATA=... python benchmarks/rates.py --methods lora,full --steps 63 > rates.jsonl

SST-2 and TREC (1,000 training rows each, a stated subset), the embedded desk; judged on rows that no run trained on. The chosen
rates stand in each method's `rates`; the sweep itself in docs/LOG.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import torch

from tunesmith.errors import Diverged
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.train import run

GRID = {
    "full": (5e-5, 1e-4, 2e-4, 4e-4),
    "head": (1e-2, 3e-2, 1e-1, 3e-1),
    "layers": (2e-4, 5e-4, 1e-3, 2e-3),
    "adapter": (2e-3, 5e-3, 1e-2, 2e-2),
    "prompt": (3e-3, 1e-2, 3e-2),
    "prefix": (3e-3, 1e-2, 3e-2, 1e-1),
    "lora": (5e-4, 1e-3, 2e-3, 5e-3),
    "bitfit": (1e-3, 3e-3, 1e-2, 3e-2),
}


def sets(root: str) -> dict[str, dict]:
    """Model, task and rows by data set."""
    classify = {"model": "minilm", "task": "classify"}
    found: dict[str, dict] = {"desk": {**classify, "data": {"train": "desk", "test": "desk"}}}
    if root:
        base = Path(root)
        sst2 = {"train": str(base / "sst2/train.tsv"), "test": str(base / "sst2/dev.tsv"), "header": False}
        trec = {"train": str(base / "trec/TREC.train"), "test": str(base / "trec/TREC.test"), "encoding": "latin-1"}
        found["sst2"] = {**classify, "data": {**sst2, "limit": 1000}}
        found["trec"] = {**classify, "data": {**trec, "limit": 1000, "columns": {"text": "column3", "label": "column1"}}}
        e2e = {"train": str(base / "e2e_nlg/devset.csv"), "eval": 0.1, "limit": 2000, "columns": {"prompt": "mr", "completion": "ref"}}
        found["e2e"] = {"model": str(base.parent / "models/stories260k"), "task": "generate", "data": e2e, "metric": "perplexity"}
    return found


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--methods", default=",".join(GRID))
    args.add_argument("--rates", default="", help="instead of the grid")
    args.add_argument("--sets", default="sst2,trec")
    args.add_argument("--seeds", type=int, default=3)
    args.add_argument("--steps", type=int, default=63)
    args.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = args.parse_args()
    torch.set_num_threads(options.threads)
    data = sets(os.environ.get("TUNESMITH_DATA", ""))
    for name in options.methods.split(","):
        for rate in [float(r) for r in options.rates.split(",") if r] or GRID[name]:
            for chosen in options.sets.split(","):
                print(json.dumps(swept(name, rate, chosen, data[chosen], options)), flush=True)


def swept(name: str, rate: float, chosen: str, data: dict, options: argparse.Namespace) -> dict:
    """Mean over the seeds, and each seed's."""
    runs = [one(name, rate, data, seed, options.steps) for seed in range(options.seeds)]
    found = {"method": name, "rate": rate, "data": chosen, "steps": options.steps}
    key = data.get("metric", "accuracy")
    values = [run.get(key, float("nan")) for run in runs]
    return {**found, key: round(statistics.fmean(values), 4), "by_seed": values}


def one(name: str, rate: float, data: dict, seed: int, steps: int) -> dict:
    """What the rows kept aside say after one run; nothing where it diverged."""
    with tempfile.TemporaryDirectory() as folder:
        rest = {"evaluate": {"samples": 0}, "checkpoint": {"every": 10**6}, "out": folder}
        made = {**{k: v for k, v in data.items() if k != "metric"}, "method": name, "budget": {"steps": steps}, "update": {"rate": rate}, "seed": seed, **rest}
        try:
            record = run(recipe(made), Reporter(quiet=True)).record
        except Diverged:
            return {}
    return {k: round(v, 4) for k, v in (record.get("test") or record["after"]).items() if v is not None}


if __name__ == "__main__":
    main()
