"""The data that comes with the package keeps the promises of its card."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from importlib import resources
from itertools import combinations, pairwise, product

import pytest

from tunesmith.data.desk import INTENTS, KINDS, SHAPES, SPLITS, URGENCIES, records, rows
from tunesmith.errors import Refusal

ALL = records()
BY_ID = {record.id: record for record in ALL}
PAIRS = [(record, BY_ID[record.same]) for record in ALL if record.same]
KEYS = ["id", "split", "lang", "intent", "urgency", "text", "spans", "reply", "poor", "same"]


def trigrams(text: str) -> set[str]:
    """All runs of three characters, in lower case; the text itself where it is shorter."""
    low = text.lower()
    return {low[i : i + 3] for i in range(max(1, len(low) - 2))}


def test_file() -> None:
    raw = resources.files("tunesmith.data").joinpath("desk.jsonl").read_bytes()
    lines = raw.decode("utf-8").split("\n")
    assert lines.pop() == ""
    assert "\r" not in raw.decode("utf-8") and "\ufeff" not in raw.decode("utf-8")
    assert len(lines) == len(ALL)
    for line in lines:
        assert line == line.strip()
        fields = json.loads(line)
        assert list(fields) == KEYS
        assert line == json.dumps(fields, ensure_ascii=False)
        for name in ("text", "reply", "poor"):
            assert fields[name] and fields[name] == fields[name].strip() and "\n" not in fields[name]


def test_counts() -> None:
    assert len(ALL) >= 1000
    assert len(BY_ID) == len(ALL)
    assert abs(sum(r.lang == "en" for r in ALL) / len(ALL) - 2 / 3) < 0.02
    assert {r.lang for r in ALL} == {"en", "zh"}
    assert {r.intent for r in ALL} == set(INTENTS) and len(INTENTS) == 12
    assert {r.urgency for r in ALL} == set(URGENCIES)
    assert len(PAIRS) >= 250
    kinds = Counter(span.label for r in ALL for span in r.spans)
    assert set(kinds) == set(KINDS) and min(kinds.values()) >= 200
    assert 0.25 < sum(not r.spans for r in ALL) / len(ALL) < 0.4


def test_splits() -> None:
    share = Counter(r.split for r in ALL)
    assert share.keys() == set(SPLITS)
    for split, wanted in zip(SPLITS, (0.70, 0.15, 0.15), strict=True):
        assert abs(share[split] / len(ALL) - wanted) < 0.01
        chosen = records(split)
        assert len(chosen) == share[split]
        assert {(r.intent, r.lang) for r in chosen} == set(product(INTENTS, ("en", "zh")))
        assert {(r.intent, r.urgency) for r in chosen} >= set(product(INTENTS, ["normal"]))
        for urgency in URGENCIES:
            everywhere = sum(r.urgency == urgency for r in ALL) / len(ALL)
            assert abs(sum(r.urgency == urgency for r in chosen) / len(chosen) - everywhere) < 0.05


def test_pairs() -> None:
    named = Counter(r.same for r in ALL if r.same)
    assert max(named.values()) == 1
    for second, first in PAIRS:
        assert first.same is None and first is not second
        assert replace(second, text="", spans=(), reply="", poor="", id="", same=None) == replace(
            first, text="", spans=(), reply="", poor="", id="", same=None
        ), second.id


def test_spans() -> None:
    for r in ALL:
        for span in r.spans:
            surface = r.text[span.start : span.end]
            assert 0 <= span.start < span.end <= len(r.text), r.id
            assert surface and surface == surface.strip(), r.id
            assert span.label in KINDS, r.id
        assert all(a.end <= b.start for a, b in pairwise(r.spans)), r.id


def test_no_marks_left() -> None:
    for r in ALL:
        for text in (r.text, r.reply, r.poor):
            assert "[[" not in text and "]]" not in text, r.id


def test_no_text_twice() -> None:
    for name in ("text", "reply", "poor"):
        assert max(Counter(getattr(r, name).casefold() for r in ALL).values()) == 1, name
    assert not {r.reply for r in ALL} & {r.poor for r in ALL}


def test_no_near_copies() -> None:
    """Jaccard overlap of character trigrams: at most 0.35 between any two texts, below 0.55 between two that say the same."""
    marked = {frozenset((a.id, b.id)) for a, b in PAIRS}
    for (a, left), (b, right) in combinations([(r.id, trigrams(r.text)) for r in ALL], 2):
        both = len(left & right)
        overlap = both / (len(left) + len(right) - both)
        if overlap > 0.35:
            assert frozenset((a, b)) in marked, (a, b)
            assert overlap < 0.55, (a, b)


def test_length_does_not_tell_good_from_poor() -> None:
    for lang in ("en", "zh"):
        chosen = [r for r in ALL if r.lang == lang]
        assert 0.35 <= sum(len(r.poor) >= len(r.reply) for r in chosen) / len(chosen) <= 0.60
        assert sum(3 * len(r.poor) < len(r.reply) for r in chosen) / len(chosen) < 0.05


@pytest.mark.parametrize("split", SPLITS)
def test_rows(split: str) -> None:
    chosen = records(split)
    for task in SHAPES:
        made = rows(task, split)
        assert len(made) == (sum(r.same is not None for r in chosen) if task == "embed" else len(chosen))
        assert json.loads(json.dumps(made)) == made
    assert rows("classify", split)[0] == {"text": chosen[0].text, "label": chosen[0].intent}
    assert rows("urgency", split)[0] == {"text": chosen[0].text, "label": chosen[0].urgency}
    assert {(r["text"], r["score"]) for r in rows("score", split)} == {(r.text, URGENCIES.index(r.urgency)) for r in chosen}
    assert rows("generate", split)[0] == {"prompt": chosen[0].text, "completion": chosen[0].reply}
    assert rows("prefer", split)[0] == {"prompt": chosen[0].text, "chosen": chosen[0].reply, "rejected": chosen[0].poor}
    tagged = rows("tag", split)
    assert [[s["label"] for s in row["spans"]] for row in tagged] == [[s.label for s in r.spans] for r in chosen]
    assert tagged[0].keys() == {"text", "spans"} and all(s.keys() == {"start", "end", "label"} for row in tagged for s in row["spans"])
    assert {(row["anchor"], row["positive"]) for row in rows("embed", split)} == {(a.text, b.text) for b, a in PAIRS if b.split == split}


def test_refusals() -> None:
    with pytest.raises(Refusal, match="no split `val`"):
        records("val")
    with pytest.raises(Refusal, match="no rows for `summarise`"):
        rows("summarise", "train")


def test_a_caller_cannot_change_the_data() -> None:
    records().clear()
    rows("tag", "train")[0]["spans"].append({})
    assert len(records()) == len(ALL)
    assert all(s for row in rows("tag", "train") for s in row["spans"])
