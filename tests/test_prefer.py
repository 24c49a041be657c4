"""Preferences from files to artifacts: every method by every loss, every way to write a preference down, refusals with their fix, and what is asked afterwards."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

import shop
from tunesmith.advice.recommend import recommend
from tunesmith.artifact import load
from tunesmith.ask import evaluate, lines_of
from tunesmith.check import check
from tunesmith.comparison.arms import EIGHT
from tunesmith.comparison.compare import compare
from tunesmith.errors import Refusal
from tunesmith.evaluate import preference_metrics as metrics
from tunesmith.progress import Reporter
from tunesmith.recipe import read_recipe, recipe
from tunesmith.sources.text.formats import detect, preview
from tunesmith.sources.text.read import read
from tunesmith.start import init, sniff
from tunesmith.train import run

OPTIONS = {"adapter": {"width": 4}, "prompt": {"length": 4}, "prefix": {"length": 4}, "layers": {"last": 1}, "lora": {"rank": 2}}
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("prefer")
    shop.decoder(work / "model")
    shop.encoder(work / "encoder")
    shop.seq2seq(work / "seq2seq")
    shop.rows(work / "prefer.jsonl", "prefer", 24)
    shop.rows(work / "judged.jsonl", "judged", 24)
    return work


def made(work: Path, out: Path, loss: str = "dpo", method: str = "lora", model: str = "model", rows: str = "prefer", **more: object) -> dict:
    task = "score" if loss == "reward" else "generate"
    few = {"budget": {"steps": 3}, "evaluate": {"every": 3, "samples": 0}, "update": {"batch": 8, "rate": 1e-2}, "checkpoint": {"every": 3}}
    files = {"train": str(work / f"{rows}.jsonl"), "eval": str(work / f"{rows}.jsonl")}
    base = shop.recipe(work, "generate", {"kind": method, **OPTIONS.get(method, {})}, data=files, model=str(work / model), task=task, out=str(out))
    return {**base, "objective": {"kind": "prefer", "loss": loss}, **few, **more}


def first_loss(result) -> float:
    return json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]


# ------------------------------------------------------------------------------------------------ the matrix


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "orpo", "simpo", "reward"])
@pytest.mark.parametrize("method", EIGHT)
def test_every_method_learns_by_every_loss(work, tmp_path, method, loss):
    """The loss falls from where it stands with nothing learnt; all that is neutral starts at the value that the reference makes certain."""
    result = run(recipe(made(work, tmp_path / "run", loss, method)), QUIET)
    lines = [json.loads(line)["loss"] for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    certain = {"dpo": math.log(2), "ipo": 25.0, "kto": 0.5}
    if loss in certain and method not in ("prompt", "prefix"):
        assert lines[0] == pytest.approx(certain[loss], rel=1e-5)
        assert result["before"]["accuracy"] == 0.5 and result["before"]["margin"] == 0
    assert result["after"]["accuracy"] >= 0.5 or result["after"]["margin"] > result["before"]["margin"]
    assert result["metric"] == "accuracy"


def test_it_learns_and_the_control_does_not(work, tmp_path):
    """Held-out pairs. Where better and worse were swapped at random there is nothing to learn."""
    held = shop.rows(tmp_path / "held.jsonl", "prefer", 60, seed=9)
    rows = [json.loads(line) for line in shop.rows(tmp_path / "train.jsonl", "prefer", 60).read_text().splitlines()]
    swapped = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} if (i // 2) % 2 else r for i, r in enumerate(rows)]
    (tmp_path / "swapped.jsonl").write_text("".join(json.dumps(r) + "\n" for r in swapped))
    found = {}
    for name in ("train", "swapped"):
        data = {"train": str(tmp_path / f"{name}.jsonl"), "eval": str(held)}
        result = run(recipe(made(work, tmp_path / name, data=data, budget={"steps": 60}, evaluate={"every": 60, "samples": 2, "max_new_tokens": 2})), QUIET)
        found[name] = result["after"]["accuracy"]
    assert found["train"] > 0.95
    assert found["swapped"] < 0.8
    line = json.loads((tmp_path / "train" / "predictions.jsonl").read_text().splitlines()[0])
    assert isinstance(line["predicted"], str) and line["shares"] in ([0.0, 1.0], [1.0, 1.0])


@pytest.mark.parametrize(("loss", "rows"), [("dpo", "prefer"), ("kto", "judged"), ("simpo", "prefer")])
def test_an_encoder_decoder_learns_them_too(work, tmp_path, loss, rows):
    result = run(recipe(made(work, tmp_path / "run", loss, model="seq2seq", rows=rows, budget={"steps": 12}, evaluate={"every": 12})), QUIET)
    assert result["after"]["accuracy"] > 0.9
    assert result["after"]["margin"] > result["before"]["margin"]


def test_a_reward_model_scores_answers(work, tmp_path):
    for model in ("encoder", "model"):
        result = run(recipe(made(work, tmp_path / model, "reward", model=model, budget={"steps": 40}, evaluate={"every": 40})), QUIET)
        assert result["after"]["accuracy"] > 0.9
        tuned = load(result.folder)
        rows = [json.loads(line) for line in (work / "prefer.jsonl").read_text().splitlines()]
        pairs = [[r["prompt"], r[k]] for r in rows for k in ("chosen", "rejected")]
        found = [record["reward"] for record in tuned.predict(pairs)]
        expected = [json.loads(line)["predicted"] for line in (result.folder / "predictions.jsonl").read_text().splitlines()]
        assert found[0::2] == pytest.approx([e["chosen"] for e in expected], abs=1e-3)
        assert found[1::2] == pytest.approx([e["rejected"] for e in expected], abs=1e-3)
        talk = [{"role": "user", "content": rows[0]["prompt"]}, {"role": "assistant", "content": rows[0]["chosen"]}]
        assert tuned.predict([talk])[0]["reward"] == pytest.approx(found[0], abs=1e-4)
        assert evaluate(result.folder, str(work / "prefer.jsonl"))["scores"]["accuracy"] == result["after"]["accuracy"]
        with pytest.raises(Refusal, match="belongs to an answer"):
            tuned.predict(["a text"])


@pytest.mark.parametrize("method", ["lora", "full", "bitfit", "layers"])
def test_in_bf16_too_the_first_loss_compares_the_base_with_itself(work, tmp_path, method):
    """The wrong version: a reference in another precision than the policy's, which is off by tenths of a nat."""
    result = run(recipe(made(work, tmp_path / "run", method=method, dtype="bf16")), QUIET)
    assert first_loss(result) == pytest.approx(math.log(2), abs=1e-6)
    assert result["before"]["margin"] == 0


def test_dropout_is_off_unless_asked_for(work, tmp_path):
    assert recipe(made(work, tmp_path)).dropout == 0.0
    assert recipe({**made(work, tmp_path), "dropout": 0.1}).dropout == 0.1
    assert recipe(shop.recipe(work, "generate")).dropout is None


# ------------------------------------------------------------------------------------------------ asked afterwards


def test_a_folder_is_judged_without_the_reference(work, tmp_path):
    result = run(recipe(made(work, tmp_path / "run", budget={"steps": 12}, evaluate={"every": 12})), QUIET)
    found = evaluate(result.folder, str(work / "prefer.jsonl"))
    assert found["scores"]["accuracy"] > 0.9 and found["scores"]["chosen_ratio"] is None
    assert "mean log-probability a token" in found["undefined"]["chosen_ratio"]
    assert found["scores"]["perplexity"] == pytest.approx(result["after"]["perplexity"], rel=1e-4)
    assert isinstance(load(result.folder).predict(["w1 w2"])[0]["text"], str)
    judged = evaluate(result.folder, str(work / "judged.jsonl"))
    assert 0 <= judged["scores"]["accuracy"] <= 1


def test_rows_to_judge_by_may_be_of_the_other_kind(work, tmp_path):
    files = {"train": str(work / "judged.jsonl"), "eval": str(work / "prefer.jsonl")}
    result = run(recipe(made(work, tmp_path / "run", "kto", data=files, budget={"steps": 12}, evaluate={"every": 12})), QUIET)
    assert result["before"]["accuracy"] == 0.5 and result["after"]["accuracy"] > 0.8


def test_numbers_of_an_evaluation():
    import numpy as np

    found = metrics.preferred(np.array([1.0, -1.0, 0.0, 3.0]), np.array([0.0, 1.0, 0.0, 1.0]), 6.0, 3, True).values
    assert found == pytest.approx({"accuracy": 0.625, "margin": 0.25, "chosen_ratio": 0.75, "rejected_ratio": 0.5, "perplexity": math.exp(2)})
    found = metrics.judged(np.array([2.0, 0.0, 1.0]), np.array([True, True, False]), 4.0, 2, True).values
    assert found == pytest.approx({"accuracy": 0.5, "margin": 0.0, "good_ratio": 1.0, "bad_ratio": 1.0, "perplexity": math.exp(2)})
    one = metrics.judged(np.array([2.0, 0.0]), np.array([True, True]), 4.0, 2, True)
    assert one.values["accuracy"] is None and "all answers are good" in one.reasons["accuracy"]


def test_compare_check_and_recommend_know_them(work, tmp_path):
    for loss in ("dpo", "kto", "reward"):
        plan = recipe(made(work, tmp_path / loss, loss))
        report = check(plan, QUIET)
        assert report.facts["rows"] == {"train": 24, "eval": 24} and "not: `w" in report.facts["first_rows"][0]
        assert report.facts["predicted_peak_memory_bytes"] > 0
    table = compare(recipe(made(work, tmp_path / "arms")), methods=["lora", "bitfit"], seeds=1, reporter=QUIET).record
    assert {row["label"] for row in table["arms"]} >= {"lora", "bitfit", "untuned"}
    assert next(row for row in table["arms"] if row["label"] == "untuned")["after"]["accuracy"] == 0.5
    compare(recipe(made(work, tmp_path / "rewards", "reward")), methods=["lora", "head"], seeds=1, reporter=QUIET)
    found = recommend(str(work / "prefer.jsonl"), model=str(work / "model"), task="generate", reporter=QUIET)
    assert found.case.recipe and found.case.recipe.objective["kind"] == "prefer"
    assert found.case.rehearsals


# ------------------------------------------------------------------------------------------------ files

U, A = (lambda t: {"role": "user", "content": t}), (lambda t: {"role": "assistant", "content": t})
FROM = lambda who, t: {"from": who, "value": t}
WRITTEN = {
    "texts": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "messages": {"prompt": [U("q")], "chosen": [A("a")], "rejected": [A("b")]},
    "implicit": {"chosen": [U("q"), A("a")], "rejected": [U("q"), A("b")]},
    "repeated": {"prompt": [U("q")], "chosen": [U("q"), A("a")], "rejected": [U("q"), A("b")]},
    "sharegpt": {"conversations": [FROM("human", "q")], "chosen": FROM("gpt", "a"), "rejected": FROM("gpt", "b")},
    "transcripts": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "scored": {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 4.0, "score_rejected": 2.0},
}
JUDGED = {
    "texts": {"prompt": "q", "completion": "a", "label": True},
    "messages": {"messages": [U("q"), A("a")], "label": True},
    "halves": {"prompt": [U("q")], "completion": [A("a")], "label": True},
    "llamafactory": {"messages": [U("q"), A("a")], "kto_tag": True},
}


def file(folder: Path, *rows: dict) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("task", ["generate", "score"])
@pytest.mark.parametrize("shape", WRITTEN)
def test_a_pair_is_read_however_it_is_written(tmp_path, shape, task):
    found = detect(read(file(tmp_path, WRITTEN[shape])), task)
    assert preview(found) == ["user: `q` | assistant*: `a` | not: `b`"]


@pytest.mark.parametrize("shape", JUDGED)
def test_a_verdict_is_read_however_it_is_written(tmp_path, shape):
    assert preview(detect(read(file(tmp_path, JUDGED[shape])), "generate")) == ["user: `q` | assistant*: `a` -> good"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"chosen": "a", "rejected": "a"}, "are the same"),
        ({"chosen": "a", "rejected": None}, "`rejected` is null"),
        ({"chosen": "", "rejected": "b"}, "`chosen` is empty"),
        ({"chosen": [U("q"), A("a")], "rejected": [U("z"), A("b")]}, "follow different turns"),
        ({"chosen": [A("x"), U("a")], "rejected": [A("x"), U("b")]}, "last turn is not an answer"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, told):
    good = WRITTEN["texts"] | {"prompt": None} if isinstance(row["chosen"], list) else WRITTEN["texts"]
    with pytest.raises(Refusal, match=told) as caught:
        detect(read(file(tmp_path, *([row] if isinstance(row["chosen"], list) else [good, {"prompt": "q", **row}]))), "generate")
    assert "rows.jsonl:" in str(caught.value)


@pytest.mark.skipif(not os.environ.get("TUNESMITH_DATA"), reason="TUNESMITH_DATA is not set")
@pytest.mark.parametrize(
    ("name", "kind", "count"), [("dpo_en", "chosen + rejected", 299), ("dpo_zh", "chosen + rejected", 300), ("kto_en", "answer + verdict", 300)]
)
def test_the_published_demos_read(name, kind, count):
    found = detect(read(str(Path(os.environ["TUNESMITH_DATA"]) / "llamafactory_demo" / f"{name}_demo.json")), "generate")
    assert (found.name, len(found)) == (kind, count)


@pytest.mark.parametrize("row", [WRITTEN["sharegpt"], JUDGED["messages"]])
def test_init_writes_the_objective(tmp_path, monkeypatch, row):
    monkeypatch.chdir(tmp_path)
    path = file(tmp_path, *[row] * 4)
    assert sniff(path)[0] == "generate"
    init(path, Path("recipe.yaml"), None, False)
    assert read_recipe("recipe.yaml").objective == {"kind": "prefer"}


def test_lines_for_a_reward(tmp_path):
    path = file(tmp_path, {"prompt": "q", "completion": "a"})
    assert lines_of(path, "reward") == [["q", "a"]] and lines_of(path) == ["q"]


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"objective": "supervised"}, "objective: prefer"),
        ({"objective": {"kind": "prefer", "loss": "reward"}}, "or task: score"),
        ({"objective": {"kind": "prefer", "loss": "dpo", "gamma": 1.0}}, "gamma belongs to simpo"),
        ({"objective": {"kind": "prefer", "loss": "orpo", "label_smoothing": 0.1}}, "belongs to dpo or simpo"),
        ({"objective": {"kind": "prefer", "loss": "kto"}, "update": {"kind": "descend"}}, "update: gradcache"),
        ({"objective": {"kind": "prefer", "beta": -1.0}}, "greater than 0"),
        ({"objective": {"kind": "prefer", "label_smoothing": 0.5}}, "less than 0.5"),
        ({"objective": {"kind": "prefer", "losss": "dpo"}}, "did you mean `loss`"),
        ({"task": "classify"}, "task: generate or score"),
        ({"task": "score", "objective": {"kind": "prefer", "loss": "dpo"}}, "loss: reward"),
        ({"data": "judged", "objective": {"kind": "prefer", "loss": "dpo"}}, "loss: kto"),
        ({"data": "generate"}, "columns chosen and rejected"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(work, tmp_path, monkeypatch, changed, told):
    monkeypatch.setattr("tunesmith.shared.load_network", lambda *a, **k: pytest.fail("a model was loaded"))
    shop.rows(work / "generate.jsonl", "generate")
    rows = str(work / f"{changed.get('data', 'prefer')}.jsonl")
    with pytest.raises(Refusal) as caught:
        run(recipe({**made(work, tmp_path / "run"), **changed, "data": {"train": rows, "eval": rows}}), QUIET)
    assert told in str(caught.value)


def test_what_was_asked_is_not_learnt(work, tmp_path):
    plain = made(work, tmp_path)
    with pytest.raises(Refusal, match="answers are compared"):
        recipe({**plain, "data": {**plain["data"], "learn_prompt": True}})
