"""Does contrastive learning learn? MiniLM, which is English, on Chinese and on the intents of bank customers: before, after, bounds, and a control.

    TUNESMITH_DATA=... python benchmarks/proofs/contrast.py                     all cases, a table at the end
    TUNESMITH_DATA=... python benchmarks/proofs/contrast.py --only intents      one of them

Every run is `tunesmith.run` on a recipe, judged on test rows that no choice was made on. A control has the same texts, steps and rate, and relations that
were dealt anew by chance: what helps there as well would come from somewhere else. docs/proofs.md has what it printed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lanes import side_by_side
from rich.console import Console
from rich.table import Table
from rows import written
from scipy.stats import spearmanr

import tunesmith
from tunesmith.embedder import embedder

Row = dict[str, Any]
Rows = list[Row]
SOURCE = Path(os.environ.get("TUNESMITH_DATA", "."))
JOBS = 2  # runs at a time, a thread each


def scored(lang: str, part: str) -> Rows:
    with (SOURCE / "stsb" / f"stsb-{lang}-{part}.csv").open(encoding="utf-8", newline="") as f:
        return [{"sentence1": a, "sentence2": b, "score": float(s)} for a, b, s in csv.reader(f)]


def intents(part: str) -> Rows:
    with (SOURCE / "banking77" / f"{part}.csv").open(encoding="utf-8", newline="") as f:
        return [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(f)]


def alone(rows: Rows) -> Rows:
    return [{"text": t} for t in dict.fromkeys(t for row in rows for t in (row["sentence1"], row["sentence2"]))]


def dealt(rows: Rows, column: str) -> Rows:
    """The rows with the values of one column in another order."""
    values = [row[column] for row in rows]
    random.Random(7).shuffle(values)
    return [row | {column: value} for row, value in zip(rows, values, strict=True)]


def strangers(rows: Rows) -> Rows:
    """Each text with another one by chance as its positive: for SimCSE, whose pairs are a text and itself."""
    texts = [row["text"] for row in alone(rows)]
    others = texts[:]
    random.Random(7).shuffle(others)
    return [{"anchor": a, "positive": b} for a, b in zip(texts, others, strict=True)]


# ------------------------------------------------------------------------------------------------ bounds


def overlap(rows: Rows) -> float:
    """Spearman of the share of neighbouring characters that two texts have in common (Jaccard): what asks no network. MiniLM cannot read six in ten of them."""
    grams = lambda text: {text[i : i + 2] for i in range(len(text) - 1)} or {text}
    shares = [len(grams(r["sentence1"]) & grams(r["sentence2"])) / len(grams(r["sentence1"]) | grams(r["sentence2"])) for r in rows]
    return float(spearmanr(shares, [r["score"] for r in rows])[0])


def untuned(rows: Rows, dims: int = 384) -> float:
    """Spearman of MiniLM as it is, with the first components of its vectors."""
    sides = [embedder("minilm").of([row[key] for row in rows], "text").numpy() for key in ("sentence1", "sentence2")]
    return correlation(sides, rows, dims)


def correlation(sides: Sequence[np.ndarray], rows: Rows, dims: int) -> float:
    a, b = (side[:, :dims] / np.linalg.norm(side[:, :dims], axis=1, keepdims=True) for side in sides)
    return float(spearmanr((a * b).sum(1), [row["score"] for row in rows])[0])


def majority(rows: Rows) -> float:
    labels = [row["label"] for row in rows]
    return max(map(labels.count, set(labels))) / len(labels)


def probe(train: Rows, test: Rows) -> float:
    """Accuracy of logistic regression on MiniLM's embeddings of all training rows: what their labels teach without moving the trunk."""
    from sklearn.linear_model import LogisticRegression

    net = embedder("minilm")
    x, y = net.of([r["text"] for r in train], "text").numpy(), [r["label"] for r in train]
    model = LogisticRegression(C=100, max_iter=300).fit(x, y)
    return float(np.mean(model.predict(net.of([r["text"] for r in test], "text").numpy()) == [r["label"] for r in test]))


# ------------------------------------------------------------------------------------------------ runs


def trained(train: Rows, test: Rows, folder: Path, more: Row, seed: int = 0) -> Row:
    files = {name: written(folder / f"{name}.jsonl", rows) for name, rows in (("train", train), ("eval", test))}
    recipe = {
        "model": "minilm",
        "task": "embed",
        "data": files,
        "method": "full",
        "evaluate": {"best": False, "every": 10**6},
        "out": str(folder / "run"),
        "seed": seed,
    }
    began = time.perf_counter()
    found = tunesmith.run({**recipe, **more})
    metric = found["metric"]
    return {
        "metric": metric, "before": found["before"][metric], "after": found["after"][metric], "seconds": time.perf_counter() - began, "folder": str(folder / "run"),
        "peak": found["peak_memory_bytes"],
    }  # fmt: skip


def both(train: Rows, chance: Rows, test: Rows, work: Path, how: Row, seeds: int) -> Iterator[Row]:
    """The runs of all seeds, and behind them the control's."""
    calls = [partial(trained, train, test, work / f"real-{seed}", how, seed) for seed in range(seeds)]
    return side_by_side([*calls, partial(trained, chance, test, work / "control", how)], JOBS)


def at_dims(folder: str, rows: Rows, dims: int) -> float:
    """Spearman of a run with the first components of its vectors alone."""
    tuned = tunesmith.load(folder)
    return correlation([np.array([r["vector"] for r in tuned.predict([row[key] for row in rows])]) for key in ("sentence1", "sentence2")], rows, dims)


def supervised(work: Path, seeds: int, most: int) -> Row:
    """CoSENT on the Chinese half of STS-B, machine-translated; judged on its test rows."""
    train, test = scored("zh", "train")[:most], scored("zh", "test")
    how = {"budget": {"epochs": 1}}
    *runs, control = both(train, dealt(train, "score"), test, work, how, seeds)
    return told(runs, control, ("characters in common", overlap(test)), ("MiniLM on the English originals", untuned(scored("en", "test"))))


def unsupervised(work: Path, seeds: int, most: int) -> Row:
    """SimCSE on the Chinese texts of STS-B's training rows, whose scores it does not see."""
    train, test = scored("zh", "train")[:most], scored("zh", "test")
    how = {"budget": {"epochs": 1}, "update": {"batch": 64, "rate": 5e-5}}
    *runs, control = both(alone(train), strangers(train), test, work, how, seeds)
    return told(runs, control, ("characters in common", overlap(test)), ("MiniLM on the English originals", untuned(scored("en", "test"))))


def labelled(work: Path, seeds: int, most: int) -> Row:
    """SupCon on Banking77; judged by the label of the nearest other test row."""
    train, test = random.Random(0).sample(intents("train"), min(most, 10003)), intents("test")
    how = {"budget": {"epochs": 2}, "update": {"batch": 128}}
    *runs, control = both(train, dealt(train, "label"), test, work, how, seeds)
    return told(runs, control, ("most frequent label", majority(test)), ("linear probe", probe(train, test)))


def nested(work: Path, seeds: int, most: int) -> Row:
    """Matryoshka over CoSENT, Chinese STS-B: Spearman of the first 48 of 384 components; the control is a run without."""
    train, test = scored("zh", "train")[:most], scored("zh", "test")
    how = {"budget": {"epochs": 1}}
    nests = how | {"objective": {"kind": "contrast", "dims": [384, 192, 96, 48]}}
    calls = [partial(trained, train, test, work / f"real-{seed}", nests, seed) for seed in range(seeds)]
    *runs, plain = side_by_side([*calls, partial(trained, train, test, work / "control", how)], JOBS)
    runs = [run | {"before": untuned(test, 48), "after": at_dims(run["folder"], test, 48)} for run in runs]
    control = plain | {"after": at_dims(plain["folder"], test, 48)}
    return told(runs, control, ("characters in common", overlap(test)), ("all 384 components, CoSENT alone", plain["after"]))


def told(runs: Sequence[Row], control: Row, reference: tuple[str, float], upper: tuple[str, float]) -> Row:
    return {"metric": runs[0]["metric"], "before": runs[0]["before"], "after": [r["after"] for r in runs], "control": control["after"], "reference": reference, "upper": upper,
            "seconds": [round(r["seconds"]) for r in runs], "peak": max(r["peak"] for r in runs)}  # fmt: skip


CASES: dict[str, Callable[[Path, int, int], Row]] = {"stsb-zh": supervised, "simcse-zh": unsupervised, "intents": labelled, "matryoshka-zh": nested}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=10**6, help="training rows, at most")
    parser.add_argument("--json", type=Path, help="write what was found here")
    args = parser.parse_args()
    view = Table(title="Contrastive learning of MiniLM, on test rows")
    for name in ("case", "metric", "reference", "before", "after", "control", "upper bound", "seconds a run"):
        view.add_column(name)
    found = {}
    with tempfile.TemporaryDirectory() as work:
        for name in args.only:
            r = found[name] = CASES[name](Path(work) / name, args.seeds, args.rows)
            spread = f" ± {statistics.stdev(r['after']):.3f}" if args.seeds > 1 else ""
            bounds = [f"{value:.3f} {what}" for what, value in (r["reference"], r["upper"])]
            after = f"{statistics.fmean(r['after']):.3f}{spread}"
            view.add_row(name, r["metric"], bounds[0], f"{r['before']:.3f}", after, f"{r['control']:.3f}", bounds[1], ", ".join(map(str, r["seconds"])))
            if args.json:
                args.json.write_text(json.dumps(found, indent=1))
    Console(width=170).print(view)


if __name__ == "__main__":
    main()
