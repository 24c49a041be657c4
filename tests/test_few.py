"""Few rows of each class: the draw, what goes with it, and a comparison over draws."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import shop
import worded
from tunesmith.comparison.compare import compare
from tunesmith.comparison.in_context import NAME
from tunesmith.comparison.statistics import Estimate, difference
from tunesmith.dataset import read_data
from tunesmith.errors import Refusal
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.sources.streams import Few
from tunesmith.sources.text.examples import Classified
from tunesmith.train import run


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    shop.encoder(folder / "model")
    shop.rows(folder / "held.jsonl", "classify", 30, seed=5)
    return folder


def few(work: Path, out: Path, **more):
    first = shop.recipe(work, "classify", **{"stream": {"kind": "few", "k": 3}, "out": str(out), "evaluate": {"samples": 0}, **more})
    return {**first, "data": {**first["data"], "eval": str(work / "held.jsonl")}}


def rows(*counts: int) -> list[Classified]:
    return [Classified(f"{label} {i}", None, (str(label),), i) for label, n in enumerate(counts) for i in range(n)]


def test_as_many_of_each_label_and_the_same_for_a_seed():
    drawn = [[e.text for e in Few(4).draw(rows(9, 20, 4), seed)] for seed in (0, 0, 1)]
    assert Counter(t[0] for t in drawn[0]) == {"0": 4, "1": 4, "2": 4}
    assert drawn[0] == drawn[1] != drawn[2]
    assert Counter(e.text[0] for e in Few(4).draw(rows(9, 2), 0)) == {"0": 4, "1": 2}


def test_every_row_is_as_likely():
    counts = Counter(e.text for seed in range(2000) for e in Few(2).draw(rows(8), seed))
    chi = sum((counts[f"0 {i}"] - 500) ** 2 / 500 for i in range(8))
    assert chi < 24.3  # 99.9 % of 7 degrees of freedom


def test_a_run_learns_from_the_draw_alone(work, tmp_path):
    made = recipe({k: v for k, v in few(work, tmp_path / "a").items() if k != "budget"})
    data = read_data(made)
    assert len(data.train.examples) == 6 and len(data.eval.examples) == 30
    found = run(made, Reporter(quiet=True)).record
    assert found["steps"] == 100 and found["train_rows"] == 6 and found["stream"] == "few"
    assert [e["step"] for e in found["history"]] == [0, 100]


def test_the_draw_is_the_seeds(work, tmp_path):
    asked = [[e.text for e in read_data(recipe(few(work, tmp_path, seed=s))).train.examples] for s in (0, 0, 1)]
    assert asked[0] == asked[1] != asked[2]


@pytest.mark.parametrize(("section", "words"), [({"patience": 2}, "more than those to learn from"), ({"best": True}, "more than those to learn from")])
def test_nothing_is_chosen_on_the_rows_that_judge(work, tmp_path, section, words):
    with pytest.raises(Refusal, match=words):
        recipe(few(work, tmp_path, evaluate=section))


def test_rows_without_a_label_each_are_refused(work, tmp_path):
    with pytest.raises(Refusal, match="not one label each"):
        read_data(recipe(shop.recipe(work, "score", stream="few", out=str(tmp_path))))
    with pytest.raises(Refusal, match=r"stream\.k"):
        recipe(few(work, tmp_path, stream={"kind": "few", "k": 0}))


def test_a_comparison_draws_for_every_run_and_baseline(work, tmp_path):
    found = compare(recipe(few(work, tmp_path / "c")), ["bitfit"], seeds=3, reporter=Reporter(quiet=True))
    table = {row["label"]: row for row in found.table}
    assert {len(table[name]["values"]) for name in ("bitfit", "nearest centroid", "linear probe")} == {3}
    assert len(set(table["nearest centroid"]["values"])) > 1
    alone = run(recipe({**few(work, tmp_path / "alone", method="bitfit"), "seed": 1}), Reporter(quiet=True))
    arm = json.loads((tmp_path / "c/arms/bitfit/seed-1/result.json").read_text())
    assert arm["after"] == alone["after"]


@pytest.mark.parametrize("kind", ["masked", "decoder"])
def test_what_a_model_with_a_vocabulary_says_of_examples_is_a_baseline(kind, tmp_path):
    """It is the designed prompt of the same demonstrations, run by itself; a trunk without a vocabulary is not asked."""
    (worded.masked if kind == "masked" else shop.decoder)(tmp_path / "model")
    shop.rows(tmp_path / "held.jsonl", "classify", 30, seed=5)
    found = compare(recipe(few(tmp_path, tmp_path / "c", method="bitfit")), ["bitfit"], seeds=2, reporter=Reporter(quiet=True))
    row = next(row for row in found.table if row["label"] == NAME)
    assert row["baseline"] and len(row["values"]) == 2 and not row["trainable_parameters"]
    shots = json.loads((tmp_path / "c/arms/in-context-examples/seed-1/result.json").read_text())["examples"]
    prompt = few(tmp_path, tmp_path / "alone", method={"kind": "hard_prompt", "shots": shots}, objective="cloze")
    alone = run(recipe({**prompt, "seed": 1}), Reporter(quiet=True))
    assert shots > 0 and alone["after"]["accuracy"] == row["values"][1]


def test_labels_that_would_be_said_alike_cost_no_comparison(tmp_path):
    shop.decoder(tmp_path / "model")
    rows = [{"text": text, "label": ("a_b", "a b")[half]} for text, half in shop.texts(40)]
    for name in ("classify", "held"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(recipe(few(tmp_path, tmp_path / "c", method="bitfit")), ["bitfit"], seeds=2, reporter=Reporter(quiet=True))
    assert {row["label"] for row in found.table} == {"bitfit", "majority", "nearest centroid", "linear probe"}


def test_draws_are_paired():
    """Two methods that differ by one point on every draw, while draws differ by ten."""
    draws, values = np.zeros(2000), np.array([0.5, 0.6, 0.7, 0.55, 0.65])
    better, worse = (Estimate(float(v.mean()), 0, 1, tuple(v), draws + v.mean()) for v in (values + 0.01 + np.array([0, 1, -1, 1, 0]) / 1000, values))
    assert difference(better, worse, 100, paired=True)[1] < 0.001 < 0.5 < difference(better, worse, 100)[1]
