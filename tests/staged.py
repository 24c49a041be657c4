"""A sequence of two or three tiny stages in a recipe, and the run that it becomes, for the tests of strategies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import shop
from tunesmith.core import Listener, Run, Stage
from tunesmith.curriculum import read_all
from tunesmith.engine import fit
from tunesmith.job import Job, assemble
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.shared import Shared

QUIET = Reporter(quiet=True)
STAGED = ("classify", "generate", "prefer", "tag", "score", "embed")


def workshop(folder: Path) -> Path:
    """Models and files of rows with a column `domain` of three values; to `classify`, labels of its own in each."""
    shop.encoder(folder / "model")
    shop.decoder(folder / "writer")
    for shape in STAGED:
        for part, seed, n in (("train", 0, 48), ("eval", 5, 12)):
            rows = [{**shop.SHAPES[shape](t, h), "domain": "xyz"[i // 2 % 3]} for i, (t, h) in enumerate(shop.texts(n, seed))]
            if shape == "classify":
                rows = [{"text": f"{row['text']} w{i % 6}", "label": "abcdef"[i % 6], "domain": "xyz"[i % 6 // 2]} for i, row in enumerate(rows)]
            (folder / f"{shape}-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def made(work: Path, strategy: Any = "naive", shape: str = "classify", scenario: str | None = None, **more: Any) -> dict[str, Any]:
    """Three stages of two steps each; no dropout, so that pieces and processes can be compared."""
    task = {"prefer": "generate"}.get(shape, shape)
    data = {"train": str(work / f"{shape}-train.jsonl"), "eval": str(work / f"{shape}-eval.jsonl")}
    base = shop.recipe(work, task, more.pop("method", "lora"), data=data, out=str(work / "run"))
    base["model"] = str(work / ("writer" if task == "generate" else "model"))
    stream = {"kind": "sequence", "by": "domain", **({"scenario": scenario} if scenario else {})}
    head = {"head": {"dropout": 0.0}} if task in ("classify", "tag") else {}
    objective = {"objective": "prefer"} if shape == "prefer" else {}
    return {
        **base,
        "stream": stream,
        "strategy": strategy,
        "evaluate": {"samples": 0},
        "budget": {"steps": 2},
        "dropout": 0.0,
        "seed": 1,
        **head,
        **objective,
        **more,
    }


def assembled(given: dict[str, Any]) -> Job:
    r, shared = recipe(given), Shared()
    data = read_all(r)
    return assemble(r, data, shared.dressed(r, data), QUIET, shared)


class Until(Listener):
    """Halts the run at the end of a stage, so that what is in place then can be looked at."""

    def __init__(self, stages: int):
        self.stages = stages

    def end(self, run: Run, stage: Stage) -> None:
        if stage is run.stream[self.stages - 1]:
            run.halt = "enough"


def fitted(given: dict[str, Any], stages: int | None = None, by_hand: Job | None = None) -> Job:
    """The job after so many stages, nothing saved or judged."""
    job = by_hand or assembled(given)
    job.run.listeners = [*job.listeners, *([Until(stages)] if stages else [])]
    job.run.update.prepare(job.run)  # type: ignore[attr-defined]
    for stage in job.run.stream:
        stage.train.fill(job.net)
    fit(job.run)
    return job


def strategy_of(job: Job) -> Any:
    return job.listeners[-1]


def learnt(job: Job) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in job.delta.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
