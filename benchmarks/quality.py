"""Do we learn what the peers learn? The same rows, rate, steps and judging rows; accuracy, one line a run.

    TUNESMITH_DATA=... python benchmarks/quality.py --sides ours,peer > quality.jsonl
    python benchmarks/quality.py --table quality.jsonl                  # the table in docs/quality.md

SST-2 and TREC, 1,000 training rows drawn once, 63 steps of 32, linear schedule with 6 % warm-up, weight decay 0.01, clipping at 1, the
rate of our methods' table on both sides; judged on SST-2's dev and TREC's test rows, asked once. `ours` is `tunesmith run`; `peer` is PEFT
or plain Hugging Face Trainer in fp32, as in sides.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections import defaultdict
from itertools import product
from pathlib import Path

import torch

from rates import one, sets
from sides import Spec, arguments, their_model
from tunesmith.comparison.arms import EIGHT
from tunesmith.core import Ragged
from tunesmith.dataset import Dataset, read_data
from tunesmith.methods import METHODS
from tunesmith.networks.load import origin
from tunesmith.recipe import recipe

STEPS, WARMUP, SIZE = 63, 0.06, 32


def ours(name: str, rate: float, data: dict, seed: int) -> float:
    return one(name, rate, data, seed, STEPS)["accuracy"]


def peer(name: str, rate: float, data: dict, seed: int) -> float:
    """Train by Trainer on the rows that our reader reads, and judge by argmax."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, set_seed

    read = read_data(recipe({**data, "method": "full"}))
    tokenizer = AutoTokenizer.from_pretrained(origin("minilm").path)
    spec = Spec("default", name, origin("minilm").path, rate, steps=STEPS, size=SIZE, seed=seed, warmup=WARMUP, classes=len(read.task.labels))
    set_seed(seed)
    model = their_model(spec)
    pad = DataCollatorWithPadding(tokenizer)
    Trainer(model, arguments(spec), data_collator=pad, train_dataset=rows(read, "train"), processing_class=tokenizer).train()
    return accuracy(model.eval(), rows(read, "test"), pad)


def rows(read: Dataset, part: str) -> list[dict]:
    columns = getattr(read, part).encoded.columns
    ids = columns["ids"]
    assert isinstance(ids, Ragged)
    return [
        {"input_ids": row.tolist(), "attention_mask": [1] * len(row), "labels": int(label)} for row, label in zip(ids.rows(), columns["label"], strict=True)
    ]


@torch.no_grad()
def accuracy(model, judged: list[dict], pad) -> float:
    right, judged = 0, sorted(judged, key=lambda r: len(r["input_ids"]))
    for start in range(0, len(judged), 64):
        batch = pad(judged[start : start + 64])
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(judged)


def table(lines: list[str]) -> str:
    """Mean and standard deviation over seeds, and the difference with its 95 % interval (Welch)."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    rates = {}
    for line in map(json.loads, (text for text in lines if text.startswith('{"'))):  # the peer's trainer prints lines of its own
        found[line["method"], line["data"], line["side"]].append(line["accuracy"])
        rates[line["method"]] = line["rate"]
    names = sorted({d for _, d, _ in found})
    out = ["| method | rate | " + " | ".join(f"{d}: ours | peer | difference" for d in names) + " |", "|---|---|" + "---|---|---|" * len(names)]
    for method in (m for m in EIGHT if m in rates):
        cells = [f"{method}", f"{rates[method]:g}"]
        for d in names:
            a, b = found[method, d, "ours"], found[method, d, "peer"]
            cells += [spread(a), spread(b), difference(a, b)]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else "-"


def difference(a: list[float], b: list[float]) -> str:
    if min(len(a), len(b)) < 2:
        return "-"
    from scipy.stats import t

    va, vb = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    free = (va + vb) ** 2 / max(1e-12, va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = float(t.ppf(0.975, max(1.0, free))) * math.sqrt(va + vb)
    gap = statistics.fmean(a) - statistics.fmean(b)
    return f"{gap:+.3f} ± {half:.3f}" + ("" if abs(gap) <= half else " *")


SIDES = {"ours": ours, "peer": peer}


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--methods", default=",".join(EIGHT))
    args.add_argument("--sets", default="sst2,trec")
    args.add_argument("--sides", default="ours,peer")
    args.add_argument("--seeds", type=int, default=3)
    args.add_argument("--threads", type=int, default=torch.get_num_threads())
    args.add_argument("--table", type=Path)
    options = args.parse_args()
    if options.table:
        print(table(options.table.read_text().splitlines()))
        return
    torch.set_num_threads(options.threads)
    data = sets(os.environ.get("TUNESMITH_DATA", ""))
    for name, chosen, side, seed in product(options.methods.split(","), options.sets.split(","), options.sides.split(","), range(options.seeds)):
        rate = METHODS[name].rates["encoder"]
        found = {"method": name, "rate": rate, "data": chosen, "side": side, "seed": seed}
        print(json.dumps({**found, "accuracy": round(SIDES[side](name, rate, data[chosen], seed), 4)}), flush=True)


if __name__ == "__main__":
    main()
