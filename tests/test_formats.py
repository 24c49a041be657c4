"""From rows to examples: the format that is found, and the examples that come of it. (tests/test_format_faults.py has the refusals.)"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.sources.text.formats import Classified, Dialogue, Format, Plain, Scored, Tagged, Turn, detect, preview
from tunesmith.sources.text.read import Records, read
from tunesmith.sources.text.tags import cut, from_spans

DATA = os.environ.get("TUNESMITH_DATA")


def records(*rows: dict) -> Records:
    return Records(list(rows), list(range(1, len(rows) + 1)), "a.jsonl", "jsonl")


def one(task: str, row: dict, **options):
    return detect(records(row), task, **options).examples()[0]


def said(*turns: str) -> tuple[Turn, ...]:
    """Turns from "u:..." and "a:..." (learnt) and "A:..." (not learnt) and "s:..."."""
    names = {"s": "system", "u": "user", "a": "assistant", "A": "assistant"}
    return tuple(Turn(names[turn[0]], turn[2:], turn[0] == "a") for turn in turns)


U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}
FOUND = [
    ("classify", {"text": "a", "label": "x"}, "text + label", Classified("a", None, ("x",), 0)),
    ("classify", {"Review": "a", "Category": 1}, "text + label", Classified("a", None, ("1",), 0)),
    ("classify", {"sentence": "a", "intent": True, "id": 4}, "text + label", Classified("a", None, ("true",), 0)),
    ("classify", {"premise": "a", "hypothesis": "b", "label": "x"}, "pair + label", Classified("a", "b", ("x",), 0)),
    ("classify", {"question": "a", "answer": "b", "label": "x"}, "pair + label", Classified("a", "b", ("x",), 0)),
    ("classify", {"text": "a", "labels": ["x", "y", "x"]}, "multi-label", Classified("a", None, ("x", "y"), 0)),
    ("classify", {"text": "a", "labels": []}, "multi-label", Classified("a", None, (), 0)),
    ("tag", {"tokens": ["A", "b"], "ner_tags": ["B-X", "O"]}, "tokens + tags", Tagged(("A", "b"), ("B-X", "O"), (True, False), 0)),
    ("tag", {"words": "A b", "tags": "B-X O"}, "tokens + tags", Tagged(("A", "b"), ("B-X", "O"), (True, False), 0)),
    ("tag", {"tokens": "['A', 'b']", "tags": '["B-X", "O"]'}, "tokens + tags", Tagged(("A", "b"), ("B-X", "O"), (True, False), 0)),
    ("tag", {"tokens": ["上", "海"], "tags": ["B-X", "I-X"]}, "tokens + tags", Tagged(("上", "海"), ("B-X", "I-X"), (False, False), 0)),
    (
        "tag",
        {"text": "Go A", "spans": [{"start": 3, "end": 4, "label": "X"}]},
        "text + spans",
        Tagged(("Go", "A"), ("O", "B-X"), (True, False), 0),
    ),
    ("tag", {"text": "Go A", "entities": [[3, 4, "X"]]}, "text + spans", Tagged(("Go", "A"), ("O", "B-X"), (True, False), 0)),
    (
        "tag",
        {"text": "去上海", "label": {"X": {"上海": [[1, 2]]}}},
        "text + spans",
        Tagged(("去", "上", "海"), ("O", "B-X", "I-X"), (False,) * 3, 0),
    ),
    (
        "tag",
        {"text": "去上", "entity_list": [{"entity_type": "X", "entity": "上", "entity_index": {"begin": 1, "end": 2}}]},
        "text + spans",
        Tagged(("去", "上"), ("O", "B-X"), (False, False), 0),
    ),
    ("score", {"sentence1": "a", "sentence2": "b", "score": 2}, "pair + score", Scored("a", "b", 2.0, 0)),
    ("score", {"text": "a", "label": "-1.5e-1"}, "text + score", Scored("a", None, -0.15, 0)),
    ("generate", {"prompt": "q", "completion": "r"}, "prompt + completion", Dialogue(said("u:q", "a:r"), 0)),
    ("generate", {"Question": "q", "Answer": 51.0}, "prompt + completion", Dialogue(said("u:q", "a:51.0"), 0)),
    ("generate", {"query": "q", "response": "r", "system": "s"}, "prompt + completion", Dialogue(said("s:s", "u:q", "a:r"), 0)),
    ("generate", {"input": "q", "output": "r"}, "prompt + completion", Dialogue(said("u:q", "a:r"), 0)),
    ("generate", {"prompt": [U], "completion": [A]}, "prompt + completion", Dialogue(said("u:q", "a:r"), 0)),
    ("generate", {"instruction": "i", "input": "", "output": "r"}, "alpaca", Dialogue(said("u:i", "a:r"), 0)),
    (
        "generate",
        {"instruction": "i", "input": "x", "output": "r", "system": "s", "history": [["p", "o"]]},
        "alpaca",
        Dialogue(said("s:s", "u:p", "a:o", "u:i\nx", "a:r"), 0),
    ),
    ("generate", {"messages": [U, A], "id": 3}, "messages", Dialogue(said("u:q", "a:r"), 0)),
    ("generate", {"messages": [U, {**A, "loss": False}, U, A]}, "messages", Dialogue(said("u:q", "A:r", "u:q", "a:r"), 0)),
    (
        "generate",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, A]},
        "messages",
        Dialogue(said("u:q", "a:r"), 0),
    ),
    (
        "generate",
        {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]},
        "sharegpt",
        Dialogue(said("s:s", "u:q", "a:r"), 0),
    ),
    ("generate", {"text": "a\nb"}, "plain text", Plain("a\nb", 0)),
    ("generate", {"title": "t", "paragraphs": ["a", "b"]}, "plain text", Plain("a\nb", 0)),
    ("generate", {"column1": "Hi.", "column2": "嗨。"}, "prompt + completion", Dialogue(said("u:Hi.", "a:嗨。"), 0)),
]


@pytest.mark.parametrize("task, row, name, example", FOUND, ids=[f"{i}-{case[2]}" for i, case in enumerate(FOUND)])
def test_a_format_is_found(task, row, name, example):
    found = detect(records(row), task)
    assert (found.name, found.examples(), len(found), found.skipped) == (name, [example], 1, ())
    assert len(preview(found)) == 1 and "\n" not in preview(found)[0]


CHOSEN = [
    ("classify", {"a": "x", "b": "y"}, {"text": "a", "label": "b"}, Classified("x", None, ("y",), 0)),
    ("classify", {"a": "x", "b": "y", "c": 0}, {"text": "a", "pair": "b", "label": "c"}, Classified("x", "y", ("0",), 0)),
    ("classify", {"text": "x", "b": "y", "label": 0}, {"pair": "b"}, Classified("x", "y", ("0",), 0)),
    ("classify", {"premise": "x", "hypothesis": "y", "label": 0}, {"text": "hypothesis"}, Classified("y", None, ("0",), 0)),
    ("score", {"text": "x", "label": "y", "n": 1}, {"score": "n"}, Scored("x", None, 1.0, 0)),
    ("tag", {"tokens": ["x"], "tags": ["O"], "upos": ["NN"]}, {"tags": "upos"}, Tagged(("x",), ("NN",), (False,), 0)),
    ("generate", {"messages": [U, A], "text": "t"}, {"text": "text"}, Plain("t", 0)),
    ("generate", {"prompt": "p", "completion": "c", "mr": "m"}, {"prompt": "mr"}, Dialogue(said("u:m", "a:c"), 0)),
    ("generate", {"a": "p", "b": "c", "i": "x"}, {"instruction": "a", "output": "b", "input": "i"}, Dialogue(said("u:p\nx", "a:c"), 0)),
    ("generate", {"talk": [U, A]}, {"messages": "talk"}, Dialogue(said("u:q", "a:r"), 0)),
]


@pytest.mark.parametrize("task, row, columns, example", CHOSEN)
def test_the_users_columns_win(task, row, columns, example):
    assert one(task, row, columns=columns) == example


def test_bad_rows_can_be_left_out_and_are_counted():
    rows = [{"text": "a", "label": "x"}, {"text": "", "label": "y"}, {"text": "c", "label": None}, {"text": "d", "label": "y"}]
    found = detect(records(*rows), "classify", bad_rows="skip")
    assert [example.row for example in found.examples()] == [0, 3]
    assert found.skipped == ((1, "`text` is empty"), (2, "`label` is null"))
    assert "1 row left out: `text` is empty (a.jsonl:2)" in found.notes


@pytest.mark.parametrize(
    "tags, made, note",
    [
        (["S-X", "B-Y", "I-Y", "E-Y", "O"], ("B-X", "B-Y", "I-Y", "I-Y", "O"), "BIOES"),
        (["U-X", "B-Y", "L-Y", "O", "O"], ("B-X", "B-Y", "I-Y", "O", "O"), "BIOES"),
        (["B_X", "I_X", "O", "O", "O"], ("B-X", "I-X", "O", "O", "O"), ""),
        (["NN", "VB", "NN", "DT", "O"], ("NN", "VB", "NN", "DT", "O"), "plain tags"),
    ],
)
def test_other_schemes_become_bio(tags, made, note):
    found = detect(records({"tokens": list("abcde"), "tags": tags}), "tag")
    assert isinstance(found.examples()[0], Tagged) and vars(found.examples()[0])["tags"] == made
    assert note in " ".join(found.notes)


def test_a_lone_inside_tag_can_be_repaired():
    found = detect(records({"tokens": list("abcd"), "tags": ["I-X", "I-X", "O", "I-Y"]}), "tag", repair=True)
    assert vars(found.examples()[0])["tags"] == ("B-X", "I-X", "O", "B-Y")
    assert "2 I- tags without a B- read as B-" in found.notes


def test_a_text_of_labels_is_split_only_when_asked():
    rows = [{"text": "a", "label": "x|y"}, {"text": "b", "label": "z"}, {"text": "c", "label": ""}]
    assert [e.labels for e in classified(detect(records(*rows), "classify", multi_label=True))] == [("x", "y"), ("z",), ()]
    assert [e.labels for e in classified(detect(records(*rows[:2]), "classify"))] == [("x|y",), ("z",)]
    assert one("classify", {"text": "a", "label": "x, y"}, multi_label=True) == Classified("a", None, ("x", "y"), 0)


def classified(found: Format) -> list[Classified]:
    return [example for example in found.examples() if isinstance(example, Classified)]


@pytest.mark.parametrize(
    "task, rows, word",
    [
        ("classify", [{"text": "a", "sentence": "b", "label": 1}], "text is read from `text`; `sentence` would do too"),
        ("classify", [{"text": "a", "label": "x"}] * 2, "only one label, `x`"),
        ("classify", [{"text": "a", "label": "Pos"}, {"text": "b", "label": "pos "}], "differ only in case or blanks"),
        ("classify", [{"text": "a", "label": f"l{i}"} for i in range(30)], "30 different labels"),
        ("score", [{"text": "a", "score": 1}] * 3, "the score is 1 in every row"),
        ("score", [{"text": "a", "score": 1}, {"text": "a", "score": 10**6}], "a wide scale"),
        ("tag", [{"tokens": ["a"], "tags": ["O"]}], "every word is tagged O"),
        ("generate", [{"messages": [U, A], "text": "t"}], "read as messages; plain text would be possible too"),
        ("generate", [{"column1": "a", "column2": "b"}], "column1 is taken for the prompt"),
    ],
)
def test_what_is_odd_is_noted(task, rows, word):
    assert word in " ".join(detect(records(*rows), task).notes)


@pytest.mark.parametrize(
    "task, rows, columns",
    [
        ("classify", [("a fine film", "1"), ("a dull film", "0"), ("so good", "1")], {"text": "column1", "label": "column2"}),
        ("classify", [("NUM", "dist", "How far is it?"), ("NUM", "date", "When was it?")], {"text": "column3", "label": "column1"}),
        ("score", [("A man", "A boy", "2.5"), ("A cat", "A dog", "1")], {"text": "column1", "pair": "column2", "score": "column3"}),
    ],
)
def test_columns_without_names_are_guessed_and_noted(task, rows, columns):
    found = detect(records(*({f"column{i}": cell for i, cell in enumerate(row, 1)} for row in rows)), task)
    assert found.columns == columns
    assert "guessed" in found.notes[0]


def test_a_preview_is_one_harmless_line_each():
    assert preview(detect(records({"text": "a\x1b[2J\nb" + "x" * 500, "label": "y"}), "classify"))[0].startswith("`a\\u001b[2J\\nbxx")
    assert preview(detect(records({"tokens": ["A", "b"], "tags": ["B-X", "O"]}), "tag")) == ["`[A B-X] b`"]
    assert preview(detect(records({"prompt": "q", "completion": "r"}), "generate")) == ["user: `q` | assistant*: `r`"]
    assert preview(detect(records(*[{"text": "a", "text_pair": "b", "score": 0.5}] * 5), "score"), 2) == ["`a` / `b` -> 0.5"] * 2


WORDS = st.text(st.sampled_from("ab 1.,-_'\n上海é e\u0301が🙂ก็"), min_size=1, max_size=30)


@settings(max_examples=150, deadline=None)
@given(WORDS, st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=4))
def test_spans_survive_the_cutting_into_words(text, places):
    spans, end = [], 0
    for start, length in sorted(places):
        if start >= end and text[start : start + length].strip():
            end = min(start + length, len(text))
            spans.append((start, end, "X"))
    made = from_spans(text, spans, 0)
    words = cut(text, [edge for start, end, _ in spans for edge in (start, end)])
    assert made.tokens == tuple(text[a:b] for a, b in words)
    assert made.text == " ".join(text.split()) and len(made.tags) == len(made.tokens) == len(made.spaces)
    begun = [text[a:b] for (a, b), tag in zip(words, made.tags) if tag == "B-X"]
    assert len(begun) == len(spans)
    inside = {i for (a, b), tag in zip(words, made.tags) if tag != "O" for i in range(a, b)}
    assert inside == {i for start, end, _ in spans for i in range(start, end) if not text[i].isspace()}


# file, task, format, examples, options for detect
REAL = [
    ("sst2/train.tsv", "classify", "text + label", 6920, {}),
    ("emotion/train.txt", "classify", "text + label", 16000, {}),
    ("banking77/train.csv", "classify", "text + label", 10003, {}),
    ("chn_waimai/waimai_10k/waimai_10k.csv", "classify", "text + label", 11987, {}),
    ("fewclue_tnews/tnews/train_0.json", "classify", "text + label", 240, {}),
    ("wnut17/wnut17train.conll", "tag", "tokens + tags", 3394, {}),
    ("cluener/dev.txt", "tag", "text + spans", 1343, {}),
    ("cluener/train.txt", "tag", "text + spans", 10747, {"bad_rows": "skip"}),
    ("weibo_ner/weiboNER_2nd_conll.train", "tag", "tokens + tags", 1350, {"repair": True}),
    ("gsm8k/train.jsonl", "generate", "prompt + completion", 7473, {}),
    ("e2e_nlg/devset.csv", "generate", "prompt + completion", 4672, {}),
    ("tatoeba_en_zh/cmn.txt", "generate", "prompt + completion", 20403, {}),
    ("llamafactory_demo/alpaca_zh_demo.json", "generate", "alpaca", 1000, {}),
    ("llamafactory_demo/kto_en_demo.json", "generate", "answer + verdict", 300, {}),
    ("stsb/stsb-zh-train.csv", "score", "pair + score", 5749, {}),
    ("tinystories_sample/train_0.txt", "generate", "plain text", 4948, {}),
    ("chinese_poetry/诗经/shijing.json", "generate", "plain text", 305, {}),
]


@pytest.mark.skipif(not DATA, reason="TUNESMITH_DATA names no folder of real data")
@pytest.mark.parametrize("file, task, name, count, options", REAL, ids=[case[0] for case in REAL])
def test_real_files(file, task, name, count, options):
    found = detect(read(Path(DATA or "", file)), task, **options)
    assert (found.name, len(found)) == (name, count)
    assert len(preview(found)) == 3
