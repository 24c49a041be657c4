"""Metrics against values worked by hand, published examples, and other people's or slower code."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evaluate.metrics import METRICS, Scores, better, classify, multilabel, score, spans, tag

FEW = settings(max_examples=60, deadline=None)
LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30)
TAGS = st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y", "B-a-b", "I-a-b"]), max_size=12)
NUMBERS = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=20)

# The worked example of the article "Phi coefficient": 6 true positives, 3 true negatives, 1 false positive, 2 false negatives.
CATS = [1] * 8 + [0] * 4
CATS_SEEN = [1] * 6 + [0] * 2 + [1] + [0] * 3
# The worked example of "Spearman's rank correlation coefficient": rho = -29/165.
IQ = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
HOURS = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]

HAND = [
    ("classify", CATS_SEEN, CATS, {"accuracy": 9 / 12, "macro_f1": (12 / 15 + 6 / 9) / 2, "mcc": 16 / math.sqrt(1120)}),
    ("classify", ["a", "b", "c"], ["a", "b", "c"], {"accuracy": 1, "macro_f1": 1, "mcc": 1}),
    ("classify", ["a", "a"], ["b", "c"], {"accuracy": 0, "macro_f1": 0, "mcc": None}),
    # Label 1: one hit, one miss. Label 2: a false alarm. Label 3 never occurs, and does not pull the mean down.
    ("multilabel", [[1, 1, 0], [0, 0, 0]], [[1, 0, 0], [1, 0, 0]], {"micro_f1": 2 / 4, "macro_f1": (2 / 3 + 0) / 2, "exact": 0}),
    ("multilabel", [[1, 0], [0, 1]], [[1, 0], [0, 1]], {"micro_f1": 1, "macro_f1": 1, "exact": 1}),
    ("multilabel", [[0, 0]], [[0, 0]], {"micro_f1": None, "macro_f1": None, "exact": 1}),
    # One of two found entities is one of three true ones; 5 of 7 tokens agree.
    (
        "tag",
        [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O", "O"]],
        [["B-PER", "I-PER", "O", "B-ORG"], ["O", "B-LOC", "O"]],
        {"f1": 2 / 5, "precision": 1 / 2, "recall": 1 / 3, "accuracy": 5 / 7},
    ),
    # A span that is one token short is wrong, and so is a right span of another type.
    ("tag", [["B-x", "O"]], [["B-x", "I-x"]], {"f1": 0, "precision": 0, "recall": 0, "accuracy": 0.5}),
    ("tag", [["B-x", "I-x"]], [["B-y", "I-y"]], {"f1": 0, "precision": 0, "recall": 0, "accuracy": 0}),
    ("tag", [["I-x", "I-x"]], [["B-x", "I-x"]], {"f1": 1, "precision": 1, "recall": 1, "accuracy": 0.5}),
    ("tag", [["O"]], [["B-x"]], {"f1": 0, "precision": None, "recall": 0, "accuracy": 0}),
    ("tag", [["O"]], [["O"]], {"f1": None, "precision": None, "recall": None, "accuracy": 1}),
    ("tag", [["NOUN", "VERB"]], [["NOUN", "NOUN"]], {"accuracy": 0.5, "f1": None, "precision": None, "recall": None}),
    ("score", HOURS, IQ, {"spearman": -29 / 165}),
    ("score", [1, 2, 3], [2, 4, 6], {"spearman": 1, "pearson": 1, "rmse": math.sqrt(14 / 3), "mae": 2}),
    ("score", [1, 2, 3, 4], [1, 8, 27, 64], {"spearman": 1}),
    ("score", [7, 7], [1, 2], {"spearman": None, "pearson": None, "rmse": math.sqrt(61 / 2), "mae": 5.5}),
    ("score", [1], [3], {"spearman": None, "pearson": None, "rmse": 2, "mae": 2}),
    ("score", [math.nan, 1], [1, 2], {"spearman": None, "pearson": None, "rmse": None, "mae": None}),
]


@pytest.mark.parametrize(("task", "predictions", "references", "expected"), HAND)
def test_values_worked_by_hand(task: str, predictions: Any, references: Any, expected: dict[str, float | None]) -> None:
    got = METRICS[task](predictions, references)
    assert got.main == next(iter(expected))
    assert {name: got.values[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("task", METRICS)
def test_nothing_to_score_gives_reasons(task: str) -> None:
    got = METRICS[task]([], [])
    assert set(got.values.values()) == {None}
    assert set(got.reasons) == set(got.values) and all(got.reasons.values())


@pytest.mark.parametrize("task", METRICS)
def test_unequal_lengths_are_the_callers_fault(task: str) -> None:
    with pytest.raises(ValueError, match="predictions"):
        METRICS[task]([[1]], [[1], [0]])


def test_a_sentence_of_another_length_is_named() -> None:
    with pytest.raises(ValueError, match="sentence 1: 1 predictions for 2 references"):
        tag([["O"], ["O"]], [["O"], ["O", "O"]])


@pytest.mark.parametrize("table", [[[0.7, 0.2]], [0, 1]])
def test_multilabel_wants_decisions(table: Any) -> None:
    with pytest.raises(ValueError, match="table of 0 and 1"):
        multilabel(table, table)


def test_main_is_the_first_and_reasons_match_the_nones() -> None:
    got = Scores.of({"b": 1, "a": "because", "c": math.nan, "d": math.inf})
    assert got.main == "b"
    assert dict(got.values) == {"b": 1.0, "a": None, "c": None, "d": None}
    assert list(got.reasons) == ["a", "c", "d"] and got.reasons["a"] == "because"


@pytest.mark.parametrize(("name", "sign"), [("rmse", -1), ("mae", -1), ("perplexity", -1), ("loss", -1), ("accuracy", 1), ("bleu", 1)])
def test_better(name: str, sign: int) -> None:
    assert better(name) == sign


def test_import_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'sklearn', 'scipy', 'sacrebleu'}"
    code = f"import sys, tunesmith.evaluate.metrics; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.filterwarnings("ignore:A single label was found")
@FEW
@given(LABELS)
def test_classify_is_sklearn(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    guess, truth = map(list, zip(*pairs, strict=True))
    got = classify(guess, truth)
    assert got.values["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert got.values["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    assert (got.values["mcc"] or 0.0) == pytest.approx(matthews_corrcoef(truth, guess), abs=1e-12)
    assert (got.values["mcc"] is None) == (len(set(guess)) == 1 or len(set(truth)) == 1)


@FEW
@given(LABELS)
def test_classify_does_not_look_at_what_labels_are(pairs: list[tuple[int, int]]) -> None:
    guess, truth = map(list, zip(*pairs, strict=True))
    named = classify([f"label {code}" for code in guess], [f"label {code}" for code in truth])
    assert classify(np.array(guess), np.array(truth)) == classify(guess, truth) == named


@FEW
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=10))
def test_multilabel_is_sklearn(rows: list[list[bool]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    guess, truth = np.array(rows)[:, :3].astype(int), np.array(rows)[:, 3:].astype(int)
    got = multilabel(guess.tolist(), truth)
    for kind in ("micro", "macro"):
        expected = float(f1_score(truth, guess, average=kind, zero_division=np.nan))  # pyright: ignore[reportArgumentType]
        assert got.values[f"{kind}_f1"] == (None if math.isnan(expected) else pytest.approx(expected))
    assert got.values["exact"] == pytest.approx(accuracy_score(truth, guess))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-x I-x O", [("x", 0, 2)]),
        ("B-x B-x", [("x", 0, 1), ("x", 1, 2)]),
        ("I-x I-y I-y", [("x", 0, 1), ("y", 1, 3)]),
        ("B-x I-y", [("x", 0, 1), ("y", 1, 2)]),
        ("O I-x", [("x", 1, 2)]),
        ("I-x O I-x", [("x", 0, 1), ("x", 2, 3)]),
        ("I-x B-x I-x", [("x", 0, 1), ("x", 1, 3)]),
        ("B I O I", [("", 0, 2), ("", 3, 4)]),
        ("B-x NOUN I-x", [("x", 0, 1), ("x", 2, 3)]),
        ("", []),
    ],
)
def test_spans(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert spans(tags.split()) == expected


def slow_spans(tags: list[str]) -> set[tuple[str, int, int]]:
    """All [i, j) of which the definition holds: the first token begins an entity, the others go on as I-, the next does not."""
    padded = ["O", *tags, "O"]

    def holds(kind: str, i: int, j: int) -> bool:
        before, first, rest, after = padded[i], padded[i + 1], padded[i + 2 : j + 1], padded[j + 1]
        goes_on = before in (f"B-{kind}", f"I-{kind}") and first == f"I-{kind}"
        begins = first in (f"B-{kind}", f"I-{kind}") and not goes_on
        return begins and set(rest) <= {f"I-{kind}"} and after != f"I-{kind}"

    ends = range(len(tags) + 1)
    return {(kind, i, j) for kind in ("x", "y", "a-b") for i in ends for j in ends if i < j and holds(kind, i, j)}


@settings(max_examples=200, deadline=None)
@given(TAGS)
def test_spans_are_what_the_definition_says(tags: list[str]) -> None:
    found = spans(tags)
    assert set(found) == slow_spans(tags) and len(found) == len(set(found))


@FEW
@given(st.lists(TAGS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_tag_counts_entities_and_swaps_sides(truth: list[list[str]], random: Any) -> None:
    guess = [random.sample(tags, len(tags)) for tags in truth]
    one, other = tag(guess, truth).values, tag(truth, guess).values
    hits = sum(len(slow_spans(a) & slow_spans(b)) for a, b in zip(guess, truth, strict=True))
    count = sum(len(slow_spans(tags)) for tags in guess)
    assert one["precision"] == (hits / count if count else None)
    assert (one["precision"], one["recall"], one["f1"]) == (other["recall"], other["precision"], other["f1"])


@FEW
@given(NUMBERS)
def test_score_is_scipy(pairs: list[tuple[int, int]]) -> None:
    from scipy.stats import pearsonr, spearmanr

    guess, truth = map(list, zip(*pairs, strict=True))
    got = score(guess, truth).values
    gap = np.subtract(guess, truth)
    assert (got["rmse"], got["mae"]) == pytest.approx((np.sqrt((gap**2).mean()), abs(gap).mean()))
    if len(set(guess)) == 1 or len(set(truth)) == 1:
        assert got["spearman"] is None and got["pearson"] is None
    else:
        assert got["pearson"] == pytest.approx(pearsonr(guess, truth)[0], abs=1e-9)
        assert got["spearman"] == pytest.approx(spearmanr(guess, truth)[0], abs=1e-9)


@FEW
@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=8))
def test_score_never_crashes_and_is_never_nan(pairs: list[tuple[float, float]]) -> None:
    got = score([guess for guess, _ in pairs], [truth for _, truth in pairs])
    assert all(value is None or math.isfinite(value) for value in got.values.values())
    assert set(got.reasons) == {name for name, value in got.values.items() if value is None}


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_correlation_has_no_unit(scale: float) -> None:
    got = score([value * scale for value in HOURS], IQ).values
    assert got["pearson"] == pytest.approx(np.corrcoef(HOURS, IQ)[0, 1]) and got["spearman"] == pytest.approx(-29 / 165)
