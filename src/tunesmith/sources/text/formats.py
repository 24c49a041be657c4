"""From rows to examples: which format the columns are in, and every row checked on the way."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tunesmith.errors import Refusal
from tunesmith.sources.text.cells import BadRow
from tunesmith.sources.text.columns import Columns
from tunesmith.sources.text.examples import Classified, Dialogue, Example, Judged, Plain, Preferred, Related, Scored, Tagged, Turn
from tunesmith.sources.text.plans import PLANS, ROLES, Options, Plan
from tunesmith.sources.text.records import Records, counted, quoted

__all__ = ["Classified", "Dialogue", "Example", "Format", "Plain", "Scored", "Tagged", "Turn", "detect", "preview"]


@dataclass(frozen=True)
class Format:
    """A file's format, and its examples, all of them checked.

    name      "text + label", "messages", ...
    columns   our name -> the file's column
    notes     what was picked, repaired or left out, one sentence each
    skipped   (row, reason) of each row that was left out
    """

    name: str
    columns: dict[str, str]
    notes: list[str]
    skipped: tuple[tuple[int, str], ...]
    _examples: tuple[Example, ...] = field(repr=False)

    def examples(self) -> list[Example]:
        return list(self._examples)

    def __len__(self) -> int:
        return len(self._examples)


def detect(
    records: Records,
    task: str,
    columns: Mapping[str, str] | None = None,
    *,
    known_labels: Collection[str] | None = None,
    multi_label: bool = False,
    bad_rows: str = "stop",
    repair: bool = False,
    where_key: str = "data.columns",
) -> Format:
    """The format of some records for a task (classify, tag, score, generate), with every row turned into an example.

    columns       our name -> the user's column; wins over what would be found
    known_labels  labels (for tag: the types or plain tags) outside of which a row is bad; None: any
    multi_label   a text of labels is split at | (where some row has one) or at commas
    bad_rows      "stop": refuse if any row is bad; "skip": leave them out and say so
    repair        read an I- tag that follows no B- as B-

    Raises Refusal: no such column, no format that fits, bad rows (counted by reason, three places named), or no row left.
    """
    _choice(task, tuple(PLANS), "task")
    _choice(bad_rows, ("stop", "skip"), "data.bad_rows")
    view = Columns(records, dict(columns or {}), where_key)
    view.check(ROLES[task])
    options = Options(None if known_labels is None else frozenset(known_labels), multi_label, bad_rows == "skip", repair)
    plan = PLANS[task](view, options)
    return _collect(records, plan, view.notes, options)


def _choice(value: str, allowed: tuple[str, ...], where: str) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, 1)
        raise Refusal(f"{quoted(value)} is none of {', '.join(allowed)}", where=where, fix=f"write `{near[0]}`" if near else "")


def _collect(records: Records, plan: Plan, notes: list[str], options: Options) -> Format:
    examples: list[Example] = []
    bad: dict[str, list[tuple[int, BadRow]]] = {}
    for i, row in enumerate(records.rows):
        try:
            examples.append(plan.build(i, row))
        except BadRow as fault:
            bad.setdefault(fault.reason, []).append((i, fault))
    if bad and not (options.skip and examples):
        raise _bad_rows(records, bad, bool(examples))
    left_out = [f"{counted(len(rows), 'row')} left out: {reason} ({_places(records, rows)})" for reason, rows in bad.items()]
    skipped = sorted((i, reason) for reason, rows in bad.items() for i, _ in rows)
    columns = {role: column for role, column in plan.columns.items() if column}
    return Format(plan.name, columns, [*notes, *plan.close(examples), *left_out], tuple(skipped), tuple(examples))


def _bad_rows(records: Records, bad: dict[str, list[tuple[int, BadRow]]], some_good: bool) -> Refusal:
    """The most frequent reason first, at its first place; the others after it."""
    (reason, rows), *others = sorted(bad.items(), key=lambda item: (-len(item[1]), item[1][0][0]))
    first, fault = rows[0]
    also = f"; also {_places(records, rows[1:], 2)}" if len(rows) > 1 else ""
    what = reason + (f": {fault.detail}" if fault.detail else "") + f" ({len(rows):,} of {counted(len(records), 'row')}{also})"
    why = "; ".join(f"{reason} ({counted(len(rows), 'row')}, first {records.where(rows[0][0])})" for reason, rows in others[:4])
    skip = "`bad_rows: skip` leaves such rows out" if some_good else ""
    return Refusal(what, where=records.where(first), why=why and f"and {why}", fix="; ".join(filter(None, (fault.fix, skip))) or "mend the rows")


def _places(records: Records, rows: list[tuple[int, BadRow]], n: int = 3) -> str:
    return ", ".join(records.where(i) for i, _ in rows[:n]) + (", ..." if len(rows) > n else "")


def preview(format: Format, n: int = 3) -> list[str]:
    """The first n examples, a line each; an assistant's turn on which loss is taken is marked with a star."""
    return [_line(example) for example in format.examples()[:n]]


def _line(example: Example) -> str:
    if isinstance(example, Plain):
        return quoted(example.text, 120)
    if isinstance(example, Related):
        more = "" if example.score is None and example.label is None else f" -> {example.label if example.score is None else f'{example.score:g}'}"
        return " / ".join(quoted(t, 60) for t in example.texts[:4]) + more
    if isinstance(example, Preferred):
        return f"{_line(example.chosen)} | not: {quoted(example.rejected.turns[-1].content)}"
    if isinstance(example, Judged):
        return f"{_line(example.dialogue)} -> {'good' if example.good else 'not good'}"
    if isinstance(example, Dialogue):
        return " | ".join(f"{turn.role}{'*' * turn.learn}: {quoted(turn.content)}" for turn in example.turns[:6])
    if isinstance(example, Tagged):
        words = (token if tag == "O" else f"[{token} {tag}]" for token, tag in zip(example.tokens[:20], example.tags))
        return quoted(" ".join(words), 160)
    said = quoted(example.text, 90) + (f" / {quoted(example.pair, 90)}" if example.pair is not None else "")
    return f"{said} -> {example.score:g}" if isinstance(example, Scored) else f"{said} -> {', '.join(map(quoted, example.labels)) or '(none)'}"
