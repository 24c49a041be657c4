"""Proof that tasks help each other, and what balancing and surgery add: CLINC150's 150 intents from five labels each, beside its ten domains from all labels.

TUNESMITH_DATA=folder with clinc150/      python benchmarks/proofs/multitask.py [--out FOLDER] [--seeds 1] [--steps 300] [--arms single,together,...]

network      MiniLM with its first block alone (`--blocks 1`), all of it trained; one head a task
tasks        intent: 5 rows of each of 150 intents, drawn by the seed; domain: the 15,000 training rows, of ten domains
arms         intent alone (lower bound); both; both with the domains dealt anew by chance (negative control); both under each `update`; intent from all 15,000
             labels (upper bound). Every step holds 32 rows of intent, and of both tasks 32 of each; every arm takes the same number of steps at one rate.

Accuracy of intents on the 4,500 test rows, which nothing is chosen by.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

import tunesmith

UPDATES = ("uncertainty", "dwa", "gradnorm", "famo", "pcgrad", "cagrad", "mgda", "upgrad")
ARMS = ("single", "together", "random", *UPDATES, "all")


def rows(path: Path, found: list[tuple[str, str]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in found))
    return str(path)


def files(root: Path, out: Path, seed: int) -> dict[str, str]:
    """The tasks' files for this seed."""
    data, dice = json.loads((root / "clinc150/data_full.json").read_text()), random.Random(seed)
    domain = {intent: name for name, intents in json.loads((root / "clinc150/domains.json").read_text()).items() for intent in intents}
    whole = [(text, label) for text, label in data["train"]]
    few = [row for label in sorted({label for _, label in whole}) for row in dice.sample([r for r in whole if r[1] == label], 5)]
    domains = [domain[label] for _, label in whole]
    dealt = dice.sample(domains, len(domains))
    folder = out / f"data-{seed}"
    return {
        "few": rows(folder / "few.jsonl", few),
        "all": rows(folder / "all.jsonl", whole),
        "test": rows(folder / "test.jsonl", data["test"]),
        "domain": rows(folder / "domain.jsonl", [(text, name) for (text, _), name in zip(whole, domains, strict=True)]),
        "random": rows(folder / "random.jsonl", [(text, name) for (text, _), name in zip(whole, dealt, strict=True)]),
    }


def arm(name: str, of: dict[str, str], made: dict[str, Any]) -> dict[str, Any]:
    if name in ("single", "all"):
        return {**made, "task": "classify", "data": {"train": of["few" if name == "single" else "all"], "eval": of["test"]}}
    aside = {"task": "classify", "data": {"train": of["random" if name == "random" else "domain"]}}
    tasks = {"intent": {"task": "classify", "data": {"train": of["few"], "eval": of["test"]}}, "domain": aside}
    kind = {"kind": name} if name in UPDATES else {}
    return {**made, "tasks": tasks, "stream": {"kind": "mix", "temperature": 1e9}, "update": {**made["update"], "batch": 64, **kind}}


def accuracy(values: dict[str, Any]) -> float:
    return values.get("intent.accuracy", values.get("accuracy", float("nan")))


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path("runs/proofs/multitask"))
    args.add_argument("--seeds", type=int, default=1)
    args.add_argument("--steps", type=int, default=300)
    args.add_argument("--blocks", type=int, default=1)
    args.add_argument("--rate", type=float, default=3e-4)
    args.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
    given = args.parse_args()
    began, table, conflicts = time.perf_counter(), dict[str, list[float]](), dict[str, list[float]]()
    made = {
        "model": {"name": "minilm", "blocks": list(range(given.blocks))}, "method": "full", "budget": {"steps": given.steps}, "update": {"rate": given.rate},
        "evaluate": {"every": 100_000, "best": False}, "checkpoint": {"every": 100_000}, "threads": 1,
    }  # fmt: skip
    for seed in range(given.seeds):
        of = files(Path(os.environ["TUNESMITH_DATA"]), given.out, seed)
        for name in given.arms:
            result = tunesmith.run({**arm(name, of, made), "seed": seed, "out": str(given.out / f"{name}-{seed}")})
            table.setdefault(name, []).append(accuracy(result["after"]))
            if "conflicts_per_step" in result.record:
                conflicts.setdefault(name, []).append(result["conflicts_per_step"])
            print(f"{seed} {name}: {accuracy(result['after']):.3f}, {result['train_seconds']:.0f} s", flush=True)
    for name, values in table.items():
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        print(f"| {name} | {statistics.fmean(values):.3f}{spread} | {statistics.fmean(conflicts[name]) if name in conflicts else ''} |")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
