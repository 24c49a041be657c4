"""Surgery and balancing from a recipe: they train, are recorded, continue where they were stopped, and are refused where they say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import shop
from test_resume import same, train, train_with_stops
from tunesmith.advice.rehearsal import rehearse
from tunesmith.core import Batch
from tunesmith.curriculum import read_all
from tunesmith.errors import Refusal
from tunesmith.job import assemble
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.shared import Shared
from tunesmith.train import run

SURGERY = ("pcgrad", {"kind": "cagrad", "c": 0.3}, "mgda", "upgrad")
BALANCING = ("uncertainty", {"kind": "dwa", "temperature": 1.0}, {"kind": "gradnorm", "over": "all"}, "famo")
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    shop.encoder(folder / "model")
    for shape in ("classify", "tag", "score", "embed"):
        shop.rows(folder / f"{shape}.jsonl", shape, n=24)
    return folder


def several(work: Path, out: Path, *shapes: str, update: object = "descend", weights: dict[str, float] | None = None, **more: object) -> dict[str, Any]:
    base = shop.recipe(work, "classify", "lora", out=str(out))
    file = lambda shape: str(work / f"{shape}.jsonl")
    tasks = {s: {"task": s, "data": {"train": file(s), "eval": file(s)}, "weight": (weights or {}).get(s, 1.0)} for s in shapes}
    kind = {"kind": update} if isinstance(update, str) else update
    given = {"update": {"batch": 12, "rate": 1e-3, **kind}, "budget": {"steps": 6}}  # type: ignore[dict-item]
    return {**{k: v for k, v in base.items() if k not in ("task", "data")}, "tasks": tasks, **given, **more}


def journal(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("update", [*SURGERY, *BALANCING], ids=str)
def test_three_tasks_train(work, tmp_path, update):
    made = several(work, tmp_path / "run", "classify", "tag", "score", update=update)
    record = run(recipe(made), QUIET).record
    steps = journal(tmp_path / "run")
    assert {"classify.accuracy", "tag.f1", "score.spearman"} <= set(record["after"]) and len(steps) == 6
    if update in SURGERY:
        assert record["conflicts_per_step"] == pytest.approx(sum(s["conflicts"] for s in steps) / 6, abs=1e-3)
    else:
        assert all(sum(s[f"weight.{t}"] for t in ("classify", "tag", "score")) > 0 for s in steps)
        assert "conflicts_per_step" not in record
    kind = update if isinstance(update, str) else update["kind"]
    assert record["recipe"]["update"]["kind"] == kind
    assert record["recipe"]["update"].items() >= ({} if isinstance(update, str) else update).items()


@pytest.mark.parametrize("update", ["pcgrad", "uncertainty", {"kind": "dwa"}, "gradnorm", "famo"], ids=str)
def test_stopped_and_continued_it_ends_in_the_same_bits(work, tmp_path, monkeypatch, update):
    more = {"budget": {"steps": 14}, "checkpoint": {"every": 3}, "evaluate": {"every": 7}}
    straight = train(several(work, tmp_path / "a", "classify", "score", update=update, **more))
    broken = train_with_stops(several(work, tmp_path / "b", "classify", "score", update=update, **more), monkeypatch, [4, 11])
    assert same(straight, broken) and journal(straight) == journal(broken)
    found = [json.loads((f / "result.json").read_text()).get("conflicts_per_step") for f in (straight, broken)]
    assert found[0] == found[1]


@pytest.mark.parametrize("update", ["pcgrad", "famo", "gradnorm", None], ids=str)
def test_a_task_whose_rows_see_each_other_beside_one_whose_do_not(work, tmp_path, update):
    """Each goes its own way to its gradient; small pieces change nothing."""
    logs = []
    for micro in (16384, 40):
        made = several(work, tmp_path / str(micro), "embed", "tag", dropout=0.0, evaluate={}, budget={"steps": 3})
        made |= {"update": {"batch": 12, "rate": 1e-3, "micro": micro, **({"kind": update} if update else {})}}
        made["tasks"]["tag"]["head"] = {"dropout": 0.0}
        run(recipe(made), QUIET)
        logs.append(journal(tmp_path / str(micro)))
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize(("update", "held"), [("descend", 0), ("pcgrad", 2), ("famo", 1), ({"kind": "gradnorm", "over": "all"}, 2)])
def test_a_forecast_counts_the_gradients_that_wait(work, tmp_path, update, held):
    made = recipe(several(work, tmp_path / "run", "classify", "tag", "score", update=update))
    found = rehearse(made, read_all(made))
    assert found.held == held * 4 * found.trainable


def test_fixed_weights_are_the_tasks_own(work, tmp_path):
    """On the gradient, not on what is logged; and surgery sees weighted gradients."""
    steps = {}
    for weights in ({}, {"tag": 5.0}):
        made = several(work, tmp_path / "x", "classify", "tag", update={"clip": 0.0}, weights=weights, dropout=0.0)
        for task in made["tasks"].values():
            task["head"] = {"dropout": 0.0}
        r, shared = recipe(made), Shared()
        data = read_all(r)
        job = assemble(r, data, shared.dressed(r, data), QUIET, shared)
        batches = job.run.stream[0].train.batches(job.net)
        micro: list[Batch] = [next(batches) for _ in range(job.run.stream[0].accumulate)]
        job.run.update.prepare(job.run)  # type: ignore[attr-defined]
        job.run.net.rest_below(0)
        job.run.update.form(job.run, micro, 10**6, 0)  # type: ignore[attr-defined]
        norms = {t: float(job.net.heads[t][-1].weight.grad.norm()) for t in ("classify", "tag")}  # type: ignore[union-attr,index]
        for p in job.net.parameters():
            p.grad = None
        steps[weights.get("tag", 1.0)] = norms, dict(job.run.update.step(job.run, micro))
    (even, plain), (pulled, record) = steps[1.0], steps[5.0]
    assert pulled["tag"] == pytest.approx(5 * even["tag"], rel=1e-4) and pulled["classify"] == pytest.approx(even["classify"], rel=1e-4)
    assert (record["classify"], record["tag"], record["loss"]) == (plain["classify"], plain["tag"], plain["loss"])
    assert record["norm"] != plain["norm"]


@pytest.mark.parametrize("update", ["pcgrad", "famo"])
def test_units_are_those_of_the_whole_step(work, tmp_path, update):
    """`mean: global` divides each task by the units of all, also where tasks are taken one after the other."""
    logs = []
    for kind in ("descend", update):
        made = several(work, tmp_path / kind, "classify", "tag", update=kind, stream={"kind": "mix", "mean": "global"}, budget={"steps": 1}, dropout=0.0)
        for task in made["tasks"].values():
            task["head"] = {"dropout": 0.0}
        run(recipe(made), QUIET)
        logs.append(journal(tmp_path / kind)[0])
    assert {k: logs[1][k] for k in ("classify", "tag", "loss")} == pytest.approx({k: logs[0][k] for k in ("classify", "tag", "loss")}, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"update": "pcgrad", "tasks": None, "task": "classify", "stream": "single"}, "one at a time"),
        ({"update": "uncertainty", "stream": "sequence"}, "one at a time"),
        ({"update": "mgda", "stream": {"kind": "mix", "batches": "one_task"}}, "one in each"),
        ({"update": "famo", "stream": {"kind": "mix", "batches": "one_task"}}, "one in each"),
        ({"update": "cagrad", "method": "head"}, "trains their heads alone"),
    ],
    ids=lambda x: str(x.get("update")) if isinstance(x, dict) else "",
)
def test_what_says_nothing_is_refused(work, tmp_path, change, said):
    made = {**several(work, tmp_path / "run", "classify", "score"), **change}
    if made["tasks"] is None:
        made = {k: v for k, v in made.items() if k != "tasks"} | {"data": {"train": str(work / "classify.jsonl")}}
    with pytest.raises(Refusal, match=said):
        recipe(made)
    if "one_task" in str(change):
        recipe({**made, "update": "uncertainty"})
