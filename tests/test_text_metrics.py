"""Metrics of generated text against values worked by hand, published examples, and slower code."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evaluate.metrics import generate
from tunesmith.evaluate.text_metrics import bleu, bleu_tokenizer, chrf, exact_match, longest_common, perplexity, rouge_l, tokens_of

FEW = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
    ("nll", "tokens", "expected"),
    [
        (5 * math.log(8), 5, 8.0),  # uniform over eight tokens
        (0.0, 3, 1.0),
        (0.0, 0, "no token was scored"),
        (math.nan, 3, "the likelihood of the references is nan or inf"),
        (1e6, 1, "exp(1000000) is too large for a floating-point number"),
    ],
)
def test_perplexity(nll: float, tokens: int, expected: float | str) -> None:
    assert perplexity(nll, tokens) == (expected if isinstance(expected, str) else pytest.approx(expected))


@pytest.mark.parametrize(
    ("guess", "truth", "expected"),
    [
        ("police kill the gunman", "police killed the gunman", 3 / 4),  # Lin 2004, section 3.1: S2 and S3
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("The CAT", "the cat sat", 4 / 5),
        ("我喜欢猫", "我爱猫", 4 / 7),
        ("", "a", 0.0),
        (" ", "", 1.0),
    ],
)
def test_rouge_l(guess: str, truth: str, expected: float) -> None:
    assert rouge_l([guess], [truth]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World\n", ["hello,", "world"]),
        ("用LoRA微调,很快。", ["用", "lora", "微", "调", ",", "很", "快", "。"]),
        ("カタカナ と かな", [*"カタカナ", "と", *"かな"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("\u3000𠮷 x", ["𠮷", "x"]),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens_of(text) == expected


@FEW
@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_longest_common_is_the_table(left: list[str], right: list[str]) -> None:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert longest_common(left, right) == table[-1][-1]


def test_exact_match_strips_and_keeps_case() -> None:
    assert exact_match([" a b\n", "A", "a  b", "x"], ["a b", "a", "a b", "x "]) == 2 / 4


def test_chrf_by_hand() -> None:
    # abc against abd: 2/3 of the 1-grams, 1/2 of the 2-grams, none of the one 3-gram; longer ones do not exist.
    assert chrf(["abc"], ["abd"]) == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)


def test_bleu_by_hand() -> None:
    # Matches 5/6, 3/5, 1/4 and none of 3 four-grams; the first zero is smoothed to 1 / (2 x 3); no brevity penalty.
    expected = 100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25
    assert bleu(["the cat sat on the mat"], ["the cat was on the mat"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["a plain sentence"], "13a"),
        (["大模型微调", "LoRA 很快"], "zh"),
        (["猫 is the word for cat"], "13a"),
        (["これは猫です"], "char"),
    ],
)
def test_bleu_tokenizer(references: list[str], expected: str) -> None:
    assert bleu_tokenizer(references) == expected


def test_chinese_copy_is_perfect_and_near_copy_is_not_zero() -> None:
    assert bleu(["今天天气很好"], ["今天天气很好"]) == pytest.approx(100)
    assert bleu(["今天天气很好"], ["今天天气不好"]) > 30  # pyright: ignore[reportOperatorIssue]


def test_what_bleu_and_chrf_leave_undefined() -> None:
    assert "four tokens" in str(bleu(["yes"], ["yes"]))
    assert bleu(["yes"], ["yes it is so"]) == 0.0
    assert "empty" in str(chrf(["x"], [" "])) and "empty" in str(bleu(["x"], [""]))


def test_without_sacrebleu_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    got = generate(["a"], ["a"])
    assert got.values["rouge_l"] == 1.0 and "pip install sacrebleu" in got.reasons["bleu"] and "chrf" in got.reasons


def test_generate_puts_perplexity_first_when_it_is_measured() -> None:
    got = generate(["a b c d"], ["a b c d"], nll=4 * math.log(2), tokens=4)
    assert got.main == "perplexity" and not got.reasons
    assert got.values == pytest.approx({"perplexity": 2, "exact_match": 1, "rouge_l": 1, "chrf": 100, "bleu": 100})
    alone = generate([], [], nll=0.0, tokens=1)
    assert alone.main == "perplexity" and alone.values["perplexity"] == 1.0 and len(alone.reasons) == 4
    assert generate(["a"], ["a"]).main == "rouge_l"
