"""Every recipe in recipes/ is read as it stands, and runs a few steps on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import shop
import worded
from tunesmith.curriculum import read_all
from tunesmith.families import ROWS
from tunesmith.job import agreed
from tunesmith.progress import Reporter
from tunesmith.recipe import Budget, Data, Model, UpdateOptions, read_recipe, recipe
from tunesmith.train import run

RECIPES = sorted((Path(__file__).resolve().parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_runs(path, tmp_path):
    made = read_recipe(path)
    assert path.read_text().startswith("# ")
    if made.method["kind"] == "peft":
        pytest.importorskip("peft")
    worded_rows = made.objective["kind"] == "cloze"
    (worded.masked if worded_rows else shop.decoder if made.task == "generate" else shop.encoder)(tmp_path / "model")
    rows_of = lambda kind: str(shop.rows(tmp_path / f"{kind}.jsonl", kind))
    rows = "" if made.tasks else rows_of("prefer" if made.objective["kind"] == "prefer" else made.task)
    method = made.method | {k: 2 for k in ("last", "length", "shots") if k in made.method}
    method |= {"search": method["search"] | {"words": {}}} if "search" in method else {}  # these rows have labels of their own
    data = Data("play/8", "play/8") if made.data.train == "play" else Data(rows, rows or None)
    small = replace(made, model=Model(str(tmp_path / "model")), data=data, budget=Budget(steps=4), update=UpdateOptions(batch=8, rate=1e-3))
    small = replace(small, tasks={name: replace(task, data=Data(rows_of(task.task), rows_of(task.task))) for name, task in made.tasks.items()})
    small = replace(small, stream=made.stream | {k: 2 for k in ("into",) if k in made.stream})
    small = replace(small, objective=made.objective | {k: 4 for k in ("length",) if k in made.objective}, dtype="fp32", kernel="matmul", threads=1)
    small = replace(small, objective=small.objective | ({"words": {}} if worded_rows else {}))
    if "teacher" in made.objective:
        teacher = run(replace(small, objective={"kind": "supervised"}, out=str(tmp_path / "teacher")), Reporter(quiet=True))
        small = replace(small, objective=made.objective | {"teacher": str(teacher.folder)})
    result = run(replace(small, method=method, out=str(tmp_path / "run")), Reporter(quiet=True))
    assert result["after"]["loss"] > 0 or result["metric"] == "reward"


@pytest.mark.parametrize("family", ROWS)
def test_the_families_of_the_demo_are_recipes(family, tmp_path):
    """What they reach is the demo's to show; here that each is read, with rows and an objective that go together."""
    made = recipe(ROWS[family](tmp_path))
    if made.objective["kind"] != "distil":  # whose teacher is the first family's run
        agreed(made, read_all(made))
