"""The search of a rate: it finds better ones, looks at no eval row, costs what it says, and is taken up where it was interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import shop
from test_compare import Stop, Stumble, quietly
from tunesmith.comparison.search import RUNGS, STOPPED
from tunesmith.dataset import asked, read_data
from tunesmith.errors import Refusal
from tunesmith.recipe import recipe

pytest.importorskip("optuna")
PLAN = {"update": {"batch": 8, "rate": 1e-6}, "budget": {"steps": 24}, "seeds": 1}


def tuned(work: Path, out: Path, methods=("bitfit",), trials: int = 6, **more):
    return quietly(work, out, methods, **{**PLAN, **more}, tune=trials)


def test_a_rate_that_is_far_too_low_is_mended(encoder, tmp_path):
    shop.rows(tmp_path / "classify.jsonl", "classify", 200)
    (tmp_path / "model").symlink_to(encoder / "model")
    low = {**PLAN, "update": {"batch": 8, "rate": 1e-4}, "budget": {"steps": 40}}
    plain, found = quietly(tmp_path, tmp_path / "plain", ["full"], **low), tuned(tmp_path, tmp_path / "c", ["full"], trials=8, **low)
    row, before = (next(r for r in c.table if r["label"] == "full") for c in (found, plain))
    tried = row["tuning"]["tried"]
    assert tried[0][0] == 1e-4, "the default is the first candidate"
    assert row["learning_rate"] == row["tuning"]["rate"] > 2e-4 and len(tried) == 8
    of_full = {rate: value for rate, value, share in tried if share == 1.0}
    assert of_full[row["tuning"]["rate"]] == max(of_full.values()), "rows are few, so that the loss decides between equals"
    loss = lambda c: next(a["after"]["loss"] for a in c.record["arms"] if a["label"] == "full")
    assert loss(found) < loss(plain) and before["tuning"] is None


def test_weak_candidates_stop_early_and_the_cost_is_shown(encoder, tmp_path):
    found = tuned(encoder, tmp_path / "c", trials=8)
    row = next(r for r in found.table if r["label"] == "bitfit")
    shares = [share for _, _, share in row["tuning"]["tried"]]
    assert set(shares) <= set(RUNGS) and min(shares) < 1.0
    folders = sorted((tmp_path / "c" / "search" / "bitfit").glob("candidate-*"))
    records = [json.loads((f / "result.json").read_text()) for f in folders]
    assert row["tuning"]["seconds"] == pytest.approx(sum(r["train_seconds"] + r["fill_seconds"] for r in records))
    assert [r["stopped"] == STOPPED for r in sorted(records, key=lambda r: r["finished"])].count(True) == sum(s < 1.0 for s in shares)
    assert not any((f / "artifact").exists() for f in folders)
    assert any("candidates" in note for note in found.record["notes"]) and "--tune --trials 8" in found.record["command"]
    page = found.report.read_text()
    assert "held out of the training rows" in page


def test_the_eval_rows_are_never_looked_at(encoder, tmp_path):
    """What is searched on is a part of the training rows; the eval and test files are not even opened."""
    tuned(encoder, tmp_path / "c", trials=2)
    made = recipe(json.loads((tmp_path / "c" / "search" / "bitfit" / "candidate-0" / "result.json").read_text())["recipe"])
    gone = replace(made, data=replace(made.data, eval=str(tmp_path / "not-there.jsonl"), test=str(tmp_path / "nor-this.jsonl")))
    inner, whole = read_data(gone), read_data(replace(made, data=replace(made.data, inner=None)))
    assert inner.test is None and inner.eval is not None
    rows = [[example.row for example in part.examples] for part in (inner.train, inner.eval)]
    assert sorted(rows[0] + rows[1]) == sorted(example.row for example in whole.train.examples)
    assert not set(rows[0]) & set(rows[1])


def test_held_out_twice_stays_apart(encoder, tmp_path):
    """Where the eval rows are a share of the training file, a search holds out of what is left."""
    shop.rows(tmp_path / "rows.jsonl", "classify", 50)
    base = recipe({**shop.recipe(encoder), "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.2}})
    outer, inner = read_data(base), read_data(replace(base, data=replace(base.data, inner=0.25)))
    of = lambda part: {example.row for example in part.examples}
    assert of(inner.train) | of(inner.eval) == of(outer.train) and not of(inner.eval) & of(outer.eval) and len(of(inner.eval)) == 10


def test_a_label_of_one_row_is_learnt(encoder, tmp_path):
    rows = [{"text": f"w{i}", "label": "rare" if i == 7 else "ab"[i % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for share in (0.3, 0.6, 0.9):
        base = recipe({**shop.recipe(encoder), "data": {"train": str(tmp_path / "rows.jsonl"), "eval": share}})
        data = read_data(base)
        assert "rare" in data.task.labels and "w7" in {asked(e) for e in data.train.examples} and data.eval is not None


def test_an_interrupted_search_finds_what_it_would_have_found(encoder, tmp_path, monkeypatch):
    calm = tuned(encoder, tmp_path / "calm", ["lora", "bitfit"])
    stumble = Stumble(monkeypatch)
    for stumble.count in (5, 30, 44, 11):
        with pytest.raises(Stop):
            tuned(encoder, tmp_path / "killed", ["lora", "bitfit"])
    stumble.count = 0
    killed = tuned(encoder, tmp_path / "killed", ["lora", "bitfit"])
    view = lambda c: [(row["label"], row["mean"], row["learning_rate"], row["tuning"] and row["tuning"]["tried"]) for row in c.table]
    assert view(killed) == view(calm)


def test_where_every_rate_diverges_nothing_is_chosen(encoder, tmp_path):
    with pytest.raises(Refusal, match="no method was left"):
        tuned(encoder, tmp_path / "c", ["full"], update={"batch": 8, "rate": 1e36, "clip": 0}, trials=2)
