"""Rewards: what is right, what is not, and what goes wrong in a reward names the reward and the sample."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import shop
from tunesmith import train as training
from tunesmith.errors import Refusal
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.rewards import Told, reward
from tunesmith.rewards import told as faults
from tunesmith.rewards.verifiable import last_number


def samples(*pairs: tuple[str, str | None]) -> list[Told]:
    return [Told(f"question {i}", said, truth, i, True) for i, (said, truth) in enumerate(pairs)]


def values(given, *pairs: tuple[str, str | None]) -> list[float]:
    return reward(given)(samples(*pairs))[0]


def test_exact_is_the_reference_but_for_blanks_and_case() -> None:
    assert values("exact", ("Forty  two\n", "forty two"), ("forty", "forty two")) == [1.0, 0.0]
    assert values({"kind": "exact", "case": True}, ("Yes", "yes"), ("yes ", "yes")) == [0.0, 1.0]


def test_contains_finds_the_reference() -> None:
    assert values("contains", ("It is T-60925.", "t-60925"), ("It is.", "T-60925")) == [1.0, 0.0]


def test_numeric_compares_the_last_numbers() -> None:
    assert values("numeric", ("3 + 4 = 7", "#### 7"), ("so 1,234.50 pounds", "1234.5"), ("-2", "2"), ("none", "2"), ("1e3", "1000")) == [1, 1, 0, 0, 1]
    assert values({"kind": "numeric", "tolerance": 0.01}, ("3.14", "3.1416")) == [1.0]
    assert last_number("1,23") == 23.0 and last_number("no") is None


def test_regex_searches_or_matches_the_whole_and_cannot_hang() -> None:
    assert values({"kind": "regex", "pattern": r"\d{3}"}, ("ab123", None), ("ab12", None)) == [1.0, 0.0]
    assert values({"kind": "regex", "pattern": r"\d{3}", "whole": True}, ("ab123", None), (" 123 ", None)) == [0.0, 1.0]
    assert values({"kind": "regex", "pattern": r"(a|aa)+$"}, ("a" * 60 + "b", None)) == [0.0]  # 2^60 ways, of which nobody tries many


def test_a_format_is_kept_or_not() -> None:
    assert values({"kind": "format", "form": "json"}, ('{"a": 1}', None), ("{a}", None)) == [1.0, 0.0]
    good, twice, outside = (
        "<think>x\ny</think>\n<answer>2</answer>",
        "<think>x</think><think>y</think><answer>2</answer>",
        "so <think>x</think><answer>2</answer>",
    )
    assert values({"kind": "format", "form": "tags"}, (good, None), (twice, None), (outside, None), ("", None)) == [1, 0, 0, 0]


def test_several_are_added_with_their_weights(tmp_path) -> None:
    (tmp_path / "r.py").write_text("def short(sample):\n    return -len(sample.completion)\n")
    both = reward([{"reward": "exact", "weight": 2.0}, {"reward": f"{tmp_path}/r.py:short", "weight": 0.1}])
    totals, parts = both(samples(("ab", "ab"), ("abc", "ab")))
    assert totals == pytest.approx([1.8, -0.3]) and parts == {"exact": [1.0, 0.0], "short": [-2.0, -3.0]}


def test_what_cannot_be_scored_is_left_out() -> None:
    assert [math.isnan(v) for v in values("exact", ("a", None), ("a", "a"))] == [True, False]


FUNCTIONS = """
import math, time
def nan(sample): return math.nan
def word(sample): return "good"
def fails(sample): return 1 / (sample.row - 1)
def short(samples): return [0.0]
def number(samples): return 1.0
def both(samples): return [float("inf"), 1.0]
def slow(sample):
    time.sleep(0.05)
    return 0.0
def slow_batch(samples):
    time.sleep(0.1)
    return [0.0] * len(samples)
def unknown(sample): return None
value = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(FUNCTIONS)
    return str(path)


@pytest.mark.parametrize(
    ("name", "what", "sample"),
    [
        ("nan", "is nan", "row 1: 'question 0' -> 'a'"),
        ("word", "is 'good'", "row 1"),
        ("fails", "raised ZeroDivisionError: float division by zero", "row 2: 'question 1' -> 'b'"),
        ("short", "returned 1 values for 2 samples", ""),
        ("number", "returned 1.0", ""),
        ("both", "is inf", "row 1"),
    ],
)
def test_what_goes_wrong_is_named_with_its_sample(file, name, what, sample) -> None:
    with pytest.raises(Refusal) as caught:
        values(f"{file}:{name}", ("a", None), ("b", None))
    text = str(caught.value)
    assert what.replace("float division", "division") in text.replace("float division", "division") and sample in text and name in text


@pytest.mark.parametrize("name", ["slow", "slow_batch"])
def test_what_is_slow_is_named_with_its_sample(file, name, monkeypatch) -> None:
    monkeypatch.setattr(faults, "SLOW", 0.02)
    monkeypatch.setattr("tunesmith.rewards.functions.SLOW", 0.02)
    said: list[str] = []
    reward(f"{file}:{name}", said.append)(samples(("a", None), ("bb", None)))
    assert said and name in said[0] and "question" in said[0] and " s" in said[0]


def test_none_means_that_it_cannot_be_scored(file) -> None:
    assert math.isnan(values(f"{file}:unknown", ("a", None))[0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("exat", "no reward `exat`"),
        ("missing.py:f", "no file missing.py"),
        ("FILE:none", "no function `none`"),
        ("FILE:value", "no function `value`"),
        ({"kind": "regex", "pattern": "("}, "no regular expression"),
        ({"kind": "regex"}, "`objective.reward.pattern` is missing"),
        ({"kind": "exact", "cases": True}, "unknown key"),
        ({"kind": "format", "form": "xml"}, "no form `xml`"),
        ([{"reward": "exact", "wait": 1}], "unknown key `wait`"),
        ([{"reward": "exact", "weight": "much"}], "a weight is 'much'"),
        (["exact", "exact"], "named twice"),
        ([], "none is"),
    ],
)
def test_what_names_no_reward_is_refused(file, given, words) -> None:
    given = given.replace("FILE", file) if isinstance(given, str) else given
    with pytest.raises(Refusal) as caught:
        reward(given)
    assert words in str(caught.value)


@pytest.mark.parametrize("shape", ["classify", "score"])
def test_a_trained_run_judges(shape, tmp_path: Path) -> None:
    shop.encoder(tmp_path / "model")
    spec = shop.recipe(tmp_path, shape, "full", budget={"steps": 60}, update={"batch": 8, "rate": 2e-3}, evaluate={"every": 60}, checkpoint={"every": 99})
    folder = str(training.run(recipe(spec), Reporter(quiet=True)).folder)
    given = {"kind": folder, "label": "b"} if shape == "classify" else folder
    low, high = values(given, ("w1 w2 w3 w4", None), ("w40 w41 w42 w43", None))
    assert high > low
    if shape == "classify":
        assert 0 <= low <= 1
        with pytest.raises(Refusal, match="gives no such number"):
            reward(folder)
