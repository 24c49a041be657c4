"""Is what was learnt first still known at the end? CLINC150's 150 intents come domain by domain: every strategy between doing nothing and learning all at once.

    TUNESMITH_DATA=... python benchmarks/proofs/continual.py --methods lora --stages 5 --scenarios class      a column: each is a proof of its own, with bounds and control
    TUNESMITH_DATA=... python benchmarks/proofs/continual.py --json found.jsonl --seeds 3                      all of them; what the file has is not measured again

Every cell is `tunesmith.run` on a recipe: MiniLM, 20 rows an intent, two epochs a stage, default rates, judged after each stage on 4 test rows an intent.
Full's is the best of three for `joint`: in so few steps it ends at 0.768 with its default of 1e-4, at 0.838 with 2e-4 and at 0.865 with 4e-4.
Memories hold 500 rows; 32 of them a step, by derpp in two draws of 16. O-LoRA has 8 directions a stage, as in its paper, at the scale of the other LoRAs.
`task`: a head for each part, and whose a row is, is known; `class`: one head, to which intents come; `stage`: the same, and new rows are told apart among the
intents of their stage, as lwf and olora have it anyway. `joint` is the upper bound, with as many steps in all.
`dealt`, a control, is replay with the labels of its memory dealt out anew. `resumed` stops a run in the middle of its third stage and takes it up again. docs/proofs.md has what it printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections import defaultdict
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from lanes import side_by_side
from rich.console import Console
from rich.table import Table
from rows import written

from tunesmith.artifact import load
from tunesmith.core import Listener
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.shared import Shared
from tunesmith.strategies.replay import Replay
from tunesmith.train import Company, run

Row = dict[str, Any]
Key = tuple[str, str, str, int, int]  # method, strategy, scenario, stages, seed
SOURCE = Path(os.environ.get("TUNESMITH_DATA", ".")) / "clinc150"
STRATEGIES: dict[str, Row] = {
    "naive": {}, "ewc": {}, "si": {}, "mas": {}, "lwf": {}, "agem": {}, "route": {}, "replay": {}, "der": {}, "derpp": {"batch": 16}, "olora": {}, "dealt": {}, "joint": {},
}  # fmt: skip
METHODS: dict[str, Row] = {"head": {}, "lora": {}, "adapter": {}, "full": {"update": {"rate": 4e-4}}}
SCENARIOS: dict[str, Row] = {"class": {"scenario": "class"}, "task": {"scenario": "task"}, "stage": {"scenario": "class", "among": "stage"}}


def rows(part: str, each: int) -> list[Row]:
    """So many rows of each intent, with its domain; intents of a domain follow each other."""
    above = {intent: domain for domain, intents in json.loads((SOURCE / "domains.json").read_text()).items() for intent in intents}
    of: dict[str, list[str]] = defaultdict(list)
    for text, intent in json.loads((SOURCE / "data_full.json").read_text())[part]:
        of[intent].append(text)
    return [{"text": text, "label": intent, "domain": domain} for intent, domain in above.items() for text in of[intent][:each]]


def made(work: Path, method: str, strategy: str, scenario: str, stages: int, seed: int = 0) -> Row:
    ranked: Row = {"method": {"kind": method, "rank": 8 * stages, "alpha": 16.0 * stages}} if strategy == "olora" else {"method": method}
    return {
        "model": "minilm", "task": "classify", "data": {"train": str(work / "train.jsonl"), "eval": str(work / "test.jsonl")}, **ranked,
        "stream": {"kind": "sequence", "by": "domain", "into": stages, **SCENARIOS[scenario]}, "strategy": {"kind": strategy, **STRATEGIES[strategy]},
        **METHODS[method], "budget": {"epochs": 2}, "checkpoint": {"every": 10**6}, "dtype": "bf16", "threads": 1, "seed": seed,
    }  # fmt: skip


class Dealt(Listener):
    """The control: labels of the memory are dealt out anew, so that old texts are replayed and what they mean is not."""

    def end(self, run: Any, stage: Any) -> None:
        memory = next(one.memory for one in run.listeners if isinstance(one, Replay))
        for key, batch in memory.held.items():
            order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(7))
            memory.held[key] = batch.plus(label=batch["label"][order])


@cache
def shared() -> Shared:
    """What the cells of one process have in common: the base, and the states that a frozen trunk makes of the rows."""
    return Shared(keeps=True)


def cell(work: Path, key: Key) -> Row:
    began = time.process_time()
    method, strategy, *rest = key
    made_of, guests = ("replay", [Dealt()]) if strategy == "dealt" else (strategy, [])
    given = {**made(work, method, made_of, *rest), "out": str(work / "-".join(map(str, key)))}
    record = run(recipe(given), Reporter(quiet=True), company=Company(shared=shared(), listeners=guests)).record
    told = record["sequence"]
    return {"acc": record["after"]["accuracy"], "bwt": told.get("bwt"), "forgetting": told.get("forgetting"), "matrix": told["matrix"],
            "seconds": round(time.process_time() - began, 1), "steps": record["steps"]}  # fmt: skip


def makes_sense(method: str, strategy: str, scenario: str, stages: int, seed: int) -> bool:
    """O-LoRA is a rule about low ranks; to learn all at once knows no stages, and two strategies tell new rows apart among those of their stage anyway."""
    return (strategy != "olora" or method == "lora") and (scenario != "stage" or strategy not in ("joint", "lwf", "olora"))


class Cut(Listener):
    """The power goes after so many steps."""

    def __init__(self, steps: int):
        self.left = steps

    def step(self, run: Any, record: Any) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def resumed(work: Path, method: str, strategy: str) -> Row:
    """Whether a run that was stopped in the middle of its third stage ends with the same matrix and the same bits."""
    whole, parts = ({**made(work, method, strategy, "class", 5), "out": str(work / name), "checkpoint": {"every": 20}} for name in ("whole", "parts"))
    until = lambda steps: Company(shared=shared(), listeners=[Cut(steps)])
    one = run(recipe(whole), Reporter(quiet=True), company=until(10**9))
    with contextlib.suppress(KeyboardInterrupt):
        run(recipe(parts), Reporter(quiet=True), company=until(one.record["steps"] // 2))
    two = run(recipe(parts), Reporter(quiet=True), company=until(10**9))
    a, b = (load(r.folder).delta.state_dict() for r in (one, two))
    return {"acc": one.record["after"]["accuracy"], "identical": one.record["sequence"] == two.record["sequence"] and all(torch.equal(a[n], b[n]) for n in a)}


def shown(found: dict[str, Row], seeds: int) -> None:
    """Means over seeds of ACC, their deviation where there are several, and of BWT."""
    for scenario, stages in product(SCENARIOS, (5, 10)):
        table = Table(title=f"{scenario}, {stages} stages: ACC (BWT)")
        for name in ("strategy", *METHODS):
            table.add_column(name)
        for strategy in STRATEGIES:
            at = [[r for seed in range(seeds) if (r := found.get(named((method, strategy, scenario, stages, seed))))] for method in METHODS]
            table.add_row(strategy, *map(average, at))
        Console(width=140).print(table)


def average(of: list[Row]) -> str:
    if not of:
        return ""
    acc, bwt = [r["acc"] for r in of], [r["bwt"] for r in of if r["bwt"] is not None]
    return f"{fmean(acc):.3f}" + (f" ± {stdev(acc):.3f}" if len(acc) > 1 else "") + (f" ({fmean(bwt):+.3f})" if bwt else "")


def named(key: Key) -> str:
    """The first seed's cells go by no number."""
    return " ".join(map(str, key if key[-1] else key[:-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    split = lambda text: text.split(",")
    parser.add_argument("--methods", type=split, default=list(METHODS))
    parser.add_argument("--strategies", type=split, default=list(STRATEGIES))
    parser.add_argument("--scenarios", type=split, default=list(SCENARIOS), help=", ".join(SCENARIOS))
    parser.add_argument("--stages", type=lambda text: [int(n) for n in text.split(",")], default=[5, 10])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, a thread each")
    parser.add_argument("--json", type=Path, default=Path("runs/proofs/continual.jsonl"), help="what was found, a line a cell")
    args = parser.parse_args()
    found = dict(json.loads(line) for line in args.json.read_text().splitlines()) if args.json.exists() else {}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    keys: list[Key] = list(product(args.methods, args.strategies, args.scenarios, args.stages, range(args.seeds)))
    left = [key for key in keys if named(key) not in found and makes_sense(*key)]
    with tempfile.TemporaryDirectory() as folder, args.json.open("a") as f:
        work = Path(folder)
        for part, each in (("train", 20), ("test", 4)):
            written(work / f"{part}.jsonl", rows(part, each))
        calls = {named(key): partial(cell, work, key) for key in left}
        if "resumed" not in found and "head" in args.methods:
            calls["resumed"] = partial(resumed, work, "head", "derpp")
        for name, of in zip(calls, side_by_side(calls.values(), args.jobs), strict=True):
            found[name] = of
            f.write(json.dumps([name, of]) + "\n")
            f.flush()
    shown(found, args.seeds)
    Console().print(found.get("resumed", ""))


if __name__ == "__main__":
    main()
