"""Is what was learnt first still known at the end? CLINC150's 150 intents come domain by domain: every strategy between doing nothing and learning all at once.

    TUNESMITH_DATA=... python benchmarks/proofs/continual.py --json found.jsonl               all cells; what the file has is not measured again
    TUNESMITH_DATA=... python benchmarks/proofs/continual.py --methods head --stages 10       some of them

Every cell is `tunesmith.run` on a recipe: MiniLM, 20 rows an intent, two epochs a stage, default rates, judged after each stage on 4 test rows an intent.
Memories hold 500 rows; 32 of them a step, by derpp in two draws of 16.
`task`: a head for each part, and whose a row is, is known; `class`: one head, to which intents come. `joint` is the upper bound, with as many steps in all.
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
from itertools import product
from pathlib import Path
from typing import Any

import torch
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
SOURCE = Path(os.environ.get("TUNESMITH_DATA", ".")) / "clinc150"
STRATEGIES: dict[str, Row] = {
    "naive": {}, "ewc": {}, "si": {}, "mas": {}, "lwf": {}, "agem": {}, "route": {}, "replay": {}, "der": {}, "derpp": {"batch": 16}, "olora": {}, "dealt": {}, "joint": {},
}  # fmt: skip
METHODS = ("head", "lora", "adapter", "full")


def rows(part: str, each: int) -> list[Row]:
    """So many rows of each intent, with its domain; intents of a domain follow each other."""
    above = {intent: domain for domain, intents in json.loads((SOURCE / "domains.json").read_text()).items() for intent in intents}
    of: dict[str, list[str]] = defaultdict(list)
    for text, intent in json.loads((SOURCE / "data_full.json").read_text())[part]:
        of[intent].append(text)
    return [{"text": text, "label": intent, "domain": domain} for intent, domain in above.items() for text in of[intent][:each]]


def made(work: Path, method: str, strategy: str, scenario: str, stages: int) -> Row:
    ranked: Row = {"method": {"kind": method, "rank": max(8, stages)}} if strategy == "olora" else {"method": method}  # a direction a stage at least
    return {
        "model": "minilm", "task": "classify", "data": {"train": str(work / "train.jsonl"), "eval": str(work / "test.jsonl")}, **ranked,
        "stream": {"kind": "sequence", "by": "domain", "into": stages, "scenario": scenario}, "strategy": {"kind": strategy, **STRATEGIES[strategy]},
        "budget": {"epochs": 2}, "checkpoint": {"every": 10**6}, "dtype": "bf16", "threads": 1,
    }  # fmt: skip


class Dealt(Listener):
    """The control: labels of the memory are dealt out anew, so that old texts are replayed and what they mean is not."""

    def end(self, run: Any, stage: Any) -> None:
        memory = next(one.memory for one in run.listeners if isinstance(one, Replay))
        for key, batch in memory.held.items():
            order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(7))
            memory.held[key] = batch.plus(label=batch["label"][order])


def cell(work: Path, shared: Shared, method: str, strategy: str, scenario: str, stages: int) -> Row:
    began = time.process_time()
    made_of, guests = ("replay", [Dealt()]) if strategy == "dealt" else (strategy, [])
    given = {**made(work, method, made_of, scenario, stages), "out": str(work / f"{method}-{strategy}-{scenario}-{stages}")}
    record = run(recipe(given), Reporter(quiet=True), company=Company(shared=shared, listeners=guests)).record
    told = record["sequence"]
    return {"acc": record["after"]["accuracy"], "bwt": told.get("bwt"), "forgetting": told.get("forgetting"), "matrix": told["matrix"],
            "seconds": round(time.process_time() - began, 1), "steps": record["steps"]}  # fmt: skip


class Cut(Listener):
    """The power goes after so many steps."""

    def __init__(self, steps: int):
        self.left = steps

    def step(self, run: Any, record: Any) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def resumed(work: Path, shared: Shared, method: str, strategy: str) -> Row:
    """Whether a run that was stopped in the middle of its third stage ends with the same matrix and the same bits."""
    whole, parts = ({**made(work, method, strategy, "class", 5), "out": str(work / name), "checkpoint": {"every": 20}} for name in ("whole", "parts"))
    until = lambda steps: Company(shared=shared, listeners=[Cut(steps)])
    one = run(recipe(whole), Reporter(quiet=True), company=until(10**9))
    with contextlib.suppress(KeyboardInterrupt):
        run(recipe(parts), Reporter(quiet=True), company=until(one.record["steps"] // 2))
    two = run(recipe(parts), Reporter(quiet=True), company=until(10**9))
    a, b = (load(r.folder).delta.state_dict() for r in (one, two))
    return {"acc": one.record["after"]["accuracy"], "identical": one.record["sequence"] == two.record["sequence"] and all(torch.equal(a[n], b[n]) for n in a)}


def shown(found: dict[str, Row]) -> None:
    for scenario, stages in (("task", 5), ("class", 5), ("task", 10), ("class", 10)):
        table = Table(title=f"{scenario}-incremental, {stages} stages: ACC (BWT)")
        for name in ("strategy", *METHODS):
            table.add_column(name)
        for strategy in STRATEGIES:
            at = [found.get(f"{method} {strategy} {scenario} {stages}") for method in METHODS]
            table.add_row(strategy, *("" if r is None else f"{r['acc']:.3f}" + ("" if r["bwt"] is None else f" ({r['bwt']:+.3f})") for r in at))
        Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    split = lambda text: text.split(",")
    parser.add_argument("--methods", type=split, default=list(METHODS))
    parser.add_argument("--strategies", type=split, default=list(STRATEGIES))
    parser.add_argument("--scenarios", type=split, default=["class", "task"])
    parser.add_argument("--stages", type=lambda text: [int(n) for n in text.split(",")], default=[5, 10])
    parser.add_argument("--json", type=Path, default=Path("runs/proofs/continual.jsonl"), help="what was found, a line a cell")
    args = parser.parse_args()
    found = dict(json.loads(line) for line in args.json.read_text().splitlines()) if args.json.exists() else {}
    shared = Shared(keeps=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, args.json.open("a") as f:
        work = Path(folder)
        for part, each in (("train", 20), ("test", 4)):
            written(work / f"{part}.jsonl", rows(part, each))
        for key in product(args.methods, args.strategies, args.scenarios, args.stages):
            if key[1] == "olora" and key[0] != "lora":  # a rule about low ranks
                continue
            if (name := " ".join(map(str, key))) not in found:
                found[name] = cell(work, shared, *key)
                f.write(json.dumps([name, found[name]]) + "\n")
                f.flush()
        if "resumed" not in found and "head" in args.methods:
            found["resumed"] = resumed(work, shared, "head", "derpp")
            f.write(json.dumps(["resumed", found["resumed"]]) + "\n")
    shown(found)
    Console().print(found.get("resumed", ""))


if __name__ == "__main__":
    main()
