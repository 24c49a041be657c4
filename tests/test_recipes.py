"""Every recipe in recipes/ is read as it stands, and runs a few steps on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import shop
from tunesmith.progress import Reporter
from tunesmith.recipe import Budget, Data, Model, UpdateOptions, read_recipe
from tunesmith.train import run

RECIPES = sorted((Path(__file__).resolve().parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_runs(path, tmp_path):
    made = read_recipe(path)
    assert path.read_text().startswith("# ")
    if made.method["kind"] == "peft":
        pytest.importorskip("peft")
    (shop.decoder if made.task == "generate" else shop.encoder)(tmp_path / "model")
    rows = str(shop.rows(tmp_path / "rows.jsonl", made.task))
    method = made.method | {k: 2 for k in ("last", "length") if k in made.method}
    small = replace(made, model=Model(str(tmp_path / "model")), data=Data(rows, rows), budget=Budget(steps=4), update=UpdateOptions(batch=8, rate=1e-3))
    if "teacher" in made.objective:
        teacher = run(
            replace(small, objective={"kind": "supervised"}, out=str(tmp_path / "teacher"), dtype="fp32", kernel="matmul", threads=1), Reporter(quiet=True)
        )
        small = replace(small, objective=made.objective | {"teacher": str(teacher.folder)})
    result = run(replace(small, method=method, out=str(tmp_path / "run"), dtype="fp32", kernel="matmul", threads=1), Reporter(quiet=True))
    assert result["after"]["loss"] > 0
