"""Proof that designed prompts can be calibrated and searched: desk-lm, taught to name what a request is about, sorts requests by the words for their labels.

TUNESMITH_DATA=folder with clinc150/      python benchmarks/proofs/prompts.py [--out FOLDER] [--seeds 3]

base       desk-lm, one epoch of full fine-tuning on 12,000 requests of CLINC150 with their intents in words, asked in four ways, without two of the ten domains. It has seen the
           labels that are asked for here, as a large model would have, and none of the rows
task       the first eight intents of the domain banking; 96 held-out rows, twelve of each, by which nothing is chosen; training rows are for demonstrations and prices
written    a prompt that the base was never asked with
seeds      draw the demonstrations, the random texts, the rows that candidates are priced on and the order of the search; nothing is trained after the base
control    the same search with each label's words dealt to another label
as shipped desk-lm itself on the desk's twelve intents: what a language model of 4.5 million parameters makes of a prompt

Accuracy. Exits with 1 where on average over seeds calibrated is not above raw with demonstrations, searched not above written, or the control above twice chance.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from rows import written

import tunesmith
from tunesmith.artifact import export

ASKED = ("{}", "What is this about? {}", "{} Topic?", "Name the topic: {}")
LEFT_OUT = ("travel", "kitchen_and_dining")
WRITTEN = {"chat": True, "instruction": "Sort the message.", "template": "{text}\nWhich department? {label}"}
SEARCH = {
    "templates": ["{text} {label}", "Name the topic: {text} {label}", "Customer: {text}\nDepartment: {label}", "Text: {text} Kind of request: {label}"],
    "instructions": ["", "What does the customer want?"],
    "over": ["template", "instruction"],
    "rows": 64,
    "passes": 12_000,
}
PRICED = {"over": [], "rows": 16, "passes": 1}  # no search


def taught(data: dict[str, Any], domains: dict[str, list[str]], out: Path) -> Path:
    """The base, made once."""
    if (out / "base").exists():
        return out / "base"
    dice, without = random.Random(0), {intent for name in LEFT_OUT for intent in domains[name]}
    rows = [{"prompt": dice.choice(ASKED).format(text), "completion": intent.replace("_", " ")} for text, intent in data["train"] if intent not in without]
    dice.shuffle(rows)
    tunesmith.run(
        {
            "model": "desk-lm", "task": "generate", "data": {"train": written(out / "base.jsonl", rows), "max_length": 96}, "method": "full", "threads": 1,
            "update": {"rate": 1e-3, "batch": 32, "schedule": "cosine"}, "budget": {"epochs": 1}, "checkpoint": {"every": 100}, "out": str(out / "base-run"),
        }
    )  # fmt: skip
    export(out / "base-run", out / "base")
    return out / "base"


def files(data: dict[str, Any], domains: dict[str, list[str]], out: Path) -> dict[str, Any]:
    intents, dice = sorted(domains["banking"])[:8], random.Random(0)
    held = [row for intent in intents for row in dice.sample([tuple(r) for r in data["test"] if r[1] == intent], 12)]
    train = [tuple(r) for r in data["train"] if r[1] in intents]
    rows = lambda of: ({"text": text, "label": label} for text, label in of)
    return {"train": written(out / "train.jsonl", rows(train)), "eval": written(out / "held-out.jsonl", rows(held)), "max_length": 400}


def dealt(labels: list[str]) -> dict[str, str]:
    """Each label with the words of another."""
    return {label: labels[(i + 3) % len(labels)].replace("_", " ") for i, label in enumerate(labels)}


def arms(labels: list[str]) -> dict[str, dict[str, Any]]:
    shown = {**WRITTEN, "shots": 4, "search": PRICED}
    return {
        "4 demonstrations, contextual": {**shown, "calibrate": "contextual"},
        "4 demonstrations, domain": {**shown, "calibrate": "domain"},
        "no demonstrations, contextual": {**WRITTEN, "search": PRICED, "calibrate": "contextual"},
        "no demonstrations, domain": {**WRITTEN, "search": PRICED, "calibrate": "domain"},
        "no demonstrations, searched": {**WRITTEN, "search": SEARCH},
        "control: searched, words dealt wrongly": {**WRITTEN, "search": SEARCH, "words": dealt(labels)},
    }


def measured(recipe: dict[str, Any], out: Path) -> tuple[float, float, dict[str, Any]]:
    made = {"task": "classify", "threads": 1, "dtype": "fp32", "kernel": "matmul", "out": str(out), **recipe}
    result = tunesmith.run(made)
    return result["before"]["accuracy"], result["after"]["accuracy"], dict(result.record)


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path("runs/proofs/prompts"))
    args.add_argument("--seeds", type=int, default=3)
    given = args.parse_args()
    out, began = given.out, time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    root = Path(os.environ["TUNESMITH_DATA"]) / "clinc150"
    data, domains = (json.loads((root / name).read_text()) for name in ("data_full.json", "domains.json"))
    base, rows = taught(data, domains, out), files(data, domains, out)
    table: dict[str, list[tuple[float, float]]] = {}
    for seed in range(given.seeds):
        for name, method in arms(sorted(domains["banking"])[:8]).items():
            folder = out / f"{name}-{seed}".replace(" ", "-").replace(",", "").replace(":", "")
            before, after, record = measured({"model": str(base), "data": rows, "method": {"kind": "hard_prompt", **method}, "seed": seed}, folder)
            table.setdefault(name, []).append((before, after))
            print(f"{name}, seed {seed}: {before:.3f} -> {after:.3f}; {record['steps']} steps, {record['train_seconds']:.0f} s", flush=True)
            if "searched" in name:
                print(json.dumps((folder / "artifact/prompt.txt").read_text()))
    shipped = {"kind": "hard_prompt", "template": "{text}\nTopic: {label}", "calibrate": "domain", "search": PRICED}
    table["desk-lm as shipped, the desk's intents, domain"] = [measured({"model": "desk-lm", "data": "desk", "method": shipped}, out / "shipped")[:2]]
    print("| prompt | as written, by seed | afterwards, by seed | mean | mean |\n|---|---|---|---|---|")
    means = {}
    for name, values in table.items():
        first, last = zip(*values, strict=True)
        means[name] = (statistics.fmean(first), statistics.fmean(last))
        print("| " + " | ".join([name, *(" / ".join(f"{v:.3f}" for v in part) for part in (first, last)), *(f"{m:.3f}" for m in means[name])]) + " |")
    print(f"{time.perf_counter() - began:.0f} s")
    ways = ("4 demonstrations, contextual", "4 demonstrations, domain", "no demonstrations, searched")
    broken = [name for name in ways if means[name][1] <= means[name][0]]
    broken += [name for name in means if name.startswith("control") and means[name][1] > 2 / 8]
    print("".join(f"broken: {name}\n" for name in broken), end="")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
