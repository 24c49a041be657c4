"""Lines of words: CoNLL (a token and its tag a line, a blank line between sentences) and plain text."""

from __future__ import annotations

import re

from tunesmith.errors import Refusal
from tunesmith.sources.text.records import Document, Records, counted, quoted, too_big

_TAG = re.compile(r"O|[BIESLUM][-_]\S+")
_TITLES = {"token", "tokens", "word", "words", "text"}
_NUMBERED = re.compile(r".{1,4}[0-9]", re.DOTALL)
_SUFFIXES = (".conll", ".iob", ".iob2", ".bio", ".conll2003")
_END = "<|endoftext|>"


def is_conll(document: Document) -> bool:
    """By name, or because most of the first lines end in a tag such as B-PER or O."""
    if document.suffix in _SUFFIXES:
        return True
    lines = [line for line in document.text[:100_000].split("\n")[:400] if line.strip() and not _skipped(line)]
    tagged = sum(len(cells) > 1 and bool(_TAG.fullmatch(cells[-1])) for cells in map(_cells, lines))
    return len(lines) > 1 and tagged > len(lines) / 2


def _cells(line: str) -> list[str]:
    """The columns of a line: by tab where there is one, so that a token may hold a space."""
    return line.rstrip("\r").split("\t") if "\t" in line else re.split(" +", line.strip(" \r"))


def _skipped(line: str) -> bool:
    return line.startswith("-DOCSTART-") or (line.startswith("# ") and not _TAG.fullmatch(_cells(line)[-1]))


def read_conll(document: Document) -> Records:
    """One row a sentence, {"tokens": [...], "tags": [...]}: the first column and the last one."""
    rows: list[dict[str, list[str]]] = []
    numbers: list[int] = []
    width, open_sentence, skipped = 0, False, 0
    for number, line in enumerate(document.text.split("\n"), 1):
        if not line.strip() or _skipped(line):
            skipped += bool(line.strip())
            open_sentence = False
            continue
        cells = _cells(line)
        if not rows and not open_sentence and cells[0].strip().lower() in _TITLES and not _TAG.fullmatch(cells[-1]):
            continue
        _check(document, number, line, cells, width)
        width = len(cells)
        if not open_sentence:
            rows.append({"tokens": [], "tags": []})
            numbers.append(number)
        open_sentence = True
        rows[-1]["tokens"].append(cells[0])
        rows[-1]["tags"].append(cells[-1].strip())
    notes = [f"{counted(skipped, 'comment line')} left out"] if skipped else []
    return Records(_plain_characters(rows, notes), numbers, document.path, "conll", notes)


def _check(document: Document, number: int, line: str, cells: list[str], width: int) -> None:
    where = f"{document.path}:{number}"
    if len(cells) < 2:
        raise Refusal(f"a token without a tag: {quoted(line)}", where=f"{where}:{len(line) + 1}", fix="write `token<tab>tag`")
    if not cells[0].strip() or not cells[-1].strip():
        raise Refusal(f"an empty token or tag in {quoted(line)}", where=f"{where}:1", fix="mend the line, or delete it")
    if width and len(cells) != width:
        what = f"{counted(len(cells), 'column')} where the lines before have {width}"
        why = f"the line reads {quoted(line)}"
        raise Refusal(what, where=f"{where}:{len(line) + 1}", why=why, fix="write the same columns on each line, the tag last")


def _plain_characters(rows: list[dict[str, list[str]]], notes: list[str]) -> list[dict[str, list[str]]]:
    """Weibo NER writes each character with its place in the word behind it (科0 技1): where all tokens do, the digit is dropped."""
    tokens = [token for row in rows for token in row["tokens"]]
    if all(map(str.isascii, tokens)) or not all(map(_NUMBERED.fullmatch, tokens)):
        return rows
    notes.append("each token is a character and a digit (its place in the word): the digit is dropped")
    return [{"tokens": [token[:-1] for token in row["tokens"]], "tags": row["tags"]} for row in rows]


def read_text(document: Document) -> Records:
    """Plain text: a row a paragraph (split at blank lines, or at lines of <|endoftext|>), or a row a line where there is no blank one."""
    lines = [line.strip() for line in document.text.split("\n")]
    body = "\n".join(lines).strip("\n")
    marker = _END if _END in lines else "" if "\n\n" in body else None
    notes = [{_END: f"a row is the text up to {_END}", "": "a row is a paragraph"}.get(marker or "", "") if marker is not None else "a row is a line"]
    rows, numbers = [], []
    for number, text in _blocks(lines, marker):
        if too_big(text):
            raise Refusal("a paragraph of over 1 MB", where=f"{document.path}:{number}", fix="split it with blank lines")
        rows.append({"text": text})
        numbers.append(number)
    return Records(rows, numbers, document.path, "text", notes)


def _blocks(lines: list[str], marker: str | None) -> list[tuple[int, str]]:
    """(first line, text) of each stretch between lines that equal the marker; of each line where the marker is None."""
    blocks, start = [], 0
    for i, line in enumerate([*lines, marker or ""]):
        ends = marker is None or line == marker
        if not ends:
            continue
        part = lines[start : i + 1] if marker is None else lines[start:i]
        first = next((k for k, text in enumerate(part) if text), None)
        if first is not None:
            blocks.append((start + first + 1, "\n".join(part).strip()))
        start = i + 1
    return blocks
