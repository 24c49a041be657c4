"""What `recommend` knows: eight methods and the zero-cost baselines, compared on real sets at several numbers of training rows.

    TUNESMITH_DATA=... python benchmarks/evidence.py --sizes 8-per-class,1000,full --out src/tunesmith/data/evidence.jsonl
    python benchmarks/evidence.py --figures                      what docs/guide.md says of the eight, from the rows that ship

One line an arm. Cells that the file has are not measured again, so it can be stopped and taken up at any time. Every cell is one
`compare` on MiniLM: batches of 32, three epochs but at least 100 steps, each method at its own default rate; the rows are drawn by the
seed, and all arms of a cell see the same. Judged on at most 2,000 rows of the set's own dev or test part, which no run learns from.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.advice.evidence import cells_of, losses, rows_of
from tunesmith.advice.shape import shape_of
from tunesmith.advice.skill import skill_of
from tunesmith.comparison.arms import EIGHT
from tunesmith.comparison.compare import compare
from tunesmith.dataset import read_data
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.shared import Shared

Rows = list[dict]
BATCH, EPOCHS, LEAST, JUDGED = 32, 3, 100, 2000


def pairs(found: Iterable[tuple[str, str]]) -> Rows:
    return [{"text": text.strip(), "label": label.strip()} for text, label in found if text.strip()]


def table(path: Path, text: int, label: int, delimiter: str = ",", header: bool = True) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as f:
        lines = list(csv.reader(f, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE))[header:]
    return pairs((line[text], line[label]) for line in lines)


def trec(path: Path, fine: bool) -> Rows:
    lines = [line.partition(" ") for line in path.read_text(encoding="latin-1").splitlines()]
    return pairs((text, label if fine else label.partition(":")[0]) for label, _, text in lines)


def clinc(path: Path, part: str, domains: bool) -> Rows:
    groups = json.loads((path / "domains.json").read_text())
    above = {intent: domain for domain, intents in groups.items() for intent in intents}
    rows = json.loads((path / "data_full.json").read_text())[part]
    return pairs((text, above[label] if domains else label) for text, label in rows)


def tnews(path: Path) -> Rows:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return pairs((row["sentence"], row["label_desc"]) for row in rows)


def cut(rows: Rows, held: int) -> tuple[Rows, Rows]:
    """Of a set without parts of its own."""
    rows = random.Random(0).sample(rows, len(rows))
    return rows[held:], rows[:held]


def sets(root: Path) -> dict[str, Callable[[], tuple[Rows, Rows]]]:
    """Rows to draw from and rows to judge by, each with text and label."""
    return {
        "sst2": lambda: (table(root / "sst2/train.tsv", 0, 1, "\t", False), table(root / "sst2/dev.tsv", 0, 1, "\t", False)),
        "trec": lambda: (trec(root / "trec/TREC.train", False), trec(root / "trec/TREC.test", False)),
        "trec-fine": lambda: (trec(root / "trec/TREC.train", True), trec(root / "trec/TREC.test", True)),
        "emotion": lambda: (table(root / "emotion/train.txt", 0, 1, ";", False), table(root / "emotion/test.txt", 0, 1, ";", False)),
        "banking77": lambda: (table(root / "banking77/train.csv", 0, 1), table(root / "banking77/test.csv", 0, 1)),
        "clinc150": lambda: (clinc(root / "clinc150", "train", False), clinc(root / "clinc150", "test", False)),
        "clinc-domain": lambda: (clinc(root / "clinc150", "train", True), clinc(root / "clinc150", "test", True)),
        "waimai": lambda: cut(table(root / "chn_waimai/waimai_10k/waimai_10k.csv", 1, 0), 600),
        "tnews": lambda: (tnews(root / "fewclue_tnews/tnews/train_few_all.json"), tnews(root / "fewclue_tnews/tnews/test_public.json")),
    }


TAGGED = {
    "wnut17": ("wnut17/wnut17train.conll", "wnut17/emerging.dev.conll"),
    "cluener": ("cluener/train.txt", "cluener/dev.txt"),
    "weibo-ner": ("weibo_ner/weiboNER_2nd_conll.train", "weibo_ner/weiboNER_2nd_conll.dev"),
}


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path("evidence.jsonl"))
    args.add_argument("--figures", action="store_true")
    args.add_argument("--sizes", default="8-per-class,1000,4000,full")
    args.add_argument("--sets", default="")
    args.add_argument("--seeds", default="0")
    args.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = args.parse_args()
    if options.figures:
        print(figures(rows_of()))
        return
    torch.set_num_threads(options.threads)
    root = Path(os.environ["TUNESMITH_DATA"])
    names = options.sets.split(",") if options.sets else [*sets(root), *TAGGED, "desk"]
    for seed in map(int, options.seeds.split(",")):
        for size in options.sizes.split(","):
            for name in names:
                if (name, size, seed) not in had(options.out):
                    cell(root, name, size, seed, options.out)


def had(out: Path) -> set[tuple[str, str, int]]:
    if not out.exists():
        return set()
    return {(line["set"], line["size"], line["seed"]) for line in map(json.loads, out.read_text().splitlines())}


def cell(root: Path, name: str, size: str, seed: int, out: Path) -> None:
    """One comparison; its lines are added at once, when it is over."""
    with tempfile.TemporaryDirectory() as work:
        found = drawn(root, name, size, seed, Path(work))
        if not found:
            return
        task, rows = found
        rest = {"evaluate": {"every": 10**6, "samples": 0}, "checkpoint": {"every": 10**6}, "threads": torch.get_num_threads(), "out": f"{work}/out"}
        plan = {"model": "minilm", "task": task, "data": rows, "method": "full", "seed": seed, "update": {"batch": BATCH}, **rest}
        shape = replace(shape_of(read_data(recipe(plan))), skill=round(skill_of(recipe(plan), Shared()) or 0.0, 4))
        steps = max(LEAST, math.ceil(shape.rows * EPOCHS / BATCH))
        made = compare(recipe({**plan, "budget": {"steps": steps}}), EIGHT, seeds=1, reporter=Reporter(quiet=True))
        facts = {"set": name, "size": size, "seed": seed, "task": task, "model": "minilm", **asdict(shape), "steps": steps}
        with out.open("a", encoding="utf-8") as f:
            f.writelines(json.dumps({**facts, **arm(record)}) + "\n" for record in made.record["arms"])
        print(name, size, seed, {record["label"]: round(record["after"][record["metric"]], 3) for record in made.record["arms"]}, flush=True)


def arm(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an arm."""
    kept = ("metric", "learning_rate", "trainable_parameters", "train_seconds", "peak_memory_bytes", "dtype")
    value, general = record["after"][record["metric"]], record.get("general")
    forgot = round(general["after"] - general["before"], 3) if general else None
    return {"arm": record["label"], "value": round(value, 4), "forgot": forgot, **{k: record.get(k) for k in kept}}


def drawn(root: Path, name: str, size: str, seed: int, work: Path) -> tuple[str, dict] | None:
    """Task and data of a cell; nothing where the set has not so many rows. Few of a tagged set and of the desk are 100 rows; all of the desk are its 1,000."""
    few = size.endswith("-per-class")
    many = 100 if few else None if size == "full" else int(size)
    if name in TAGGED:
        train, judged = (str(root / p) for p in TAGGED[name])
        return "tag", {"train": train, "eval": judged, "limit": many, "bad_rows": "skip"}
    if name == "desk":
        return None if many is None or many > 1000 else ("classify", {"train": "desk", "eval": "desk", "limit": many})
    dice = random.Random(seed)
    learn, judged = sets(root)[name]()
    learn = dice.sample(learn, len(learn))
    if few:
        learn = per_class(learn, int(size.partition("-")[0]))
    elif len(learn) < (many or 0) // 2:
        return None
    else:
        learn = learn[:many]
    known = {row["label"] for row in learn}
    judged = [row for row in random.Random(1).sample(judged, len(judged)) if row["label"] in known][:JUDGED]
    for part, rows in (("train", learn), ("eval", judged)):
        (work / f"{part}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return "classify", {"train": str(work / "train.jsonl"), "eval": str(work / "eval.jsonl")}


def figures(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of each method: how far it lay below the best of the eight, in points, where it was first, and what it forgot, in nats; means over cells."""
    cells, lost = cells_of(rows), losses(rows)
    few = [c for c in cells if c.name.endswith("per class")]
    thousand = [c for c in cells if c.name.endswith(", 1,000 rows")]
    more = [c for c in cells if c not in few and c.shape.rows > 1000]
    sizes = {"all": cells, "eight a label": few, "1,000 rows": thousand, "more": more}
    lines = ["| method | " + " | ".join(f"{size} ({len(of)})" for size, of in sizes.items()) + " | first | forgot |", "|---" * 7 + "|"]
    for method in EIGHT:
        below = {c.name: lost[c.name][f"always {method}"] for c in cells}
        points = " | ".join(f"{100 * statistics.fmean(below[c.name] for c in of):.1f}" for of in sizes.values())
        forgot = statistics.fmean(c.forgot[method] for c in cells if method in c.forgot)
        lines.append(f"| {method} | {points} | {list(below.values()).count(0.0)} | {forgot:+.2f} |")
    return "\n".join(lines)


def per_class(rows: Rows, k: int) -> Rows:
    by: dict[str, Rows] = defaultdict(list)
    for row in rows:
        by[row["label"]].append(row)
    return [row for label in sorted(by) for row in by[label][:k]]


if __name__ == "__main__":
    main()
