"""Proof that tasks help each other, and what balancing and surgery add: a task with few labels, beside a coarser one with many.

TUNESMITH_DATA=folder with trec/ and clinc150/      python benchmarks/proofs/multitask.py [--case trec|clinc] [--out FOLDER] [--seeds 3] [--arms single,together,...]

trec    TREC's 50 fine question types from at most four labels each (200 rows), beside its six coarse ones from all 5,452; MiniLM, the last three blocks
clinc   CLINC150's 150 intents from five labels each, beside its ten domains from all 15,000; MiniLM's first block alone, all of it trained
arms    the first task alone (lower bound); both; both with the second's labels dealt anew by chance (negative control); both under each `update`; the first
        from all labels (upper bound). Every step holds 32 rows of a task; every arm takes the same number of steps at one rate.

Accuracy of the first task on its test rows, which nothing is chosen by.
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


def clinc(root: Path) -> tuple[list[tuple[str, str]], list[str], list[tuple[str, str]]]:
    """Training rows of the first task, their labels in the second, test rows of the first."""
    data = json.loads((root / "clinc150/data_full.json").read_text())
    domain = {intent: name for name, intents in json.loads((root / "clinc150/domains.json").read_text()).items() for intent in intents}
    whole = [(text, label) for text, label in data["train"]]
    return whole, [domain[label] for _, label in whole], [(text, label) for text, label in data["test"]]


def trec(root: Path) -> tuple[list[tuple[str, str]], list[str], list[tuple[str, str]]]:
    parts = []
    for name in ("TREC.train", "TREC.test"):
        lines = (root / "trec" / name).read_text(encoding="latin-1").splitlines()
        parts.append([(text.strip(), label) for label, _, text in (line.partition(" ") for line in lines if line.strip())])
    return parts[0], [label.partition(":")[0] for _, label in parts[0]], parts[1]


CASES = {  # rows, labels of each that are learnt from, the recipe's part
    "trec": (trec, 4, {"model": "minilm", "method": {"kind": "layers", "last": 3}, "budget": {"steps": 150}}),
    "clinc": (clinc, 5, {"model": {"name": "minilm", "blocks": [0]}, "method": "full", "budget": {"steps": 300}, "update": {"rate": 3e-4}}),
}


def files(case: str, root: Path, out: Path, seed: int) -> dict[str, str]:
    """The tasks' files for this seed."""
    (read, each, _), dice = CASES[case], random.Random(seed)
    whole, second, test = read(root)
    of: dict[str, list[tuple[str, str]]] = {}
    for row in whole:
        of.setdefault(row[1], []).append(row)
    few = [row for label in sorted(of) for row in dice.sample(of[label], min(each, len(of[label])))]
    dealt = dice.sample(second, len(second))
    folder = out / f"data-{seed}"
    return {
        "few": rows(folder / "few.jsonl", few),
        "all": rows(folder / "all.jsonl", whole),
        "test": rows(folder / "test.jsonl", [row for row in test if row[1] in of]),
        "second": rows(folder / "second.jsonl", [(text, name) for (text, _), name in zip(whole, second, strict=True)]),
        "random": rows(folder / "random.jsonl", [(text, name) for (text, _), name in zip(whole, dealt, strict=True)]),
    }


def arm(name: str, of: dict[str, str], made: dict[str, Any]) -> dict[str, Any]:
    if name in ("single", "all"):
        return {**made, "task": "classify", "data": {"train": of["few" if name == "single" else "all"], "eval": of["test"]}}
    aside = {"task": "classify", "data": {"train": of["random" if name == "random" else "second"]}}
    tasks = {"first": {"task": "classify", "data": {"train": of["few"], "eval": of["test"]}}, "second": aside}
    kind = {"kind": name} if name in UPDATES else {}
    return {**made, "tasks": tasks, "stream": {"kind": "mix", "temperature": 1e9}, "update": {**made.get("update", {}), "batch": 64, **kind}}


def accuracy(values: dict[str, Any]) -> float:
    return values.get("first.accuracy", values.get("accuracy", float("nan")))


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path("runs/proofs/multitask"))
    args.add_argument("--case", choices=list(CASES), default="trec")
    args.add_argument("--seeds", type=int, default=1)
    args.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
    given = args.parse_args()
    began, table, conflicts = time.perf_counter(), dict[str, list[float]](), dict[str, list[float]]()
    made = {**CASES[given.case][2], "evaluate": {"every": 100_000, "best": False}, "checkpoint": {"every": 100_000}, "threads": 1}
    out = given.out / given.case
    for seed in range(given.seeds):
        of = files(given.case, Path(os.environ["TUNESMITH_DATA"]), out, seed)
        for name in given.arms:
            result = tunesmith.run({**arm(name, of, made), "seed": seed, "out": str(out / f"{name}-{seed}")})
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
