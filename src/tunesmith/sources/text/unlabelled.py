"""Rows of which only the texts are read: a teacher says what they are."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tunesmith.errors import Refusal
from tunesmith.sources.text import columns as known
from tunesmith.sources.text.cells import BadRow, text
from tunesmith.sources.text.columns import Columns
from tunesmith.sources.text.examples import UNKNOWN, Classified, Example, Scored, Tagged
from tunesmith.sources.text.records import Records
from tunesmith.sources.text.tags import cut, listed


def without_labels(records: Records, task: str, given: Mapping[str, str]) -> list[Example]:
    """For classify, score and tag. Raises Refusal where there is no column of texts, or a row has none."""
    view = Columns(records, dict(given), "data.unlabelled")
    words = view.find("tokens", known.TOKENS) if task == "tag" else None
    two = None if words or task == "tag" else view.both(("text", "pair"), known.PAIRS)
    one = two[0] if two else None if words else view.find("text", known.TEXT) or (view.found[-1] if len(view.found) == 1 else None)
    if not (one or words):
        raise view.missing(task, {"text": None}, {"text": known.TEXT})
    try:
        if words:
            return [tagged(tuple(map(str, listed(row, words))), i) for i, row in enumerate(records.rows)]
        said = [(text(row, one or ""), text(row, two[1]) if two else None) for row in records.rows]
    except BadRow as fault:
        raise Refusal(f"a row of data.unlabelled cannot be read: {fault.reason}", where="data.unlabelled", fix=fault.fix) from fault
    if task == "tag":
        return [from_text(whole, i) for i, (whole, _) in enumerate(said)]
    if task == "score":
        return [Scored(a, b, math.nan, i) for i, (a, b) in enumerate(said)]
    return [Classified(a, b, (UNKNOWN,), i) for i, (a, b) in enumerate(said)]


def tagged(tokens: tuple[str, ...], row: int) -> Tagged:
    return Tagged(tokens, (UNKNOWN,) * len(tokens), (True,) * (len(tokens) - 1) + (False,), row)


def from_text(whole: str, row: int) -> Tagged:
    places = cut(whole)
    spaces = [i + 1 < len(places) and places[i + 1][0] > end for i, (_, end) in enumerate(places)]
    return Tagged(tuple(whole[a:b] for a, b in places), (UNKNOWN,) * len(places), tuple(spaces), row)
