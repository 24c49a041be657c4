"""Strict JSON and JSON lines: what the standard parser lets pass (doubled keys, NaN, lone surrogates) is refused with its place."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import Refusal
from tunesmith.sources.text.records import CHECKED, MAX_DEPTH, Document, Records, counted, depth, quoted, too_big

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]|-?(?:NaN|Infinity)|-?\d[\d.eE+-]*', re.DOTALL)
_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_LONE = re.compile("[\ud800-\udfff]")
_BLANK = re.compile(r"[ \t\r\n]*")
_COLON = re.compile(r"\s*:")
_NESTED = f"lists and objects are nested over {MAX_DEPTH} levels deep"
_PYTHON = "this looks like Python or JSON5: JSON has double quotes, true, false and null, no comments and no comma before a closing bracket"


@dataclass(eq=False)
class Flaw(ValueError):
    """What is wrong with a JSON text, and at which character of it."""

    offset: int
    what: str
    fix: str = ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key twice")
    return made


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("not finite")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)


def take(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that starts at a character, and where it ends. Raises Flaw."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        raise _diagnose(text, start) from None
    part = text[start:end]
    if part.count("[") + part.count("{") > MAX_DEPTH and depth(value) > MAX_DEPTH:
        raise Flaw(start, _NESTED)
    if "\\u" in part and _SUSPECT.search(part) and (flaw := _semantic(text, start, end)):
        raise flaw
    return value, end


def _diagnose(text: str, start: int) -> Flaw:
    """The first of: a fault of syntax, a fault that the plain parser lets pass."""
    syntax: Flaw | None = None
    try:
        json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as fault:
        syntax = _explained(text, fault)
    except RecursionError:
        return Flaw(start, _NESTED)
    except ValueError:  # Python's own limit on the digits of one number
        return Flaw(start, "a number of thousands of digits")
    meaning = _semantic(text, start, syntax.offset if syntax else len(text))
    return meaning or syntax or Flaw(start, "not JSON")


def _semantic(text: str, start: int, end: int) -> Flaw | None:
    """The first doubled key, number that is not finite, NUL or lone surrogate between two characters."""
    stack: list[set[str]] = []
    for match in _TOKEN.finditer(text, start, end):
        token = match.group()
        if token in "{[":
            stack.append(set())
        elif token in "}]":
            del stack[-1:]
        else:
            keys = stack[-1] if stack and _COLON.match(text, match.end()) else None
            if flaw := _token_flaw(token, match.start(), keys):
                return flaw
    return None


def _token_flaw(token: str, offset: int, keys: set[str] | None) -> Flaw | None:
    """`keys`: the keys so far of the object in which this token is a key; None for a token that is none."""
    if token[0] != '"':
        infinite = token[-1] in "Ny" or math.isinf(float(token) if re.fullmatch(r"-?\d+\.?\d*([eE][+-]?\d+)?", token) else 0)
        return Flaw(offset, f"{quoted(token, 20)} is not a finite number", "write a number, or null where there is none") if infinite else None
    try:
        word = json.loads(token, strict=False)
    except ValueError:
        return None
    if "\0" in word or _LONE.search(word):
        spot = _SUSPECT.search(token)
        name = "a NUL character" if "\0" in word else "half of a surrogate pair, which is no character,"
        return Flaw(offset + (spot.start() if spot else 0), f"{name} in a string", "write the character itself")
    if keys is not None and word in keys:
        return Flaw(offset, f"the key {quoted(word)} stands twice in one object", "keep one of them")
    if keys is not None:
        keys.add(word)
    return None


def _explained(text: str, fault: json.JSONDecodeError) -> Flaw:
    """The parser's fault in words, with a hint for the writers of Python and JSON5."""
    at, rest = fault.pos, text[fault.pos : fault.pos + 9]
    before = text[max(0, at - 25) : at].rstrip()
    if before.endswith(",") and rest[:1] in ("}", "]"):
        return Flaw(text.rfind(",", 0, at), "a comma before a closing bracket", _PYTHON)
    if fault.msg.startswith("Illegal trailing comma"):
        return Flaw(at, "a comma before a closing bracket", _PYTHON)
    foreign = rest[:1] in ("'", "/", "#") or re.match(r"True|False|None|undefined|[A-Za-z_$][\w$]*\s*:", text[at : at + 80])
    if foreign:
        return Flaw(at, f"{quoted(rest[:8])} is not JSON", _PYTHON)
    return Flaw(at, *_plain_words(fault.msg, before[-20:], not rest.strip()))


def _plain_words(message: str, before: str, ended: bool) -> tuple[str, str]:
    near = before.split("\n")[-1]
    after = f" after {quoted(near)}" if near else ""
    if message.startswith("Unterminated"):
        return "a string that starts here is not closed", 'close it with "; a line break inside a string is written \\n'
    if message.startswith("Invalid control"):
        return "a raw tab or line break inside a string", "write \\t or \\n"
    if message.startswith("Invalid \\"):
        return "a backslash that starts no escape", "write \\\\ for a backslash"
    wanted = {
        "Expecting value": "a value",
        "Expecting property": 'a key in "double quotes"',
        "Expecting ',": "a comma or a closing bracket",
    }
    name = next((w for start, w in wanted.items() if message.startswith(start)), "a colon")
    return f"expected {name}{after}" + (", but the text ends here" if ended else ""), ""


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _object(value: Any, start: int, size: int, text: str) -> dict[str, Any]:
    """A row: an object, and not a huge one."""
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number")
        raise Flaw(start, f"expected one object per row, found {kind}", 'write {"column": value, ...}')
    if too_big(text[start : start + size]):
        raise Flaw(start, f"a row of {size:,} characters; the limit is 1 MB", "split it: such a row is mostly a file that lost its line breaks")
    return value


def _row(line: str) -> dict[str, Any]:
    start = _skip(line, 0)
    value, end = take(line, start)
    if (rest := _skip(line, end)) < len(line):
        raise Flaw(rest, f"{quoted(line[rest:], 20)} after the end of the row", "write one row a line")
    return _object(value, start, end - start, line)


def read_lines(document: Document) -> Records:
    """JSON lines: one object a line, blank lines skipped."""
    rows, numbers = [], []
    lines = document.text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(line))
        except Flaw as flaw:
            raise _bad_line(document, lines, number, flaw) from None
        numbers.append(number)
    return Records(rows, numbers, document.path, "jsonl")


def _bad_line(document: Document, lines: list[str], number: int, flaw: Flaw) -> Refusal:
    ahead = [line for line in lines[number - 1 : number - 1 + CHECKED] if line.strip()]
    bad = sum(map(_is_bad, ahead))
    why = f"the line reads {quoted(lines[number - 1].strip())}; {bad:,} bad of {counted(len(ahead), 'line')} checked from here on"
    where = f"{document.path}:{number}:{flaw.offset + 1}"
    return Refusal(flaw.what, where=where, why=why, fix=flaw.fix or "mend the line, or delete it")


def _is_bad(line: str) -> bool:
    try:
        _row(line)
    except Flaw:
        return True
    return False


def read_whole(document: Document, split: str, header: bool | None) -> Records:
    """A JSON file that is one value: an array of objects, an object that holds one, or parallel columns."""
    try:
        start = _skip(document.text, 0)
        if document.text[start] == "[" and header is not False:
            rows, notes = _array(document.text, start), []
        else:
            value, end = take(document.text, start)
            _end(document.text, end)
            rows, notes = _choose(value, split, header, document)
    except Flaw as flaw:
        raise document.refuse(flaw.offset, flaw.what, fix=flaw.fix or "mend the file at this place") from None
    return Records(rows, list(range(1, len(rows) + 1)), document.path, "json", notes)


def _end(text: str, at: int) -> None:
    if (rest := _skip(text, at)) < len(text):
        fix = "write one array, or JSON lines with one object a line"
        raise Flaw(rest, f"{quoted(text[rest:], 20)} after the end of the JSON value", fix)


def _array(text: str, start: int) -> list[dict[str, Any]]:
    """The objects of an array, each read on its own so that a fault has its place and a row its size."""
    rows, at = [], _skip(text, start + 1)
    while text[at : at + 1] != "]":
        value, end = take(text, at)
        rows.append(_object(value, at, end - at, text))
        comma = _skip(text, end)
        at = _skip(text, comma + 1)
        if text[comma : comma + 1] == "]":
            at = comma
        elif text[comma : comma + 1] != ",":
            raise Flaw(comma, f"expected a comma or ] after record {len(rows)}" + ("" if text[comma:] else ", but the text ends here"))
        elif text[at : at + 1] == "]":
            raise Flaw(comma, "a comma before a closing bracket", _PYTHON)
    _end(text, at + 1)
    return rows


def _choose(value: Any, split: str, header: bool | None, document: Document) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows inside one top-level value."""
    if isinstance(value, list):
        return _named(value, header, ""), []
    if not isinstance(value, dict):
        raise Flaw(0, f"expected an array of objects, found {quoted(value, 20)}")
    arrays = {k: v for k, v in value.items() if isinstance(v, list) and v and isinstance(v[0], (dict, list))}
    objects = any(isinstance(v[0], dict) for v in arrays.values())
    lengths = {len(v) if isinstance(v, list) else -1 for v in value.values()}
    if len(lengths) == 1 and not lengths & {-1, 0} and split not in arrays and not objects and not (arrays and len(value) == 1):
        return [dict(zip(value, cells)) for cells in zip(*value.values())], ["the file holds parallel columns"]
    if split not in arrays and len(arrays) != 1:
        found = ", ".join(quoted(k, 30) for k in list(value)[:6])
        fix = "write an array of objects or JSON lines" + (f", or set `split:` to one of {found}" if arrays else "")
        raise document.refuse(0, "one object, expected one object per row", why=f"its keys are {found}", fix=fix)
    name = split if split in arrays else next(iter(arrays))
    return _named(arrays[name], header, name), [f"the rows are those under {quoted(name, 30)}"]


def _named(array: list[Any], header: bool | None, name: str) -> list[dict[str, Any]]:
    """Objects as they are; lists become column1, column2, ... where `header` is False."""
    rows = []
    for number, value in enumerate(array, 1):
        if header is False and isinstance(value, list):
            value = {f"column{i}": cell for i, cell in enumerate(value, 1)}
        if not isinstance(value, dict):
            place = f"record {number}" + (f" of {quoted(name, 30)}" if name else "")
            fix = "`header: false` names the items of each list column1, column2, ..." if isinstance(value, list) else ""
            raise Flaw(0, f"expected one object per row, found {quoted(value, 30)} as {place}", fix)
        if too_big(json.dumps(value, ensure_ascii=False)):
            raise Flaw(0, f"record {number} takes over 1 MB")
        rows.append(value)
    return rows


def layout(document: Document) -> str:
    """Whether a JSON text is one value ("json") or a value a line ("jsonl")."""
    lines = [line.strip() for line in document.text.lstrip().split("\n", 50)[:50] if line.strip()]
    first, second = lines[0], lines[1] if len(lines) > 1 else ""
    named = document.suffix in (".jsonl", ".ndjson")
    if first.startswith("["):
        return "jsonl" if second.startswith("[") and first.endswith("]") else "json"
    try:
        whole = json.loads(first)
    except (ValueError, RecursionError):
        return "jsonl" if named or (second.startswith("{") and first != "{") else "json"
    columns = isinstance(whole, dict) and any(isinstance(v, list) for v in whole.values())
    return "json" if columns and not second and not named else "jsonl"
