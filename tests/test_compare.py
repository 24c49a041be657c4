"""Comparisons: what arms they have, what they are told apart by, what they leave behind; killed ones end in the same table."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import shop
from tunesmith.comparison import baselines, board, detail, logistic
from tunesmith.comparison.arms import EIGHT, arms, budget_of
from tunesmith.comparison.compare import Comparison, compare
from tunesmith.comparison.join import join
from tunesmith.comparison.measures import split
from tunesmith.comparison.statistics import correlation, difference, draws_of, estimate, holm, ratio
from tunesmith.comparison.words import WORDS
from tunesmith.errors import Refusal
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.train import run

SMALL = {"adapter": {"width": 4}, "prompt": {"length": 4}, "prefix": {"length": 4}, "layers": {"last": 1}}


def made(work: Path, out: Path, shape: str = "classify", **more):
    held = work / f"{shape}-held.jsonl"
    if not held.exists():
        shop.rows(held, shape, 30, seed=5)
    first = shop.recipe(work, shape, out=str(out), **more)
    return recipe({**first, "data": {**first["data"], "eval": str(held)}})


def quietly(work: Path, out: Path, methods=("bitfit", "head"), shape: str = "classify", seeds: int = 2, **more) -> Comparison:
    options = {k: more.pop(k) for k in ("vary", "fresh", "lang", "tune", "jobs") if k in more}
    return compare(made(work, out, shape, **more), methods, seeds=seeds, reporter=Reporter(quiet=True), **options)


# ------------------------------------------------------------------------------------------------ statistics


def bernoulli(dice: np.random.Generator, rows: int, rates: list[float]):
    return [ratio([(float(hit), 1.0) for hit in dice.random(rows) < rate]) for rate in rates]


def test_an_estimate_is_the_mean_over_seeds():
    shares = [[(1.0, 1.0), (0.0, 1.0), (1.0, 2.0)], [(0.0, 1.0), (0.0, 1.0), (2.0, 2.0)]]
    found = estimate([ratio(s) for s in shares], draws_of(3))
    assert found.values == (0.5, 0.5) and found.mean == 0.5 and found.low < 0.5 < found.high


def test_perplexity_is_the_exponential_of_a_ratio_of_sums():
    """Not the mean of rows' perplexities, the wrong version."""
    found = estimate([ratio([(2.0, 2.0), (9.0, 3.0)], np.exp)], draws_of(2))
    assert found.mean == pytest.approx(np.exp(11 / 5)) and found.mean != pytest.approx((np.exp(1) + np.exp(3)) / 2)


def test_correlations_are_scipys():
    from scipy.stats import spearmanr

    dice = np.random.default_rng(0)
    guess, truth = dice.normal(size=40), dice.integers(0, 5, size=40)
    rows = draws_of(40)[:20]
    mine = correlation(guess.tolist(), truth.tolist())(rows)
    np.testing.assert_allclose(mine, [spearmanr(guess[r], truth[r]).statistic for r in rows], atol=1e-12)


@pytest.mark.parametrize("scatter", [0.0, 0.03])
def test_intervals_hold_what_they_promise(scatter):
    """Of 300 comparisons with three seeds, the true rate lies in about 95 % of the intervals, whether or not seeds differ."""
    dice, hits = np.random.default_rng(1), 0
    for _ in range(300):
        rates = (0.7 + scatter * dice.standard_normal(3)).tolist()
        found = estimate(bernoulli(dice, 150, rates), dice.integers(150, size=(300, 150)))
        hits += found.low <= 0.7 <= found.high
    assert 0.91 <= hits / 300 <= 1.0


def test_no_difference_is_rarely_called_one():
    dice, called, rows = np.random.default_rng(2), 0, 150
    for _ in range(300):
        draws = dice.integers(rows, size=(300, rows))
        a, b = (estimate(bernoulli(dice, rows, (0.7 + 0.02 * dice.standard_normal(3)).tolist()), draws) for _ in range(2))
        called += difference(a, b, rows)[1] < 0.05
    assert called / 300 <= 0.08


def test_tests_are_paired():
    """One arm is right wherever the other is, and on ten rows more: unpaired, 0.5 and 0.6 of 100 rows are far from distinct."""
    hits = np.arange(100) < 50
    a, b = ([ratio([(float(h), 1.0) for h in side])] for side in (hits | (np.arange(100) >= 90), hits))
    draws = draws_of(100)
    gap, p = difference(estimate(a, draws), estimate(b, draws), 100)
    assert gap == pytest.approx(0.1) and p < 0.01
    assert difference(estimate(a, draws), estimate(a, draws), 100) == (0.0, 1.0)


def test_holm():
    """The example of Holm 1979's method: sorted times their number left, never falling."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


# ------------------------------------------------------------------------------------------------ which arms


def test_any_key_is_an_axis(encoder, tmp_path):
    base = made(encoder, tmp_path, method={"kind": "lora", "rank": 4})
    found = arms(base, ["lora", "bitfit"], 2, ["method.rank=2,8", "update.rate=1e-3,2e-3"])
    assert len({a.label for a in found}) == 6 and len(found) == 12
    assert "lora rank=8 update.rate=2e-3" in {a.label for a in found} and "bitfit update.rate=1e-3" in {a.label for a in found}
    assert [a.recipe.seed for a in found[:2]] == [0, 1] and len({str(a.recipe.folder) for a in found}) == 12
    assert not any(a.recipe.evaluate.best or a.recipe.evaluate.patience for a in found)
    assert arms(base, ["lora"], 1)[0].recipe.method["rank"] == 4


@pytest.mark.parametrize(
    ("methods", "vary", "words"),
    [
        (["lorra"], [], "did you mean `lora`"),
        (["lora"], ["rank"], "is no axis"),
        (["lora"], ["seed=1,2"], "--seeds"),
        (["lora"], ["method=full,head"], "--methods"),
        (["bitfit"], ["method.rank=2"], "none of these methods"),
        (["lora"], ["method.rank=-2"], "method.rank"),
        (["lora"], ["updat.rate=1"], "update"),
    ],
)
def test_arms_that_make_no_sense_are_refused(encoder, tmp_path, methods, vary, words):
    with pytest.raises(Refusal) as refused:
        arms(made(encoder, tmp_path), methods, 1, vary)
    assert words in str(refused.value)


def test_budgets():
    assert [budget_of(t) for t in ("20m", "90s", "2h", "steps=500", "tokens=2M", "examples=10k", "epochs=1.5")] == [
        "budget.minutes=20", "budget.minutes=1.5", "budget.minutes=120", "budget.steps=500", "budget.tokens=2000000", "budget.examples=10000", "budget.epochs=1.5"
    ]  # fmt: skip
    for wrong in ("20", "steps", "rows=3", "steps=many", "20d"):
        with pytest.raises(Refusal, match="no budget"):
            budget_of(wrong)


def test_without_rows_to_judge_by_nothing_starts(encoder, tmp_path):
    first = shop.recipe(encoder, out=str(tmp_path / "c"))
    with pytest.raises(Refusal, match="rows to judge by"):
        compare(recipe({**first, "data": {"train": first["data"]["train"]}}), ["lora"], reporter=Reporter(quiet=True))
    assert not (tmp_path / "c").exists()


# ------------------------------------------------------------------------------------------------ what comes of it


@pytest.mark.parametrize("shape", ["classify", "multi", "pair", "tag", "score"])
def test_every_task_is_compared(encoder, shape, tmp_path):
    found = quietly(encoder, tmp_path / "c", ["bitfit", "head"], shape)
    labels = {row["label"] for row in found.table}
    assert {"bitfit", "head", "majority", "linear probe"} <= labels
    assert ("nearest centroid" in labels) == (shape in ("classify", "pair", "tag"))
    means = [row["mean"] for row in found.table]
    assert means == sorted(means, reverse=True)
    for row in found.table:
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["baseline"] or (row["latency_ms"] > 0 and row["general_after"] > 0 and row["merges"] is True and len(row["values"]) == 2)
    assert json.loads((tmp_path / "c" / "compare.json").read_text())["best"] == found.table[0]["label"]


@pytest.mark.parametrize("shape", ["generate", "messages", "plain"])
def test_writers_are_compared_with_the_untuned_model(decoder, shape, tmp_path):
    found = quietly(decoder, tmp_path / "c", ["lora"], shape, update={"batch": 8, "rate": 1e-2}, budget={"steps": 30})
    labels = [row["label"] for row in found.table]
    assert set(labels) == {"lora", "untuned"} | ({"untuned, 4 examples"} if shape != "plain" else set())
    assert labels[0] == "lora" and found.table[0]["mean"] < next(r["mean"] for r in found.table if r["label"] == "untuned")
    assert next(r["before"] for r in found.table if r["label"] == "lora") == pytest.approx(
        next(r["mean"] for r in found.table if r["label"] == "untuned"), rel=1e-6
    )


def test_arms_are_the_runs_of_their_recipes(encoder, tmp_path):
    """All eight, among others and alone."""
    found = quietly(encoder, tmp_path / "c", EIGHT, seeds=1, method={"kind": "adapter", "width": 4})
    of_label = {r.record["label"]: r for r in found.results if not r.record.get("baseline")}
    assert set(of_label) == set(EIGHT)
    for label, result in of_label.items():
        base = made(encoder, tmp_path / "c", method={"kind": "adapter", "width": 4})
        arm = next(a for a in arms(base, EIGHT, 1) if a.label == label)
        alone = run(recipe({**arm.recipe.plain(), "out": str(tmp_path / label)}), Reporter(quiet=True))
        assert {k: alone[k] for k in ("before", "after", "history", "artifact_bytes")} == {
            k: result[k] for k in ("before", "after", "history", "artifact_bytes")
        }
        assert (alone.folder / "predictions.jsonl").read_text() == (result.folder / "predictions.jsonl").read_text()


def test_baselines_are_what_scikit_learn_makes_of_the_states(encoder, tmp_path):
    from sklearn.neighbors import NearestCentroid

    dice = np.random.default_rng(0)
    x, y = dice.normal(size=(60, 8)), dice.integers(0, 3, size=60)
    weight, bias = baselines.centroid(x, y, 3)
    np.testing.assert_array_equal((x @ weight.T + bias).argmax(1), NearestCentroid().fit(x, y).predict(x))
    weight, bias = baselines.logistic(x, y, 4)
    assert (x @ weight.T + bias).argmax(1).max() < 3, "a class that never occurs is never predicted"
    found = quietly(encoder, tmp_path / "c", ["head"], seeds=1)
    labels = [json.loads(line)["label"] for line in (encoder / "classify.jsonl").read_text().splitlines()]
    truth = [json.loads(line)["label"] for line in (encoder / "classify-held.jsonl").read_text().splitlines()]
    most = max(set(labels), key=labels.count)
    majority = next(row for row in found.table if row["label"] == "majority")
    assert majority["mean"] in (truth.count("a") / 30, truth.count("b") / 30) and majority["trainable_parameters"] == 0 and most in "ab"


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_softmax_regression_is_scikit_learns(classes):
    from sklearn.linear_model import LogisticRegression

    dice = np.random.default_rng(classes)
    x = dice.normal(size=(120, 6))
    y = (x[:, :classes] + 0.5 * dice.normal(size=(120, classes))).argmax(1)
    for penalty in (1e-3, 1e-1, 1.0):
        weight, bias = logistic.fitted(x, y, classes, penalty)
        # of two classes scikit-learn fits one row, the difference of ours, whose penalty is then half as large
        theirs = LogisticRegression(C=penalty * (2 if classes == 2 else 1), max_iter=2000, tol=1e-8).fit(x, y)
        logits = x @ weight.T + bias
        mine = np.exp(logits - logits.max(1, keepdims=True))
        np.testing.assert_allclose(mine / mine.sum(1, keepdims=True), theirs.predict_proba(x), atol=2e-3)


def test_a_penalty_is_chosen_on_rows_that_were_not_learnt():
    """Where labels are noise, the strongest penalty; where they are lines, a weaker one; where a class has two rows, no choice is tried."""
    dice = np.random.default_rng(0)
    x = dice.normal(size=(90, 40))
    assert logistic.chosen(x, (x[:, 0] > 0).astype(int), 2) > 1e-4
    assert logistic.chosen(x, np.array([0] * 88 + [1] * 2), 2) == logistic.ALONE


def test_a_method_that_refuses_is_left_out(encoder, tmp_path):
    found = quietly(encoder, tmp_path / "c", ["layers", "bitfit"], method={"kind": "layers", "last": 9})
    assert {row["label"] for row in found.table if not row["baseline"]} == {"bitfit"}
    with pytest.raises(Refusal, match="no method was left"):
        quietly(encoder, tmp_path / "d", ["layers"], method={"kind": "layers", "last": 9})


class Stop(BaseException):
    """What stands for a kill: nothing of ours catches it."""


class Stumble:
    """Raises Stop after `count` more steps of any run of a comparison; 0 or less: never."""

    def __init__(self, monkeypatch) -> None:
        step, self.count = board.Herald.step, 0

        def stumbling(herald, run, record):
            step(herald, run, record)
            self.count -= 1
            if self.count == 0:
                raise Stop

        monkeypatch.setattr(board.Herald, "step", stumbling)


UNTIMED = (
    "mean",
    "low",
    "high",
    "values",
    "before",
    "gain",
    "gap",
    "p",
    "distinct",
    "trainable_parameters",
    "artifact_bytes",
    "general_before",
    "general_after",
)


def test_killed_five_times_it_ends_in_the_same_table(encoder, tmp_path, monkeypatch):
    calm = quietly(encoder, tmp_path / "calm", ["lora", "bitfit", "layers"], method={"kind": "layers", "last": 1})
    stumble = Stumble(monkeypatch)
    for stumble.count in (3, 1, 9, 14, 5):
        with pytest.raises(Stop):
            quietly(encoder, tmp_path / "killed", ["lora", "bitfit", "layers"], method={"kind": "layers", "last": 1})
    stumble.count = 0
    killed = quietly(encoder, tmp_path / "killed", ["lora", "bitfit", "layers"], method={"kind": "layers", "last": 1})
    view = lambda c: [{k: row.get(k) for k in ("label", *UNTIMED)} for row in c.table]
    assert view(killed) == view(calm)


def test_a_finished_comparison_trains_nothing(encoder, tmp_path, monkeypatch):
    first = quietly(encoder, tmp_path / "c")
    monkeypatch.setattr("tunesmith.train.train", lambda *a: pytest.fail("trained again"))
    monkeypatch.setattr("tunesmith.shared.load_network", lambda *a, **k: pytest.fail("loaded again"))
    again = quietly(encoder, tmp_path / "c")
    assert again.table == first.table


# ------------------------------------------------------------------------------------------------ the page


class Page(HTMLParser):
    """All tags closed in order, and every address that the page names."""

    VOID = {"meta", "br", "img", "input", "link", "hr"}

    def __init__(self) -> None:
        super().__init__()
        self.open, self.addresses, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not str(v).startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("lang", WORDS)
@pytest.mark.parametrize("shape", ["classify", "tag", "score", "multi"])
def test_the_page_stands_alone(encoder, shape, lang, tmp_path):
    found = quietly(encoder, tmp_path / "c", shape=shape, lang=lang)
    page = Page()
    page.feed(found.report.read_text(encoding="utf-8"))
    assert not page.open and not page.addresses
    text = " ".join(page.text)
    assert WORDS[lang]["title"] in text and all(row["label"] in text for row in found.table)
    assert "None" not in text and "nan" not in text.split()


def test_text_of_the_data_is_not_code(encoder, tmp_path):
    rows = shop.rows(tmp_path / "evil.jsonl", "classify").read_text().replace("w1 ", "<script>alert(1)</script> ")
    (tmp_path / "evil.jsonl").write_text(rows)
    found = compare(
        made(encoder, tmp_path / "c", data={"train": str(tmp_path / "evil.jsonl"), "eval": str(tmp_path / "evil.jsonl")}),
        ["head", "bitfit"],
        seeds=1,
        reporter=Reporter(quiet=True),
    )
    assert "<script" not in found.report.read_text()


def test_every_language_has_every_word():
    assert len({frozenset(w) for w in WORDS.values()}) == 1


def test_runs_are_joined_into_one_page(encoder, tmp_path):
    first = quietly(encoder, tmp_path / "c")
    lone = run(made(encoder, tmp_path / "lone", method="full"), Reporter(quiet=True))
    page = join([tmp_path / "c", lone.folder], tmp_path / "report.html", "en")
    assert {row["label"] for row in page.table} == {row["label"] for row in first.table} | {"full"}
    other = run(made(encoder, tmp_path / "tag", "tag"), Reporter(quiet=True))
    with pytest.raises(Refusal, match="has task"):
        join([lone.folder, other.folder], tmp_path / "r.html", "en")
    with pytest.raises(Refusal, match="no finished run"):
        join([tmp_path / "nowhere"], tmp_path / "r.html", "en")
    elsewhere = run(recipe(shop.recipe(encoder, out=str(tmp_path / "elsewhere"))), Reporter(quiet=True))
    with pytest.raises(Refusal, match="other rows"):
        join([lone.folder, elsewhere.folder], tmp_path / "r.html", "en")


def test_classes_and_disagreements():
    line = lambda e, p, hit: {"row": 0, "asked": f"{e}{p}", "expected": e, "predicted": p, "shares": [hit, 1.0]}
    a = [line("x", "x", 1.0), line("y", "x", 0.0), line("y", "y", 1.0)]
    b = [line("x", "x", 1.0), line("y", "y", 1.0), line("y", "y", 1.0)]
    what, rows = detail.classes({"a": [a], "b": [b]})
    assert what == "recall" and dict((n, (c, v)) for n, c, v in rows) == {"y": (2, {"a": 0.5, "b": 1.0}), "x": (1, {"a": 1.0, "b": 1.0})}
    assert [d["said"] for d in detail.disagreements({"a": [a], "b": [b]})] == [[("y", True, ["b"]), ("x", False, ["a"])]]
    both = [*a, {**line("", "", 0.0), "expected": ["O", "O"], "predicted": ["O", "B-x"]}]  # a tagger's row with one mistake counts as a label does
    assert detail.classes({"a": [both]}) == ("", [])


def test_passages_are_cut_at_a_sentence():
    assert split("One two three. Four five six.") == ("One two three.", "Four five six.")
    assert split("一二三。四五六。") == ("一二三。", "四五六。")
    assert split("no sentence ends here")[0] and split("no sentence ends here")[1]


def test_curves_are_bars():
    from tunesmith.comparison.board import curve

    assert curve([0.1, 0.5, 0.9], 1) == "▁▅█" and curve([3.0, 2.0], -1) == "▁█" and curve([], 1) == ""


def test_an_arm_that_diverges_is_left_out(encoder, tmp_path):
    found = quietly(encoder, tmp_path / "c", ["full", "bitfit"], seeds=1, vary=["update.rate=1e-3,1e36"], update={"batch": 8, "clip": 0})
    labels = {row["label"] for row in found.table}
    assert {"full update.rate=1e-3", "bitfit update.rate=1e-3"} <= labels and "full update.rate=1e36" not in labels


# ------------------------------------------------------------------------------------------------ several at a time


def test_workers_end_in_the_same_table(encoder, tmp_path):
    """Two processes of Ray's, one of which is refused."""
    pytest.importorskip("ray")
    same = {"threads": 1, "method": {"kind": "layers", "last": 9}}
    alone = quietly(encoder, tmp_path / "alone", ["lora", "layers", "bitfit"], **same)
    both = quietly(encoder, tmp_path / "both", ["lora", "layers", "bitfit"], **same, jobs=2)
    view = lambda c: [{k: row.get(k) for k in ("label", *UNTIMED)} for row in c.table]
    assert view(both) == view(alone)
    assert [a["label"] for a in both.record["arms"]] == [a["label"] for a in alone.record["arms"]]


def test_a_worker_s_refusal_arrives_whole(encoder, tmp_path):
    pytest.importorskip("ray")
    base = made(encoder, tmp_path / "c", threads=1)
    absent = recipe({**base.plain(), "data": {**base.plain()["data"], "train": str(tmp_path / "absent.jsonl")}})
    with pytest.raises(Refusal, match="there is no file") as refused:
        compare(absent, ["lora"], jobs=2, reporter=Reporter(quiet=True))
    assert "why:" in str(refused.value) or "fix:" in str(refused.value)


def test_a_worker_that_is_killed_is_named(encoder, tmp_path, monkeypatch):
    """By a signal that nothing can catch, as the kernel does where memory is short; what it had trained stays."""
    pytest.importorskip("ray")
    from tunesmith.comparison import crew as crews

    hired = crews.Workers.hired

    def doomed(self, ray):
        hands = hired(self, ray)
        ray.kill(hands[0])
        return hands

    monkeypatch.setattr(crews.Workers, "hired", doomed)
    with pytest.raises(Refusal, match="process has ended") as refused:
        quietly(encoder, tmp_path / "c", threads=1, jobs=2)
    assert "--jobs" in str(refused.value)


def test_where_to_run_is_known(encoder, tmp_path):
    with pytest.raises(Refusal, match="no 'slurm' to run on"):
        compare(made(encoder, tmp_path / "c"), ["lora"], on="slurm", reporter=Reporter(quiet=True))


def test_a_refusal_crosses_processes():
    import pickle

    first = Refusal("what", where="here", why="because", fix="so")
    assert str(pickle.loads(pickle.dumps(first))) == str(first)
