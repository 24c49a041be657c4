"""Few rows of each class: which route wins, and is ours what SetFit is, at a third of its time? MiniLM, 8 a class, ten draws.

    TUNESMITH_DATA=... python benchmarks/proofs/few.py --only trec                  one of banking77, trec; all by default
    TUNESMITH_DATA=... python benchmarks/proofs/few.py --only banking77 --routes "setfit, full;full;head"      and "layers;lora;bitfit": the baselines are always there
    TUNESMITH_DATA=... python benchmarks/proofs/few.py --peer-splits 3 --pairs 5    SetFit on the first three draws only, 5 pairs a row of each sort; 0: as it comes

Every draw is `stream: few` with its own seed, the same rows for every route, each of which takes the same steps of the same size, and for SetFit, which runs beside ours in the same process where it is installed (setfit 1.2; pip install setfit).
Judged on test rows that nothing is chosen by: all 500 of TREC, every fourth of Banking77's 3,080. Rates, steps and losses were chosen on other data (docs/LOG.md), but for Banking77's 150 steps: 60 had been seen to be too few on these rows. Seconds are of the processor:
ours of the whole run from loading the model to the artifact on disk, SetFit's of `Trainer.train()` alone. What was found is kept in --out, so that a second call goes on. docs/proofs.md has what it printed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lanes import side_by_side
from rich.console import Console
from rich.table import Table as View
from rows import written

from tunesmith.artifact import load
from tunesmith.comparison.baselines import centroid, logistic, majority
from tunesmith.comparison.statistics import Estimate, difference, holm
from tunesmith.dataset import read_data
from tunesmith.embedder import embedder
from tunesmith.evaluate.metrics import METRICS
from tunesmith.networks.load import origin
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.train import run

Rows = list[dict[str, str]]
SOURCE = Path(os.environ.get("TUNESMITH_DATA", "."))
K = 8


def banking77(part: str) -> Rows:
    with (SOURCE / "banking77" / f"{part}.csv").open(encoding="utf-8", newline="") as f:
        rows = [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(f)]
    return rows if part == "train" else rows[::4]


def trec(part: str) -> Rows:
    lines = (SOURCE / "trec" / f"TREC.{part}").read_text(encoding="latin-1").splitlines()
    return [{"text": line.partition(" ")[2], "label": line.partition(":")[0]} for line in lines]


SETS: dict[str, Callable[[str], Rows]] = {"banking77": banking77, "trec": trec}
SIZES: dict[str, dict[str, Any]] = {
    "banking77": {"budget": {"steps": 150}, "update": {"batch": 32}},  # eight passes over 616 rows
    "trec": {"budget": {"steps": 60}, "update": {"batch": 16}},  # twenty over 48
}
CONTROL = "setfit, labels dealt"  # to other texts by chance: what helps here as well would come from somewhere else
CONTROLS = 3  # draws: it ends at chance in each
ROUTES: dict[str, dict[str, Any]] = {
    "setfit, full": {"objective": "setfit", "method": "full"},
    "full": {"method": "full"},
    "layers": {"method": "layers"},
    "lora": {"method": "lora"},
    "bitfit": {"method": "bitfit"},
    "head": {"method": "head"},
    CONTROL: {"objective": "setfit", "method": "full"},
}


def made(name: str, split: int, folder: Path, how: dict[str, Any], rows: str = "train") -> Any:
    return recipe(
        {
            "model": "minilm", "task": "classify", "data": {"train": str(folder / f"{rows}.jsonl")}, "stream": {"kind": "few", "k": K}, "seed": split, "threads": 1,
            "checkpoint": {"every": 10**6}, "out": str(folder / f"run-{split}"), **SIZES[name], **how,
        }
    )  # fmt: skip


def routed(name: str, split: int, folder: Path, arm: str, test: Rows) -> tuple[list[str], float]:
    """What the artifact says of the test rows, and the seconds that the run took."""
    began = time.process_time()
    run(made(name, split, folder, ROUTES[arm], "dealt" if arm == CONTROL else "train"), Reporter(quiet=True), fresh=True)
    took = time.process_time() - began
    return [said["label"] for said in load(folder / f"run-{split}").predict([row["text"] for row in test])], took


def drawn(name: str, split: int, folder: Path) -> Rows:
    examples: Any = read_data(made(name, split, folder, {})).train.examples
    return [{"text": e.text, "label": e.labels[0]} for e in examples]


def frozen(name: str, rows: Rows, test: Rows, x: np.ndarray, z: np.ndarray) -> dict[str, tuple[list[str], float]]:
    """The heads that cost no training, on MiniLM's embeddings as they are."""
    labels = sorted({row["label"] for row in rows})
    y = np.array([labels.index(row["label"]) for row in rows])
    found = {}
    for arm, fit in {"majority": majority("single"), "nearest centroid": centroid, "linear probe": logistic}.items():
        began = time.process_time()
        weight, bias = fit(x, y, len(labels))
        found[arm] = ([labels[k] for k in (z @ weight.T + bias).argmax(1)], time.process_time() - began)
    return found


def peer(rows: Rows, test: Rows, split: int, pairs: int) -> tuple[list[str], float]:
    """SetFit 1.2 as it comes, on the encoder as it was published; with `pairs`, the paper's R, the number of pairs of each sort a row."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, models
    from setfit import SetFitModel, Trainer, TrainingArguments

    body = models.Transformer(origin("minilm").path)
    encoder = SentenceTransformer(modules=[body, models.Pooling(body.get_embedding_dimension()), models.Normalize()], device="cpu")
    from sklearn.linear_model import LogisticRegression

    model = SetFitModel(model_body=encoder, model_head=LogisticRegression(max_iter=300), labels=sorted({row["label"] for row in rows}))
    more: dict[str, Any] = {"num_iterations": pairs} if pairs else {}
    args = TrainingArguments(
        save_strategy="no", report_to="none", show_progress_bar=False, seed=split, output_dir=str(Path(tempfile.gettempdir()) / f"setfit-{split}"), **more
    )
    trainer = Trainer(model=model, args=args, train_dataset=Dataset.from_list(rows))
    began = time.process_time()
    trainer.train()
    took = time.process_time() - began
    return [str(said) for said in model.predict([row["text"] for row in test])], took


def proven(name: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Accuracy, macro-F1 and seconds by arm and draw; `--jobs` draws at a time."""
    folder = args.out / name
    folder.mkdir(parents=True, exist_ok=True)
    train = SETS[name]("train")
    others = random.Random(7).sample([row["label"] for row in train], len(train))
    for part, rows in (("train", train), ("dealt", [row | {"label": other} for row, other in zip(train, others, strict=True)])):
        written(folder / f"{part}.jsonl", rows)
    test = SETS[name]("test")
    z = embedder("minilm").of([row["text"] for row in test], "text").double().numpy()
    found: dict[str, dict[str, Any]] = {}
    draws = side_by_side([partial(draw, name, args, test, z, split) for split in range(args.splits)], args.jobs)
    for split, of_draw in enumerate(draws):
        for arm, scores in of_draw.items():
            found.setdefault(arm, {})[str(split)] = scores
    return found


def draw(name: str, args: argparse.Namespace, test: Rows, z: np.ndarray, split: int) -> dict[str, Any]:
    """One draw: accuracy, macro-F1 and seconds by arm. `z` are the test rows, embedded."""
    folder = args.out / name
    kept = folder / f"found-{split}.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}

    def note(arm: str, said: list[str], took: float) -> None:
        scores = METRICS["classify"](said, [row["label"] for row in test]).values
        found[arm] = {"accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"], "seconds": took}
        kept.write_text(json.dumps(found, indent=1))
        print(f"{name} {split} {arm}: {scores['accuracy']:.3f}, {took:.1f} s", flush=True)

    rows = drawn(name, split, folder)
    if "linear probe" not in found:
        x = embedder("minilm").of([row["text"] for row in rows], "text").double().numpy()
        for arm, (said, took) in frozen(name, rows, test, x, z).items():
            note(arm, said, took)
    beside = f"SetFit 1.2, R = {args.pairs}" if args.pairs else "SetFit 1.2"
    chosen = [arm for arm in args.routes or ROUTES if arm != CONTROL or split < CONTROLS]
    jobs: dict[str, Callable[[], tuple[list[str], float]]] = {arm: lambda arm=arm: routed(name, split, folder, arm, test) for arm in chosen}
    jobs |= {beside: lambda: peer(rows, test, split, args.pairs)} if split < args.peer_splits else {}
    order = list(jobs)
    random.Random(split).shuffle(order)  # who comes first finds a warmer or a colder machine
    for arm in order:
        if arm not in found:
            note(arm, *jobs[arm]())
    return found


def shown(name: str, found: dict[str, dict[str, Any]]) -> None:
    """Means and deviations over draws; each arm against ours by a test that is paired by the draw, adjusted by Holm."""
    ours = found.get("setfit, full", {})
    estimate = lambda splits, arm: Estimate(
        float(np.mean([found[arm][s]["accuracy"] for s in splits])), 0, 0, tuple(found[arm][s]["accuracy"] for s in splits), np.zeros(2)
    )
    tests = {}
    for arm in found:
        both = sorted(set(ours) & set(found[arm]))
        if arm != "setfit, full" and len(both) > 1:
            tests[arm] = difference(estimate(both, "setfit, full"), estimate(both, arm), 2, paired=True)
    adjusted = holm({arm: p for arm, (_, p) in tests.items()})
    view = View(title=f"{name}, {K} a class")
    for column in ("route", "draws", "accuracy", "macro-F1", "setfit, full is better by", "p", "seconds"):
        view.add_column(column)
    for arm in sorted(found, key=lambda a: -np.mean([v["accuracy"] for v in found[a].values()])):
        of = lambda key, arm=arm: [v[key] for v in found[arm].values()]
        gap = f"{tests[arm][0]:+.3f}" if arm in tests else ""
        deviation = np.std(of("accuracy"), ddof=1) if len(of("accuracy")) > 1 else 0.0
        view.add_row(
            arm,
            str(len(found[arm])),
            f"{np.mean(of('accuracy')):.3f} ± {deviation:.3f}",
            f"{np.mean(of('macro_f1')):.3f}",
            gap,
            f"{adjusted[arm]:.4f}" if arm in adjusted else "",
            f"{np.mean(of('seconds')):.1f}",
        )
    Console(width=150).print(view)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SETS), help=", ".join(SETS))
    parser.add_argument("--routes", type=lambda text: text.split(";"), default=[], help="; ".join(ROUTES))
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--peer-splits", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="draws at a time, a thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/proofs/few"))
    args = parser.parse_args(given)
    for name in args.only:
        shown(name, proven(name, args))


if __name__ == "__main__":
    main()
