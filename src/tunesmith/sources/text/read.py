"""Strict reading: a file's rows exactly as they were written, or one refusal that names the place and the remedy."""

from __future__ import annotations

import difflib
from pathlib import Path

from tunesmith.errors import Refusal
from tunesmith.sources.text import arrow, conll, json_text, tables
from tunesmith.sources.text.decoding import decode, load
from tunesmith.sources.text.records import Document, Records, quoted

__all__ = ["Records", "read"]

_JSON = (".json", ".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv", ".tab")
_READABLE = (*_JSON, *_TABLES, ".parquet", ".txt", ".conll", ".iob", ".bio", ".gz")


def read(
    path: str | Path,
    *,
    encoding: str | None = None,
    delimiter: str | None = None,
    header: bool | None = None,
    split: str = "train",
    where_key: str = "data.train",
) -> Records:
    """The rows of a file, or of a data set on the Hub where no such file exists.

    path       JSON lines, JSON, CSV, TSV, Parquet, CoNLL or plain text, each also as .gz; or a Hub name, `name` or `name:config`
    encoding   of a text; without it the text must be UTF-8
    delimiter  the one character between the columns of a table; None: sniffed, and noted
    header     whether a table's first row names its columns; None: guessed, and noted
    split      which split of a Hub data set, or which array of a JSON object that holds several
    where_key  the recipe key that named the file, for messages

    Raises Refusal, and nothing else, on anything that is not exactly readable.
    """
    shown, file = str(path), Path(path).expanduser()
    if not _exists(file, shown, where_key):
        if isinstance(path, str) and not _looks_like_path(shown):
            return arrow.read_hub(shown, split, where_key, _near(file))
        raise _missing(file, shown, where_key)
    if file.is_dir():
        raise _folder(file, shown, where_key)
    data = load(file, shown, where_key)
    suffix = Path(file.stem if file.suffix.lower() == ".gz" else file.name).suffix.lower()
    if data.startswith(b"PAR1") or suffix == ".parquet":
        return arrow.read_parquet(data, shown)
    records = _parse(decode(data, shown, suffix, where_key, encoding), delimiter, header, split)
    if not records.rows:
        raise Refusal("0 rows", where=shown, fix="write rows into it, or name another file")
    return records


def _parse(document: Document, delimiter: str | None, header: bool | None, split: str) -> Records:
    kind = _kind(document, delimiter)
    if kind == "json":
        return json_text.read_whole(document, split, header)
    if kind == "jsonl":
        return json_text.read_lines(document)
    if kind == "table":
        return tables.read_table(document, delimiter, header)
    return {"conll": conll.read_conll, "labelled": tables.read_labelled, "text": conll.read_text}[kind](document)


def _kind(document: Document, delimiter: str | None) -> str:
    """json, jsonl, conll, labelled, table or text: the content decides, the extension is a hint."""
    if document.suffix in _JSON or _is_json(document.text):
        return json_text.layout(document)
    if delimiter:
        return "table"
    if document.suffix != ".csv" and conll.is_conll(document):
        return "conll"
    if document.suffix in _TABLES:
        return "table"
    if tables.is_labelled(document):
        return "labelled"
    return "table" if tables.sniff(document) else "text"


def _is_json(text: str) -> bool:
    """A brace and a quoted key, or a bracket and a brace: prose and tables do not start so."""
    start = "".join(text[:200].split())
    return start.startswith(('{"', "[{"))


def _exists(file: Path, shown: str, key: str) -> bool:
    if "://" in shown:
        raise Refusal(f"{quoted(shown)} is a web address", where=key, fix="download the file and give its path")
    try:
        return bool(shown.strip()) and file.exists()
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)[:80]
        raise Refusal(f"{quoted(shown)} cannot be opened", where=key, why=reason, fix="check the path") from fault


def _looks_like_path(name: str) -> bool:
    known = Path(name.lower()).suffix in _READABLE
    return known or name.startswith((".", "/", "~")) or not arrow.is_hub_name(name)


def _near(file: Path) -> list[str]:
    """Files of the same folder with a like name."""
    names = [f.name for f in file.parent.iterdir()] if file.parent.is_dir() else []
    return [str(file.parent / name) for name in difflib.get_close_matches(file.name, names, 3, 0.6)]


def _missing(file: Path, shown: str, key: str) -> Refusal:
    near = _near(file)
    why = "" if file.parent.is_dir() else f"the folder {quoted(str(file.parent))} does not exist"
    fix = f"did you mean {', '.join(near)}?" if near else "check the path"
    return Refusal(f"there is no file {quoted(shown)}", where=key, why=why, fix=fix)


def _folder(file: Path, shown: str, key: str) -> Refusal:
    files = sorted(f.name for f in file.iterdir() if f.suffix.lower() in _READABLE)
    fix = f"give one file, such as {file / files[0]}" if files else "give a file"
    return Refusal(f"{quoted(shown)} is a folder", where=key, why=f"it holds {', '.join(files[:5])}" if files else "", fix=fix)
