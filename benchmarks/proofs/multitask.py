"""Proof that tasks help each other, and what balancing and surgery add: a task with few labels, beside another with many.

    TUNESMITH_DATA=folder with trec/, clinc150/ and stsb/      python benchmarks/proofs/multitask.py [--case trec] [--out FOLDER] [--seeds 3] [--arms single,together,...]

trec     TREC's 50 fine question types from at most four labels each (200 rows), beside its six coarse ones from all 5,452; MiniLM, the last three blocks
clinc    CLINC150's 150 intents from five labels each, beside its ten domains from all 15,000; MiniLM's first block alone, all of it trained
unread   the same intents and domains; a BERT of two blocks of 128 that has read nothing yet
units    TREC's coarse types from 1,000 rows, beside the similarity of 5,749 pairs of sentences in per cent, whose squared error begins five hundred times larger; MiniLM, LoRA
arms     the first task alone (lower bound); both; both with the second's labels dealt anew by chance (negative control); both under each `update`; the first
         from all labels (upper bound). Every step holds 32 rows of a task; every arm takes the same number of steps at one rate.

Accuracy of the first task on its test rows, which nothing is chosen by; of a second that is judged, its own measure.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from lanes import side_by_side
from rows import written

import tunesmith
from tunesmith.networks.load import load_tokenizer, origin

UPDATES = ("uncertainty", "dwa", "gradnorm", "famo", "pcgrad", "cagrad", "mgda", "upgrad")
ARMS = ("single", "together", "random", *UPDATES, "all")


Found = list[dict[str, Any]]
Files = dict[str, str]


@dataclass(frozen=True)
class Case:
    """`files` of a seed: few, all, test of the first task; second, random, and perhaps judged, of the second, whose task is `beside`. `made`: the recipe's part."""

    files: Callable[[Path, random.Random], dict[str, Found]]
    made: dict[str, Any]
    beside: str = "classify"
    start: Callable[[Path], None] | None = None


def clinc(root: Path, dice: random.Random) -> dict[str, Found]:
    data = json.loads((root / "clinc150/data_full.json").read_text())
    domain = {intent: name for name, intents in json.loads((root / "clinc150/domains.json").read_text()).items() for intent in intents}
    return coarser(data["train"], [domain[label] for _, label in data["train"]], data["test"], 5, dice)


def questions(root: Path) -> list[list[tuple[str, str]]]:
    """TREC's rows to learn from and to judge by, with their fine types."""
    parts = []
    for name in ("TREC.train", "TREC.test"):
        lines = (root / "trec" / name).read_text(encoding="latin-1").splitlines()
        parts.append([(text.strip(), label) for label, _, text in (line.partition(" ") for line in lines if line.strip())])
    return parts


def trec(root: Path, dice: random.Random) -> dict[str, Found]:
    train, test = questions(root)
    return coarser(train, [label.partition(":")[0] for _, label in train], test, 4, dice)


def coarser(whole: Sequence[tuple[str, str]], second: Sequence[str], test: Sequence[tuple[str, str]], each: int, dice: random.Random) -> dict[str, Found]:
    """So many rows of each label, beside the coarser labels of all."""
    of: dict[str, list[tuple[str, str]]] = {}
    for text, label in whole:
        of.setdefault(label, []).append((text, label))
    few = [row for label in sorted(of) for row in dice.sample(of[label], min(each, len(of[label])))]
    texts = [text for text, _ in whole]
    return {
        "few": labelled(few),
        "all": labelled(whole),
        "test": labelled([row for row in test if row[1] in of]),
        "second": labelled(list(zip(texts, second, strict=True))),
        "random": labelled(list(zip(texts, dice.sample(list(second), len(second)), strict=True))),
    }


def units(root: Path, dice: random.Random) -> dict[str, Found]:
    train, test = ([(text, label.partition(":")[0]) for text, label in part] for part in questions(root))
    pairs = {part: scored(root / f"stsb/stsb-en-{part}.csv") for part in ("train", "dev")}
    scores = [row["score"] for row in pairs["train"]]
    mixed = [{**row, "score": score} for row, score in zip(pairs["train"], dice.sample(scores, len(scores)), strict=True)]
    return {
        "few": labelled(dice.sample(train, 1000)),
        "all": labelled(train),
        "test": labelled(test),
        "second": pairs["train"],
        "random": mixed,
        "judged": pairs["dev"],
    }


def labelled(found: Sequence[tuple[str, str]]) -> Found:
    return [{"text": text, "label": label} for text, label in found]


def scored(path: Path) -> Found:
    with path.open(encoding="utf-8", newline="") as f:
        return [{"text": a, "pair": b, "score": 20 * float(score)} for a, b, score in csv.reader(f)]


def unread(folder: Path) -> None:
    """A BERT with random weights, and MiniLM's tokenizer."""
    tokenizer = load_tokenizer(origin("minilm"))
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    torch.manual_seed(0)
    hf.BertModel(hf.BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


CASES = {
    "trec": Case(trec, {"model": "minilm", "method": {"kind": "layers", "last": 3}, "budget": {"steps": 150}}),
    "clinc": Case(clinc, {"model": {"name": "minilm", "blocks": [0]}, "method": "full", "budget": {"steps": 300}, "update": {"rate": 3e-4}}),
    "unread": Case(clinc, {"method": "full", "budget": {"steps": 900}, "update": {"rate": 1e-3}}, start=unread),
    "units": Case(units, {"model": "minilm", "method": "lora", "budget": {"steps": 200}}, beside="score"),
}


def arm(name: str, of: Files, case: Case) -> dict[str, Any]:
    if name in ("single", "all"):
        return {"task": "classify", "data": {"train": of["few" if name == "single" else "all"], "eval": of["test"]}}
    judged = {"eval": of["judged"]} if "judged" in of else {}
    aside = {"task": case.beside, "data": {"train": of["random" if name == "random" else "second"], **judged}}
    tasks = {"first": {"task": "classify", "data": {"train": of["few"], "eval": of["test"]}}, "second": aside}
    kind = {"kind": name} if name in UPDATES else {}
    return {"tasks": tasks, "stream": {"kind": "mix", "temperature": 1e9}, "update": {**case.made.get("update", {}), "batch": 64, **kind}}


def measured(recipe: dict[str, Any]) -> dict[str, Any]:
    result = tunesmith.run(recipe)
    after = result["after"]
    return {
        "accuracy": accuracy(after), "second": after.get("second.spearman"), "conflicts": result.record.get("conflicts_per_step"),
        "seconds": round(result["train_seconds"]),
    }  # fmt: skip


def accuracy(values: dict[str, Any]) -> float:
    return values.get("first.accuracy", values.get("accuracy", float("nan")))


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path("runs/proofs/multitask"))
    args.add_argument("--case", choices=list(CASES), default="trec")
    args.add_argument("--seeds", type=int, default=1)
    args.add_argument("--jobs", type=int, default=2, help="runs at a time, a thread each")
    args.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
    given = args.parse_args()
    case, out, began = CASES[given.case], given.out / given.case, time.perf_counter()
    made = {**case.made, "evaluate": {"every": 100_000, "best": False}, "checkpoint": {"every": 100_000}, "threads": 1}
    if case.start:
        case.start(out / "start")
        made["model"] = str(out / "start")
    runs = []
    for seed in range(given.seeds):
        drawn = case.files(Path(os.environ["TUNESMITH_DATA"]), random.Random(seed))
        of = {name: written(out / f"data-{seed}/{name}.jsonl", rows) for name, rows in drawn.items()}
        runs += [(name, {**made, **arm(name, of, case), "seed": seed, "out": str(out / f"{name}-{seed}")}) for name in given.arms]
    table: dict[str, dict[str, list[float]]] = {}
    for (name, recipe), said in zip(runs, side_by_side([partial(measured, recipe) for _, recipe in runs], given.jobs), strict=True):
        for column in ("accuracy", "second", "conflicts"):
            if said[column] is not None:
                table.setdefault(name, {}).setdefault(column, []).append(said[column])
        print(f"{recipe['seed']} {name}: {said}", flush=True)
    for name, columns in table.items():
        print(f"| {name} | " + " | ".join(mean_of(columns[c]) if c in columns else "" for c in ("accuracy", "second", "conflicts")) + " |")
    print(f"{time.perf_counter() - began:.0f} s")


def mean_of(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
