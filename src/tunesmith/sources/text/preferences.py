"""Answers that were compared or judged: a prompt with a better and a worse answer, or an answer with a verdict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunesmith.sources.text import chats
from tunesmith.sources.text.cells import BadRow, kind, optional, present, text
from tunesmith.sources.text.examples import Dialogue, Judged, Preferred
from tunesmith.sources.text.records import quoted

Message = dict[str, Any]


def from_pair(row: dict[str, Any], columns: Mapping[str, str | None], number: int) -> Preferred:
    """columns: chosen, rejected, and one of prompt (a text or messages), messages, or neither where both answers are whole dialogues."""
    before = _asked(row, columns)
    chosen, rejected = (_dialogue(before, row, columns[name] or "", number) for name in ("chosen", "rejected"))
    if chosen.turns[:-1] != rejected.turns[:-1]:
        raise BadRow("the chosen and the rejected answer follow different turns")
    if chosen == rejected:
        raise BadRow("the chosen and the rejected answer are the same")
    return Preferred(chosen, rejected, number)


def from_verdict(row: dict[str, Any], columns: Mapping[str, str | None], number: int) -> Judged:
    """columns: completion (or messages, whose last turn it is), label, and prompt where there is one. The label is true or false, or 1 or 0."""
    column = columns["label"] or ""
    verdict = present(row, column)
    if verdict not in (True, False):
        raise BadRow(f"{quoted(column)} is {kind(verdict)}, not true or false", quoted(verdict))
    answer = columns.get("completion")
    before = _asked(row, columns)
    dialogue = _dialogue(before, row, answer, number) if answer else _ended(before, number)
    return Judged(dialogue, bool(verdict), number)


def _asked(row: dict[str, Any], columns: Mapping[str, str | None]) -> list[Message]:
    """The messages before the answer."""
    column = columns.get("messages") or columns.get("prompt")
    said = optional(row, columns.get("system"))
    start = [{"role": "system", "content": said}] if said else []
    if column is None:
        return start
    if isinstance(row.get(column), list):
        return [*start, *chats.messages(row, column)]
    asked = "\n".join(filter(None, (text(row, column), optional(row, columns.get("input")))))
    return [*start, {"role": "user", "content": asked}]


def _dialogue(before: list[Message], row: dict[str, Any], column: str, number: int) -> Dialogue:
    """An answer is a text, a message, or messages; messages may repeat what was asked."""
    value = present(row, column)
    if isinstance(value, dict):
        return _ended([*before, value], number)
    if not isinstance(value, list):
        said = text(row, column)
        return _ended(([] if before else _transcript(said)) or [*before, {"role": "assistant", "content": said}], number)
    answer = chats.messages(row, column)
    repeats = len(answer) > len(before) and answer[: len(before)] == before
    return _ended(answer if repeats else [*before, *answer], number)


def _transcript(said: str) -> list[Message]:
    """The messages of a dialogue written as one text, as in Anthropic's HH-RLHF; none where it is not."""
    parts = _SPEAKER.split(said)
    turns = [{"role": _SPEAKERS[who], "content": words.strip()} for who, words in zip(parts[1::2], parts[2::2], strict=True)]
    return turns if not parts[0].strip() and len(turns) > 1 else []


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def _ended(messages: list[Message], number: int) -> Dialogue:
    """The dialogue of which the last answer alone is looked at."""
    made = chats.from_messages({"messages": [dict(m) for m in messages]}, "messages", None, number)
    if made.turns[-1].role != "assistant":
        raise BadRow("the last turn is not an answer")
    return Dialogue((*(replace(turn, learn=False) for turn in made.turns[:-1]), replace(made.turns[-1], learn=True)), number)
