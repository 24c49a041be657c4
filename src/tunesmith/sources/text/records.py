"""What a reader hands on (`Records`), and the text that it reads it from (`Document`), which knows where each character stands."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import Refusal

MAX_ROW_BYTES = 1_000_000
MAX_DEPTH = 100
CHECKED = 1000  # rows looked at, after the first bad one, to say how many are bad

_BY_NUMBER = {"json", "parquet", "hub"}


@dataclass(frozen=True)
class Records:
    """Rows as they were written, none changed and none left out.

    rows   one dict a row, column -> value; values of a CSV or TSV are always text
    lines  where each row starts: a 1-based line, or the 1-based record number for JSON arrays, Parquet and hub data
    path   as the user gave it
    kind   jsonl, json, csv, tsv, parquet, conll, text or hub
    notes  what was guessed, one sentence each
    """

    rows: list[dict[str, Any]] = field(repr=False)
    lines: list[int] = field(repr=False)
    path: str
    kind: str
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, i: int) -> str:
        """The place of row i (0-based): `train.jsonl:3`, or `train.json record 3` where lines mean nothing."""
        return f"{self.path} record {self.lines[i]}" if self.kind in _BY_NUMBER else f"{self.path}:{self.lines[i]}"

    @property
    def columns(self) -> list[str]:
        """Every column that some row has, in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


@dataclass(frozen=True)
class Document:
    """A decoded file. `suffix` is the lower-case extension without `.gz`; `key` is the recipe key that named the file."""

    path: str
    text: str
    suffix: str
    key: str

    def at(self, offset: int) -> str:
        """`file:line:column` of a character, both counted from 1."""
        offset = min(offset, len(self.text))
        return f"{self.path}:{self.text.count(chr(10), 0, offset) + 1}:{offset - self.text.rfind(chr(10), 0, offset)}"

    def refuse(self, offset: int, what: str, *, why: str = "", fix: str = "") -> Refusal:
        return Refusal(what, where=self.at(offset), why=why, fix=fix)

    def setting(self, line: str) -> str:
        """How to write a reader's option in the recipe."""
        return f"set `{line}` under `{self.key.split('.')[0]}:` in the recipe"


def quoted(text: object, limit: int = 60) -> str:
    """A value of the user's on one line: escaped, so that nothing in it can move the cursor, and cut."""
    shown = text if isinstance(text, str) else repr(text)
    shown = shown if len(shown) <= limit else shown[:limit] + "…"
    safe = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in shown)
    return f"`{safe}`"


def counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def too_big(text: str) -> bool:
    """Whether a row takes more than MAX_ROW_BYTES in UTF-8; short rows, nearly all, are settled without encoding them."""
    return len(text) * 4 > MAX_ROW_BYTES and len(text.encode("utf-8", "surrogatepass")) > MAX_ROW_BYTES


def depth(value: Any) -> int:
    """How many lists and objects are inside one another."""
    level, here = 0, [value]
    while here := [v for v in here if isinstance(v, (list, dict))]:
        level += 1
        here = [inner for v in here for inner in (v.values() if isinstance(v, dict) else v)]
    return level
