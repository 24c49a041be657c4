"""One cell of one row, read as what it has to be, or the reason why it is not that."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from tunesmith.sources.text.records import quoted

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_ABSENT = object()
_KINDS = {bool: "true or false", int: "a whole number", float: "a number with a fraction", str: "text", list: "a list", dict: "an object"}


class BadRow(Exception):
    """A row that cannot be an example. `reason` is the same for like rows, so that they can be counted; `detail` is this row's."""

    def __init__(self, reason: str, detail: str = "", fix: str = ""):
        self.reason, self.detail, self.fix = reason, detail, fix
        super().__init__(reason)


def kind(value: Any) -> str:
    return _KINDS.get(type(value), f"of the type {type(value).__name__}")


def present(row: dict[str, Any], column: str) -> Any:
    """A cell that is there and not null."""
    value = row.get(column, _ABSENT)
    if value is _ABSENT:
        raise BadRow(f"{quoted(column)} is missing")
    if value is None:
        raise BadRow(f"{quoted(column)} is null")
    return value


def text(row: dict[str, Any], column: str) -> str:
    """A cell that is text and not blank, as it was written."""
    value = present(row, column)
    if not isinstance(value, str):
        raise BadRow(f"{quoted(column)} is {kind(value)}, not text", quoted(value))
    if not value.strip():
        raise BadRow(f"{quoted(column)} is empty")
    return value


def optional(row: dict[str, Any], column: str | None) -> str:
    """A cell that may be absent, null or empty; then "" ."""
    value = row.get(column) if column else None
    if value is not None and not isinstance(value, str):
        raise BadRow(f"{quoted(column or '')} is {kind(value)}, not text", quoted(value))
    return value if value and value.strip() else ""


def lines(row: dict[str, Any], column: str) -> str:
    """A cell that is text, or a list of texts, one a line."""
    value = present(row, column)
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        return text({column: "\n".join(value)}, column)
    return text(row, column)


def name(value: Any, column: str) -> str:
    """A label as text: 1 is "1", true is "true". Fractions and structures are no labels."""
    if value is None:
        raise BadRow(f"{quoted(column)} is null")
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, (str, int)):
        fix = "classes are named by text or whole numbers; numbers to predict are `task: score`"
        raise BadRow(f"{quoted(column)} is {kind(value)}, which names no class", quoted(value), fix)
    if not str(value).strip():
        raise BadRow(f"{quoted(column)} is empty")
    return str(value)


def number(row: dict[str, Any], column: str) -> float:
    """A finite number, written as one or as text."""
    value = present(row, column)
    written = isinstance(value, str) and _NUMBER.fullmatch(value)
    if isinstance(value, bool) or not (written or isinstance(value, (int, float))):
        raise BadRow(f"{quoted(column)} is not a number", quoted(value))
    try:
        score = float(value)
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise BadRow(f"{quoted(column)} is not a finite number", quoted(value))
    return score


def usual(rows: list[dict[str, Any]], column: str) -> type | None:
    """The type that most cells of a column have, if they have several: the others are then refused one by one."""
    types = Counter(type(row[column]) for row in rows if row.get(column) is not None)
    return types.most_common(1)[0][0] if len(types) > 1 else None


def alike(value: Any, column: str, wanted: type | None) -> None:
    """Refuse a cell whose type is not the usual one of its column."""
    if wanted is not None and value is not None and type(value) is not wanted:
        usually = _KINDS.get(wanted, wanted.__name__)
        raise BadRow(f"{quoted(column)} is {kind(value)} where in most rows it is {usually}", quoted(value), "write one type in all rows")
