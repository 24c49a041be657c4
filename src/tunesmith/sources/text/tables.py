"""CSV, TSV and their like, strictly: every cell stays text, every row has the header's width, what was sniffed is said."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from typing import Literal

from tunesmith.errors import Refusal
from tunesmith.sources.text.columns import KNOWN, plain
from tunesmith.sources.text.records import CHECKED, MAX_ROW_BYTES, Document, Records, counted, quoted, too_big

_NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}
_TYPED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "bar": "|", "pipe": "|"}
_HINTS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WORD = re.compile(r"[^\W\d][\w .\-/]{0,29}")
_SAMPLE_ROWS, _SAMPLE_CHARS = 50, 1 << 18
_LABELLED = re.compile(r"([A-Z]+):([a-z]+) (.+)")

Row = tuple[int, list[str]]
Quoting = Literal[0, 3]  # csv.QUOTE_MINIMAL, csv.QUOTE_NONE


def read_table(document: Document, delimiter: str | None, header: bool | None) -> Records:
    """Rows of text, named by the header, or column1, column2, ... where there is none."""
    character = _delimiter(document, delimiter)
    notes = [] if delimiter or _HINTS.get(document.suffix) == character else [f"columns are separated by {_name(character)}"]
    table = _parse(document, character, notes)
    titled = _has_header(table) if header is None else header
    names = _header(document, table[0], character) if titled else [f"column{i + 1}" for i in range(len(table[0][1]))]
    if header is None and not titled:
        notes.append(f"no header: the columns are named {', '.join(names)} (`header: true` if line 1 is one)")
    body = table[1:] if titled else table
    if not body:
        raise Refusal("0 rows: there is only a header", where=document.path, fix="`header: false` if the first line is a row")
    if len(names) == 1:
        _refuse_one_column(document, names[0] if titled else table[0][1][0], character)
    rows = [dict(zip(names, cells)) for _, cells in body]
    return Records(rows, [line for line, _ in body], document.path, "tsv" if character == "\t" else "csv", notes)


def _name(character: str) -> str:
    return _NAMES.get(character, f"`{character}`")


def _delimiter(document: Document, given: str | None) -> str:
    if given is None:
        return sniff(document) or ","
    character = _TYPED.get(given.strip().lower() or given, given)
    if len(character) != 1 or character in '"\r\n\0':
        where = f"{document.key.split('.')[0]}.delimiter"
        raise Refusal(f"{quoted(given)} cannot separate columns", where=where, fix='one character, such as "," ";" "|" or tab')
    return character


def sniff(document: Document) -> str | None:
    """The character between columns, by the widths of the first rows; None where the text is no table.

    A comma in a file that is not named .csv counts only under a header of known names: prose has commas too.
    """
    hint = _HINTS.get(document.suffix)
    order = sorted(_NAMES, key=lambda c: c != hint)
    heads = {c: _head(document.text, c) for c in order}
    for character in order:
        widths = {len(row) for row in heads[character]}
        prose = hint is None and (len(heads[character]) < 2 or character == ",")
        if len(widths) == 1 and widths != {1} and not prose:
            return character
    for character in order:
        first = heads[character][0] if heads[character] else []
        if len(first) > 1 and any(plain(cell) in KNOWN for cell in first):
            return character
    return hint


def _head(text: str, delimiter: str) -> list[list[str]]:
    """The first rows, read leniently; the last is dropped where the sample may have cut it."""
    sample = text[:_SAMPLE_CHARS]
    try:
        rows = [row for row in islice(csv.reader(io.StringIO(sample, newline="\n"), delimiter=delimiter), _SAMPLE_ROWS) if any(map(str.strip, row))]
    except csv.Error:
        return []
    return rows[:-1] if len(sample) < len(text) and len(rows) < _SAMPLE_ROWS else rows


def _parse(document: Document, delimiter: str, notes: list[str]) -> list[Row]:
    """All rows, of one width. In a TSV a quote may be an ordinary character: that is tried where quoting leads nowhere."""
    try:
        return _checked(document, delimiter, csv.QUOTE_MINIMAL)
    except Refusal:
        if delimiter != "\t":
            raise
        try:
            table = _checked(document, delimiter, csv.QUOTE_NONE)
        except Refusal:
            table = []
        if not table:
            raise
    notes.append('" is read as an ordinary character, since the file does not pair it')
    return table


def _checked(document: Document, delimiter: str, quoting: Quoting) -> list[Row]:
    table: list[Row] = []
    rows = _rows(document, delimiter, quoting)
    for line, cells in rows:
        if len(cells) == 1 and not cells[0].strip() and not (table and len(table[0][1]) == 1):
            continue
        if table and len(cells) != len(table[0][1]):
            raise _ragged(document, delimiter, (line, cells), len(table[0][1]), rows)
        if too_big("".join(cells)):
            raise _huge(document, line)
        table.append((line, cells))
    if not table:
        raise Refusal("0 rows: every line is blank", where=document.path, fix="write rows into it, or name another file")
    return table


def _rows(document: Document, delimiter: str, quoting: Quoting) -> Iterator[Row]:
    """(line, cells) of each row that is not blank."""
    reader = csv.reader(io.StringIO(document.text, newline="\n"), delimiter=delimiter, strict=True, quoting=quoting)
    line, limit = 1, csv.field_size_limit(MAX_ROW_BYTES)
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as fault:
        raise _explained(document, delimiter, line, str(fault)) from None
    finally:
        csv.field_size_limit(limit)


def _start(text: str, line: int) -> int:
    """The offset at which a line begins."""
    offset = 0
    for _ in range(line - 1):
        offset = text.find("\n", offset) + 1
    return offset


def _huge(document: Document, line: int) -> Refusal:
    why = "such a row is mostly a quote that is not closed, or a file that lost its line breaks"
    return Refusal("a row of over 1 MB", where=f"{document.path}:{line}", why=why, fix="split it")


def _explained(document: Document, delimiter: str, line: int, fault: str) -> Refusal:
    if "field limit" in fault:
        return _huge(document, line)
    start = _start(document.text, line)
    if "new-line" in fault:
        return document.refuse(document.text.find("\r", start), "a carriage return inside a cell", fix="put the cell between double quotes")
    for offset, closed in _cells(document.text, start, delimiter):
        if closed is None or closed < 0:
            break
    else:
        return document.refuse(start, fault, fix="mend the row, or delete it")
    if closed is None:
        return document.refuse(offset, "a quote that opens here is not closed", fix='close it, and write "" for a quote inside a quoted cell')
    fix = f'write "" for a quote inside a quoted cell, or {_name(delimiter)} after the closing one'
    return document.refuse(-closed, "text after a closing quote", fix=fix)


def _cells(text: str, at: int, delimiter: str) -> Iterator[tuple[int, int | None]]:
    """(start, end) of each cell from an offset to the end of its row.

    end is None for a quote that is not closed, and negative, -end, where text follows the closing quote.
    """
    closing = re.compile(r'"[^"]*(?:""[^"]*)*"')
    ending = re.compile(f"[{re.escape(delimiter)}\r\n]|$")
    while True:
        quote = closing.match(text, at) if text.startswith('"', at) else None
        end = quote.end() if quote else at
        stop = ending.search(text, end)
        stop_at = stop.start() if stop else len(text)
        if text.startswith('"', at) and (quote is None or (stop_at > end and "\n" in quote.group())):
            yield at, None
        else:
            yield at, (-end if quote and stop_at > end else stop_at)
        if text[stop_at : stop_at + 1] != delimiter:
            return
        at = stop_at + 1


def _ragged(document: Document, delimiter: str, row: Row, width: int, ahead: Iterator[Row]) -> Refusal:
    line, cells = row
    start = _start(document.text, line)
    places = [at for at, _ in _cells(document.text, start, delimiter)]
    end = document.text.find("\n", start)
    offset = places[width] if width < len(places) else (len(document.text) if end < 0 else end)
    rest = [len(c) != width for _, c in _tolerant(ahead)]
    shown = quoted(document.text[start : start + 61].split("\n")[0])
    why = f"the row reads {shown}; {1 + sum(rest):,} such of {counted(1 + len(rest), 'row')} checked from here on"
    fix = f"put a text that contains {_name(delimiter)} between double quotes, or set `delimiter:`"
    return document.refuse(offset, f"{counted(len(cells), 'column')} where the first row has {width}", why=why, fix=fix)


def _tolerant(rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from islice(rows, CHECKED - 1)
    except Refusal:
        return


def _has_header(table: list[Row]) -> bool:
    """Known names make a header; so do short words that are no value of their column."""
    first = [cell.strip() for cell in table[0][1]]
    if any(plain(cell) in KNOWN for cell in first):
        return True
    if len(set(first)) < len(first) or any(_NUMBER.fullmatch(cell) for cell in first):
        return False
    titles = all(_WORD.fullmatch(cell) or (not cell and i == 0) for i, cell in enumerate(first)) and any(first)
    return titles and not any(cell.strip() == first[i] for _, cells in table[1:CHECKED] for i, cell in enumerate(cells))


def _header(document: Document, row: Row, delimiter: str) -> list[str]:
    """The names in a header row; an empty one, such as a data frame's index has, becomes column<i>."""
    names = [cell.strip() or f"column{i}" for i, cell in enumerate(row[1], 1)]
    twice = next((i for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        offset = [at for at, _ in _cells(document.text, _start(document.text, row[0]), delimiter)][twice]
        raise document.refuse(offset, f"the column {quoted(names[twice])} stands twice in the header", fix="rename one, or `header: false`")
    return names


def _refuse_one_column(document: Document, name: str, delimiter: str) -> None:
    other = next((c for c in _NAMES if c in name and c != delimiter and plain(name) not in KNOWN), None)
    if other and (len(name) < 60 or other != ","):
        setting = document.setting(f'delimiter: "{"tab" if other == chr(9) else other}"')
        what = f"one column, named {quoted(name)}: the columns seem to be separated by {_name(other)}, not {_name(delimiter)}"
        raise document.refuse(document.text.find(other), what, fix=setting)


def is_labelled(document: Document) -> bool:
    """Whether nearly each line is `COARSE:fine text`, as in the TREC questions."""
    lines = [line for line in document.text[:20_000].split("\n")[:-1] if line.strip()][:100]
    return sum(bool(_LABELLED.fullmatch(line.rstrip("\r"))) for line in lines) > 0.9 * len(lines) > 0


def read_labelled(document: Document) -> Records:
    """column1: the coarse label, column2: the fine one, column3: the text."""
    rows, numbers = [], []
    for number, line in enumerate(document.text.split("\n"), 1):
        match = _LABELLED.fullmatch(line.rstrip("\r"))
        if match:
            rows.append({f"column{i}": part for i, part in enumerate(match.groups(), 1)})
            numbers.append(number)
        elif line.strip():
            what = f"{quoted(line)} is not `COARSE:fine text` as nearly all lines are"
            raise Refusal(what, where=f"{document.path}:{number}:1", fix="mend the line, or delete it")
    note = "each line is `COARSE:fine text`: column1 is the coarse label, column2 the fine one, column3 the text"
    return Records(rows, numbers, document.path, "text", [note])
