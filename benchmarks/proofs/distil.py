"""Proof that distillation teaches: a third of MiniLM learns TREC's six classes from 200 labels and what the whole of it thinks of 5,252 texts without.

TUNESMITH_DATA=folder with trec/      python benchmarks/proofs/distil.py [--out FOLDER] [--seeds 1]

teacher      MiniLM, fine-tuned on all 5,452 labelled rows (in practice: any model that is too large to deploy)
student      MiniLM with blocks 0 and 3 of six kept, mean pooling, a fresh head; every arm takes the same number of steps of 32 rows at the same rate
arms         untrained; labels of 200 rows alone; the same and the teacher on all rows, at T = 1 and T = 4; at T = 4 without the factor T^2; with the teacher's
             answers dealt out to the wrong rows (negative control); all labels (upper bound)

Accuracy on the 500 test rows, which nothing is chosen by. "Without T^2" is alpha such that the two terms have the ratio that they would have
without it; AdamW does not see the common factor.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import tunesmith

STEPS, ALPHA, T = 340, 0.9, 4.0
STUDENT = {"name": "minilm", "blocks": [0, 3]}


def base(root: Path) -> dict[str, Any]:
    files = {
        "train": str(root / "trec/TREC.train"),
        "eval": str(root / "trec/TREC.test"),
        "encoding": "latin-1",
        "columns": {"text": "column3", "label": "column1"},
    }
    return {
        "task": "classify", "data": files, "method": "full", "model": STUDENT, "budget": {"steps": STEPS}, "update": {"rate": 3e-4},
        "evaluate": {"every": 100_000, "best": False}, "checkpoint": {"every": 100_000}, "threads": 1,
    }  # fmt: skip


def few(made: dict[str, Any], unlabelled: bool) -> dict[str, Any]:
    """200 labelled rows; the others as texts alone, or not at all."""
    return {**made, "data": {**made["data"], "limit": 200, **({"unlabelled": made["data"]["train"]} if unlabelled else {})}}


def mixed(cache: Path, out: Path) -> str:
    """The teacher's answers, each to another row's question: what a cache that is read by place makes of shuffled data."""
    stored = load_file(cache / "teacher.safetensors")
    order = torch.randperm(len(stored["example"]), generator=torch.Generator().manual_seed(0))
    save_file({**stored, "teacher": stored["teacher"][order].contiguous()}, out / "mixed.safetensors")
    return str(out / "mixed.safetensors")


def arms(made: dict[str, Any], out: Path) -> dict[str, dict[str, Any]]:
    cache = out / "cache"
    taught = lambda **options: {
        **few(made, True),
        "objective": {"kind": "distil", "teacher": str(out / "teacher"), "alpha": ALPHA, "cache": str(cache), **options},
    }
    ratio = ALPHA / (1 - ALPHA) / T**2
    return {
        "200 labels": few(made, False),
        "200 labels, teacher at T = 1": taught(temperature=1.0),
        "200 labels, teacher at T = 4": taught(temperature=T),
        "200 labels, teacher at T = 4, no T^2": taught(temperature=T, alpha=ratio / (1 + ratio)),
        "200 labels, teacher's answers mixed up": taught(temperature=1.0, teacher="mixed"),
        "5,452 labels": made,
    }


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path("runs/proofs/distil"))
    args.add_argument("--seeds", type=int, default=1)
    given = args.parse_args()
    root, out, began = Path(os.environ["TUNESMITH_DATA"]), given.out, time.perf_counter()
    made = base(root)
    teacher = tunesmith.run({**made, "model": "minilm", "update": {"rate": 1e-4}, "budget": {"epochs": 2}, "out": str(out / "teacher")})
    table: dict[str, list[float]] = {"teacher": [teacher["after"]["accuracy"]]}
    for seed in range(given.seeds):
        for name, arm in arms(made, out).items():
            if arm.get("objective", {}).get("teacher") == "mixed":
                arm["objective"] |= {"teacher": mixed(out / "cache", out)}
            result = tunesmith.run({**arm, "seed": seed, "out": str(out / f"{name}-{seed}".replace(" ", "-").replace(",", ""))})
            table.setdefault("untrained", []).append(result["before"]["accuracy"])
            table.setdefault(name, []).append(result["after"]["accuracy"])
            print(f"{name}: {result['after']['accuracy']:.3f}, {result['train_seconds']:.0f} s", flush=True)
            if "teacher" in result.record:
                print(json.dumps({k: {n: v for n, v in result[k].items() if n != "scores"} for k in ("teacher", "student")}))
    for name, values in table.items():
        print(f"| {name} | {' / '.join(f'{v:.3f}' for v in dict.fromkeys(values))} |")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
