"""The message desk: customer messages in English and Chinese, written for this project, and the rows that each task reads from them.

The fields, the counts and the limits stand in `README.md` beside this file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from tunesmith.errors import Refusal

INTENTS = (
    "order_status",
    "delivery_change",
    "cancel",
    "return",
    "refund",
    "invoice",
    "defect",
    "warranty",
    "howto",
    "parts",
    "advice",
    "complaint",
)
URGENCIES = ("low", "normal", "high")  # in order, so that the place is the score
KINDS = ("product", "order", "date", "amount")
SPLITS = ("train", "dev", "test")

Row = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """An entity: `text[start:end]`, counted in characters (code points), and its kind."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Record:
    """One message with everything that was written for it.

    spans  entities in order of `start`, none overlapping; empty in about a third of the records
    reply  a good answer
    poor   a bad one, about as long
    same   the id of the message that this one says again in other words, or None
    """

    id: str
    split: str
    lang: str
    intent: str
    urgency: str
    text: str
    spans: tuple[Span, ...]
    reply: str
    poor: str
    same: str | None


@functools.cache
def _all() -> tuple[Record, ...]:
    lines = resources.files(__package__ or __name__).joinpath("desk.jsonl").read_text(encoding="utf-8").split("\n")
    # Not splitlines(): a message may hold a separator that ends no line of JSON.
    loaded = (json.loads(line) for line in lines if line)
    return tuple(Record(**{**fields, "spans": tuple(Span(**span) for span in fields["spans"])}) for fields in loaded)


def records(split: str | None = None) -> list[Record]:
    """The records of one split (train, dev or test), or all of them, in the order of the file."""
    if split is not None and split not in SPLITS:
        raise Refusal(f"the desk data has no split `{split}`", why=f"there are {', '.join(SPLITS)}")
    return [record for record in _all() if split in (None, record.split)]


def _pairs(chosen: Sequence[Record]) -> list[Row]:
    """Only what was written twice; both halves of a pair are always in one split."""
    by_id = {record.id: record for record in chosen}
    return [{"anchor": by_id[record.same].text, "positive": record.text} for record in chosen if record.same]


# task -> its rows, made from the records of a split.
SHAPES: dict[str, Callable[[Sequence[Record]], list[Row]]] = {
    "classify": lambda chosen: [{"text": r.text, "label": r.intent} for r in chosen],
    "urgency": lambda chosen: [{"text": r.text, "label": r.urgency} for r in chosen],
    "score": lambda chosen: [{"text": r.text, "score": URGENCIES.index(r.urgency)} for r in chosen],
    "tag": lambda chosen: [{"text": r.text, "spans": [asdict(span) for span in r.spans]} for r in chosen],
    "generate": lambda chosen: [{"prompt": r.text, "completion": r.reply} for r in chosen],
    "prefer": lambda chosen: [{"prompt": r.text, "chosen": r.reply, "rejected": r.poor} for r in chosen],
    "embed": _pairs,
}


def rows(task: str, split: str) -> list[Row]:
    """The rows of a task, in the shape that its reader knows by its column names.

    classify  {text, label: an intent}
    urgency   {text, label: low, normal or high}
    score     {text, score: 0, 1 or 2 for low, normal or high}
    tag       {text, spans: [{start, end, label}]}
    generate  {prompt, completion}
    prefer    {prompt, chosen, rejected}
    embed     {anchor, positive}, one row a pair, so fewer rows than records
    """
    if task not in SHAPES:
        raise Refusal(f"the desk data has no rows for `{task}`", why=f"there are rows for {', '.join(SHAPES)}")
    return SHAPES[task](records(split))
