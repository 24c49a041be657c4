"""Proof that a language model learns from its teacher: a part of desk-lm learns to put a restaurant's data in words from 200 rows, and from what its teacher writes.

TUNESMITH_DATA=folder with e2e_nlg/      python benchmarks/proofs/distil_text.py [--teacher FOLDER --blocks ""] [--steps 200] [--out FOLDER] [--seeds 1]

teacher      desk-lm, or another model with its tokenizer, such as what models/desk_lm/make.py --teacher makes; fine-tuned on all rows of 3 in 4 of E2E's meanings
student      desk-lm with blocks 0, 2 and 4 of five kept, or whole; every arm takes the same number of steps of 32 rows at the same rate
arms         untrained; 200 rows alone; the same, and at each of their tokens the teacher's distribution; the same 200, and what the teacher wrote of the other
             meanings, sampled at temperature 1; that with the teacher's distribution too; with what it wrote dealt out to other meanings (negative control);
             all rows (upper bound)

Perplexity of people's sentences for the meanings left out, which nothing is chosen by.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import time
from collections import defaultdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from lanes import side_by_side
from rows import written

import tunesmith
from tunesmith.ask import learnable

RATE = 5e-4
Rows = list[dict[str, str]]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--teacher", default="desk-lm", help="a folder or a hub id of a model with desk-lm's tokenizer")
    args.add_argument("--blocks", default="0,2,4", help="of desk-lm, that the student keeps; none named: all")
    args.add_argument("--out", type=Path, default=Path("runs/proofs/distil-text"))
    args.add_argument("--steps", type=int, default=200)
    args.add_argument("--seeds", type=int, default=1)
    args.add_argument("--jobs", type=int, default=2, help="threads of the teacher; then arms at a time, a thread each")
    given = args.parse_args()
    out, began = given.out, time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    known, few, left = parts(Path(os.environ["TUNESMITH_DATA"]) / "e2e_nlg/devset.csv")
    judged, everything = written(out / "judged.jsonl", left), written(out / "all.jsonl", known)
    student = {"name": "desk-lm", **({"blocks": [int(b) for b in given.blocks.split(",")]} if given.blocks else {})}
    made = {
        "task": "generate", "model": student, "method": "full", "budget": {"steps": given.steps}, "update": {"rate": RATE},
        "evaluate": {"every": 100_000, "best": False, "samples": 0}, "checkpoint": {"every": 100_000}, "threads": 1,
    }  # fmt: skip
    of = lambda name, rows, **rest: {**made, "data": {"train": rows, "eval": judged}, "out": str(out / name), **rest}
    teacher = tunesmith.run(of("teacher", everything, model=given.teacher, update={"rate": RATE / 2}, threads=given.jobs))
    table: dict[str, list[float]] = {"teacher": [teacher["after"]["perplexity"]]}
    named = {row["prompt"] for row in few}
    others = [row["prompt"] for row in known if row["prompt"] not in named]
    said = list(learnable(teacher.folder, others, 80, 1.0))
    dealt = random.Random(0).sample(said, len(said))
    mixed = [{**row, "completion": other["completion"]} for row, other in zip(said, dealt, strict=True)]
    files = {name: written(out / f"{name}.jsonl", few + rows) for name, rows in (("few", []), ("wrote", said), ("mixed", mixed))}
    taught = {"objective": {"kind": "distil", "teacher": str(teacher.folder), "temperature": 1.0}}
    arms: dict[str, tuple[str, dict[str, Any]]] = {
        "200 rows": (files["few"], {}),
        "200 rows, teacher's distributions": (files["few"], taught),
        "200 rows, teacher's texts": (files["wrote"], {}),
        "200 rows, teacher's texts and distributions": (files["wrote"], taught),
        "200 rows, teacher's texts mixed up": (files["mixed"], {}),
        f"all {len(known):,} rows": (everything, {}),
    }
    runs = list(product(range(given.seeds), arms))
    folder = lambda name, seed: f"{name}-{seed}".replace(" ", "-").replace(",", "").replace("'", "")
    calls = [partial(measured, of(folder(name, seed), arms[name][0], seed=seed, **arms[name][1])) for seed, name in runs]
    for (_, name), (before, after, seconds) in zip(runs, side_by_side(calls, given.jobs), strict=True):
        table.setdefault("untrained", []).append(before)
        table.setdefault(name, []).append(after)
        print(f"{name}: {after:.2f}, {seconds:.0f} s", flush=True)
    for name, values in table.items():
        print(f"| {name} | {' / '.join(f'{v:.2f}' for v in dict.fromkeys(values))} |")
    print(f"{time.perf_counter() - began:.0f} s")


def measured(made: dict[str, Any]) -> tuple[float, float, float]:
    """Perplexity before and after, and the seconds between."""
    result = tunesmith.run(made)
    return result["before"]["perplexity"], result["after"]["perplexity"], result["train_seconds"]


def parts(file: Path) -> tuple[Rows, Rows, Rows]:
    """All rows of three meanings in four, one row of each of 200 of these meanings, and two of each meaning left out."""
    of: dict[str, Rows] = defaultdict(list)
    with file.open(encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            of[row["mr"]].append({"prompt": row["mr"], "completion": row["ref"]})
    meanings = random.Random(0).sample(sorted(of), len(of))
    left = len(meanings) // 4
    return [row for m in meanings[left:] for row in of[m]], [of[m][0] for m in meanings[left : left + 200]], [row for m in meanings[:left] for row in of[m][:2]]


if __name__ == "__main__":
    main()
