"""Words and their tags: BIO and its relatives, and spans of characters turned into tagged words."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from typing import Any

from tunesmith.sources.text.cells import BadRow, kind, present, text
from tunesmith.sources.text.examples import Tagged
from tunesmith.sources.text.records import counted, quoted

Span = tuple[int, int, str]

_TAG = re.compile(r"([BIESLUM])[-_](.+)", re.DOTALL)
_TO_BIO = {"B": "B", "I": "I", "M": "I", "E": "I", "L": "I", "S": "B", "U": "B"}
_STARTS = ("start", "begin", "start_offset", "start_idx", "start_char", "from")
_ENDS = ("end", "end_offset", "end_idx", "end_char", "to")
_TYPES = ("label", "type", "entity_type", "entity_group", "tag", "category")
_SURFACES = ("text", "surface", "entity", "word", "value")
_CJK = "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_END = re.compile(f"[{_CJK}\u3000-\u303f\uff00-\uffef]")


@cache
def _words() -> re.Pattern[str]:
    """A CJK character, a run of letters, digits and the marks on them, or any other single character."""
    marks = "".join(chr(c) for c in range(0x300, 0xFFFF) if unicodedata.category(chr(c)) in ("Mn", "Mc"))
    return re.compile(rf"[{_CJK}]|(?:[^\W{_CJK}]|[{re.escape(marks)}])+|\S")


def cut(whole: str, borders: Iterable[int] = ()) -> list[tuple[int, int]]:
    """(start, end) of each word of a text. Each CJK character is a word, and no word crosses a border."""
    edges = sorted({0, len(whole), *borders})
    return [m.span() for a, b in pairwise(edges) for m in _words().finditer(whole, a, b)]


def from_spans(whole: str, spans: list[Span], row: int) -> Tagged:
    """Words with BIO tags from spans [start, end) of characters. Refuses spans out of range, empty or overlapping."""
    spans = sorted(set(spans))
    for start, end, label in spans:
        shown = f"{start}..{end} of {len(whole)} characters ({quoted(label, 20)})"
        if not 0 <= start < end <= len(whole):
            raise BadRow("a span is empty or outside of the text", shown)
        if not whole[start:end].strip():
            raise BadRow("a span covers only blanks", shown)
    for a, b in pairwise(spans):
        if b[0] < a[1]:
            how = "cross" if b[1] > a[1] and b[0] > a[0] else "overlap"
            raise BadRow(f"two spans {how}", f"{a[0]}..{a[1]} and {b[0]}..{b[1]}", "BIO tags hold one layer: keep one of the two")
    places = cut(whole, [edge for start, end, _ in spans for edge in (start, end)])
    follows = [b[0] > a[1] for a, b in pairwise([*places, *places[-1:]])]
    return Tagged(tuple(whole[a:b] for a, b in places), _spread(places, spans), tuple(follows), row)


def _spread(places: list[tuple[int, int]], spans: list[Span]) -> tuple[str, ...]:
    tags, open_span, ahead = [], None, iter([*spans, (1 << 60, 1 << 60, "")])
    span = next(ahead)
    for start, _ in places:
        while start >= span[1]:
            span = next(ahead)
        inside = start >= span[0]
        tags.append(f"{'I' if span is open_span else 'B'}-{span[2]}" if inside else "O")
        open_span = span if inside else None
    return tuple(tags)


def spans_of(row: dict[str, Any], column: str, whole: str) -> list[Span]:
    """The spans in a cell: a list of objects or triples, or types that hold surfaces that hold places (CLUENER)."""
    value = present(row, column)
    if isinstance(value, dict):
        return list(_nested(value, whole))
    if not isinstance(value, list):
        raise BadRow(f"{quoted(column)} is {kind(value)}, not a list of spans", quoted(value))
    return [_span(item, whole) for item in value]


def _nested(value: dict[str, Any], whole: str) -> Iterable[Span]:
    for label, surfaces in value.items():
        for surface, places in surfaces.items() if isinstance(surfaces, dict) else [(None, None)]:
            if not isinstance(places, list) or not all(isinstance(p, list) and len(p) == 2 for p in places):
                raise BadRow("expected {type: {surface: [[start, end]]}}", quoted(value))
            yield from (_fitted(start, end, label, surface, whole) for start, end in places)


def _span(item: Any, whole: str) -> Span:
    if isinstance(item, (list, tuple)) and len(item) == 3:
        return _fitted(item[0], item[1], item[2], None, whole)
    if not isinstance(item, dict):
        raise BadRow("a span is neither an object with start, end and label nor a triple", quoted(item))
    flat = {**item, **next((v for v in item.values() if isinstance(v, dict)), {})}
    start, end, label = (next((flat[k] for k in keys if k in flat), None) for keys in (_STARTS, _ENDS, _TYPES))
    if start is None or end is None or label is None:
        raise BadRow("a span lacks start, end or label", quoted(item))
    return _fitted(start, end, label, next((flat[k] for k in _SURFACES if isinstance(flat.get(k), str)), None), whole)


def _fitted(start: Any, end: Any, label: Any, surface: str | None, whole: str) -> Span:
    """A span with its end made exclusive: the surface, where it is written too, decides."""
    if type(start) is not int or type(end) is not int:
        raise BadRow("a span's start or end is not a whole number", f"{start!r}, {end!r}")
    if not isinstance(label, str) or not label.strip():
        raise BadRow("a span's label is not text", quoted(label))
    if surface is None or whole[start:end] == surface:
        return start, end, label
    if whole[start : end + 1] == surface:
        return start, end + 1, label
    raise BadRow("a span's text is not what stands at its place", f"{quoted(surface, 20)} against {quoted(whole[start:end], 20)}")


def listed(row: dict[str, Any], column: str) -> list[Any]:
    """A cell that is a list; or text that is one, written in JSON, in Python or with blanks between."""
    value = present(row, column)
    if isinstance(value, list):
        return value
    written = text(row, column).strip()
    if not written.startswith("["):
        return written.split()
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(written)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(parsed, list):
            return parsed
    raise BadRow(f"{quoted(column)} is not a list that can be read", quoted(written))


def scheme(tags: set[str]) -> str:
    """Which scheme some data's tags are in: BIO, BIOES (and BILOU, BMES), or plain (one tag a word, no spans)."""
    letters = {m.group(1) for m in map(_TAG.fullmatch, tags) if m}
    return "plain" if not letters else "BIOES" if letters - {"B", "I"} else "BIO"


def from_words(tokens: list[Any], tags: list[Any], style: str, mend: Callable[[], None] | None, row: int) -> Tagged:
    """Checked words and tags. `mend`: called once for each I- without a B- that is repaired; None: such a row is refused."""
    if len(tokens) != len(tags):
        raise BadRow("tokens and tags differ in number", f"{counted(len(tokens), 'token')}, {counted(len(tags), 'tag')}")
    if not tokens:
        raise BadRow("there are no tokens")
    for token in tokens:
        if not isinstance(token, str) or not token.strip():
            raise BadRow("a token is not text, or is empty", quoted(token))
    if any(not isinstance(tag, str) or not tag.strip() for tag in tags):
        raise BadRow("a tag is not text", quoted(tags), "write the names of the tags, such as B-PER, not their numbers")
    checked = tags if style == "plain" else _to_bio(tags, mend)
    joins = [not (_CJK_END.match(a[-1]) or _CJK_END.match(b[0])) for a, b in pairwise(tokens)]
    return Tagged(tuple(tokens), tuple(checked), (*joins, False), row)


def _to_bio(tags: list[str], mend: Callable[[], None] | None) -> list[str]:
    made: list[str] = []
    for place, tag in enumerate(tags, 1):
        match = _TAG.fullmatch(tag)
        if not match and tag != "O":
            raise BadRow("a tag is neither O nor a letter of BIO with a type, such as B-PER", f"{quoted(tag, 20)} at word {place}")
        letter, label = (_TO_BIO[match.group(1)], match.group(2)) if match else ("O", "")
        if letter == "I" and (not made or made[-1][2:] != label):
            letter = _mended(mend, tag, place)
        made.append(f"{letter}-{label}" if match else "O")
    return made


def _mended(mend: Callable[[], None] | None, tag: str, place: int) -> str:
    if mend is None:
        raise BadRow("an I- tag follows no B- of its type", f"{quoted(tag, 20)} at word {place}", "`repair: true` reads it as B-")
    mend()
    return "B"
