"""From rows to examples: what is no example, with its place, the count of like rows, and the remedy."""

from __future__ import annotations

import pytest

from tunesmith.errors import Refusal
from tunesmith.sources.text.formats import detect
from tunesmith.sources.text.read import Records


def records(*rows: dict) -> Records:
    return Records(list(rows), list(range(1, len(rows) + 1)), "a.jsonl", "jsonl")


def refused(task: str, *rows: dict, **options) -> str:
    with pytest.raises(Refusal) as caught:
        detect(records(*rows), task, **options)
    assert caught.value.fix, f"no remedy in: {caught.value}"
    return str(caught.value)


U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}

# task, rows, options, words of the message
BAD = [
    (
        "classify",
        [{"text": "a", "label": 1}, {"text": "b", "label": None}],
        {},
        ["a.jsonl:2: `label` is null (1 of 2 rows)", "bad_rows: skip"],
    ),
    ("classify", [{"text": "a", "label": 1}, {"text": "b"}], {}, ["a.jsonl:2: `label` is missing"]),
    (
        "classify",
        [{"text": t, "label": 1} for t in ("", " ", "a", "\n", "")],
        {},
        ["a.jsonl:1: `text` is empty (4 of 5 rows; also a.jsonl:2, a.jsonl:4, ...)"],
    ),
    ("classify", [{"text": 3, "label": 1}], {}, ["a.jsonl:1: `text` is a whole number, not text: `3`"]),
    ("classify", [{"text": ["a"], "label": "x"}], {}, ["is a list, not text"]),
    ("classify", [{"text": "a", "label": 1.5}], {}, ["a number with a fraction", "task: score"]),
    (
        "classify",
        [{"text": "a", "label": 1}, {"text": "a", "label": 2}, {"text": "a", "label": "x"}],
        {},
        ["a.jsonl:3: `label` is text where in most rows it is a whole number"],
    ),
    (
        "classify",
        [{"text": "a", "label": "neg"}, {"text": "b", "label": "pso"}],
        {"known_labels": ["neg", "pos"]},
        ["a.jsonl:2:", "`pso`", "did you mean `pos`", "`neg`, `pos`"],
    ),
    ("classify", [{"text": "a", "labels": ["x", None]}], {}, ["`labels` is null"]),
    (
        "classify",
        [{"text": "", "label": "x"}, {"text": "a", "label": ""}, {"text": "", "label": "x"}],
        {},
        ["`text` is empty (2 of 3", "and `label` is empty (1 row, first a.jsonl:2)"],
    ),
    (
        "classify",
        [{"txt": "a", "lbl": 1}],
        {},
        ["no column for `text` and `label`", "found `txt`, `lbl`", "`columns: {text: txt, label: lbl}`"],
    ),
    ("classify", [{"review": "a", "stars": 1}], {}, ["no column for `label`", "`columns: {text: review, label: stars}`"]),
    (
        "classify",
        [{"review": "a", "stars": 1}],
        {"columns": {"text": "reveiw"}},
        ["data.columns.text: no column is named `reveiw`", "closest: `review`", "`columns: {text: review}`"],
    ),
    (
        "classify",
        [{"review": "a", "stars": 1}],
        {"columns": {"lable": "stars"}},
        ["no column of ours is named `lable`", "write `label: stars`"],
    ),
    ("clasify", [{"text": "a"}], {}, ["task: `clasify` is none of", "write `classify`"]),
    ("classify", [{"text": "a", "label": 1}], {"bad_rows": "skpi"}, ["write `skip`"]),
    ("score", [{"text": "a", "score": "high"}], {}, ["`score` is not a number: `high`"]),
    ("score", [{"text": "a", "score": True}], {}, ["is not a number"]),
    ("score", [{"text": "a", "score": float("nan")}], {}, ["not a finite number"]),
    ("score", [{"text": "a", "score": "1e999"}], {}, ["not a finite number"]),
    ("score", [{"text": "a", "score": 10**400}], {}, ["not a finite number"]),
    ("tag", [{"tokens": ["a"], "tags": ["O", "O"]}], {}, ["a.jsonl:1: tokens and tags differ in number: 1 token, 2 tags"]),
    ("tag", [{"tokens": ["a", "b"], "tags": ["O", "I-X"]}], {}, ["an I- tag follows no B-", "`I-X` at word 2", "`repair: true`"]),
    ("tag", [{"tokens": ["a", "b"], "tags": ["B-Y", "I-X"]}], {}, ["an I- tag follows no B-"]),
    ("tag", [{"tokens": ["a", "b"], "tags": ["B-X", "X"]}], {}, ["neither O nor", "`X` at word 2"]),
    ("tag", [{"tokens": ["a"], "tags": [3]}], {}, ["a tag is not text", "names of the tags"]),
    ("tag", [{"tokens": [], "tags": []}], {}, ["there are no tokens"]),
    ("tag", [{"tokens": ["a", " "], "tags": ["O", "O"]}], {}, ["a token is not text, or is empty"]),
    ("tag", [{"tokens": ["a"], "tags": ["B-PRE"]}], {"known_labels": ["PER"]}, ["`PRE`", "did you mean `PER`"]),
    ("tag", [{"text": "abc", "spans": [{"start": 1, "end": 9, "label": "X"}]}], {}, ["outside of the text", "1..9 of 3"]),
    ("tag", [{"text": "abc", "spans": [{"start": 2, "end": 2, "label": "X"}]}], {}, ["empty or outside"]),
    ("tag", [{"text": "a  c", "spans": [{"start": 1, "end": 2, "label": "X"}]}], {}, ["only blanks"]),
    ("tag", [{"text": "abcd", "spans": [[0, 2, "X"], [1, 3, "Y"]]}], {}, ["two spans cross: 0..2 and 1..3"]),
    ("tag", [{"text": "abcd", "spans": [[0, 3, "X"], [1, 2, "Y"]]}], {}, ["two spans overlap"]),
    ("tag", [{"text": "abcd", "spans": [{"start": 0, "end": 2, "label": "X", "text": "zz"}]}], {}, ["not what stands at its place"]),
    ("tag", [{"text": "abcd", "spans": [{"start": 0, "label": "X"}]}], {}, ["lacks start, end or label"]),
    ("tag", [{"text": "abcd", "spans": [{"start": "0", "end": 1, "label": "X"}]}], {}, ["not a whole number"]),
    ("tag", [{"text": "abcd", "label": "pos"}], {}, ["not a list of spans"]),
    ("tag", [{"text": "abcd", "category": "pos"}], {}, ["no column for `spans`", "`columns: {text: text, spans: <column>}`"]),
    ("generate", [{"messages": [{"role": "usr", "content": "q"}, A]}], {}, ["unknown role: `usr`"]),
    ("generate", [{"messages": [U]}], {}, ["no assistant turn"]),
    ("generate", [{"messages": [U, U, A]}], {}, ["two user turns in a row"]),
    ("generate", [{"messages": [U, A, A]}], {}, ["two assistant turns in a row"]),
    ("generate", [{"messages": [U, {"role": "assistant", "content": " "}]}], {}, ["empty content: a turn of assistant"]),
    ("generate", [{"messages": [U, {"role": "assistant", "content": None, "tool_calls": [1]}]}], {}, ["tool calls"]),
    ("generate", [{"messages": [U, {"role": "assistant", "content": 5}]}], {}, ["content is a whole number"]),
    ("generate", [{"messages": [U, A, {"role": "system", "content": "s"}]}], {}, ["system turn that is not the first"]),
    ("generate", [{"messages": [U, {**A, "loss": False}]}], {}, ["no turn to learn from"]),
    ("generate", [{"messages": []}], {}, ["there are no messages"]),
    ("generate", [{"messages": [U, A]}, {"messages": "hello"}], {}, ["a.jsonl:2: `messages` is text"]),
    ("generate", [{"prompt": "q", "completion": ""}], {}, ["`completion` is empty"]),
    ("generate", [{"instruction": "q", "output": "r", "history": ["x"]}], {}, ["history is not a list of"]),
    ("generate", [{"foo": "q", "bar": "a"}], {}, ["no column for `prompt` and `completion`", "found `foo`, `bar`"]),
]


@pytest.mark.parametrize("task, rows, options, words", BAD, ids=[f"{i}-{case[0]}" for i, case in enumerate(BAD)])
def test_what_is_no_example_is_refused(task, rows, options, words):
    message = refused(task, *rows, **options)
    assert [word for word in words if word not in message] == []


def test_no_row_left_is_refused_even_where_bad_rows_are_skipped():
    assert "a.jsonl:1: `text` is empty" in refused("classify", {"text": "", "label": "x"}, bad_rows="skip")
