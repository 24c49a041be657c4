"""Rows from Parquet files and from data sets on the Hub. pyarrow and datasets are imported only here, when they are used."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from tunesmith.errors import Refusal, not_installed
from tunesmith.hub import offline_if_unreachable
from tunesmith.sources.text.decoding import MAX_UNPACKED
from tunesmith.sources.text.records import Records, counted, too_big

_HUB_NAME = re.compile(r"[\w.\-]+(/[\w.\-]+)?(:[\w.\-]+)?")


def read_parquet(data: bytes, shown: str) -> Records:
    """Every row of a Parquet file, as Python values."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise not_installed("reading Parquet needs pyarrow", "data", where=shown) from None
    try:
        file = ParquetFile(io.BytesIO(data))
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if size > MAX_UNPACKED:
            raise Refusal(f"unpacks to more than {MAX_UNPACKED:,} bytes", where=shown, fix="split the file")
        _refuse_doubled(file.schema_arrow.names, shown)
        rows = file.read().to_pylist()
    except (ArrowException, OSError, ValueError) as fault:
        reason = str(fault).split("\n")[0][:120]
        raise Refusal("is not a readable Parquet file", where=shown, why=reason, fix="download or write the file again") from fault
    return _numbered(rows, shown, "parquet", [])


def _refuse_doubled(names: list[str], shown: str) -> None:
    if doubled := [name for name in names if names.count(name) > 1]:
        raise Refusal(f"the column `{doubled[0]}` stands twice", where=shown, fix="rename one of them")


def _numbered(rows: list[dict[str, Any]], shown: str, kind: str, notes: list[str]) -> Records:
    if not rows:
        raise Refusal("0 rows", where=shown, fix="name another file or split")
    for number, row in enumerate(rows, 1):
        if too_big("".join(_texts(row))):
            raise Refusal("a row of over 1 MB", where=f"{shown} record {number}", fix="split it")
    return Records(rows, list(range(1, len(rows) + 1)), shown, kind, notes)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def is_hub_name(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not name.startswith(".")


def read_hub(name: str, split: str, key: str, near: list[str]) -> Records:
    """A split of the Hub's data set `name` or `name:config`; class numbers become their names. `near`: files that may have been meant."""
    try:
        import datasets
    except ImportError:
        raise not_installed(f"there is no file {name}, and reading it from the Hub needs `datasets`", "data", where=key) from None
    place, _, config = name.partition(":")
    try:
        with offline_if_unreachable():
            table = datasets.load_dataset(place, config or None, split=split)
    except Exception as fault:  # the library raises nearly every type; what the user can mend is in the first line
        raise _unavailable(name, key, fault, near) from fault
    rows = [_with_names(dict(row), getattr(table, "features", None) or {}) for row in table]
    return _numbered(rows, name, "hub", [f"{counted(len(rows), 'row')} of the split `{split}` of the Hub's {name}"])


def _unavailable(name: str, key: str, fault: Exception, near: list[str]) -> Refusal:
    reason = str(fault).strip().split("\n")[0][:200] or type(fault).__name__
    if near:
        fix = f"did you mean {', '.join(near)}?"
    elif "401" in reason or "403" in reason or "gated" in reason.lower():
        fix = "ask for access on the data set's page, then `hf auth login`"
    elif isinstance(fault, ValueError):
        fix = "`name:config` picks a configuration, `split:` a split"
    else:
        fix = "check the path; for the Hub, check the name and the connection (offline, only what is in the cache can be read)"
    return Refusal(f"there is no file {name}, and no such data set could be read from the Hub", where=key, why=reason, fix=fix)


def _with_names(row: dict[str, Any], features: dict[str, Any]) -> dict[str, Any]:
    for column, feature in features.items():
        names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
        if isinstance(names, list):
            row[column] = _named(row[column], names)
    return row


def _named(value: Any, names: list[str]) -> Any:
    """The name of a class number; None for -1, which the Hub writes where a label is withheld."""
    if isinstance(value, list):
        return [_named(inner, names) for inner in value]
    return names[value] if isinstance(value, int) and value >= 0 else None
