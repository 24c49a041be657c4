"""Dialogues: rows of messages, and prompts with their answers, as turns of three roles."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from tunesmith.sources.text.cells import BadRow, kind, optional, present, text
from tunesmith.sources.text.examples import Dialogue, Turn
from tunesmith.sources.text.records import quoted

# Tool results reach the model from outside, like a user's words; a tool call is the model's own.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "tool": "user",
    "observation": "user",
    "function_response": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
}
_PEOPLE = ("user", "human")
_SILENT = ("loss", "train", "weight")


def from_messages(row: dict[str, Any], column: str, system: str | None, number: int) -> Dialogue:
    """A list of {role, content} or {from, value}, checked turn by turn."""
    raw = messages(row, column)
    named = [_raw_role(message) for message in raw]
    turns = [_turn(message, role) for message, role in zip(raw, named)]
    if (said := optional(row, system)) and turns[0].role != "system":
        turns.insert(0, Turn("system", said, False))
        named.insert(0, "system")
    _check(turns, named)
    return Dialogue(tuple(turns), number)


def messages(row: dict[str, Any], column: str) -> list[dict[str, Any]]:
    value = present(row, column)
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise BadRow(f"{quoted(column)} is {kind(value)}, not a list of messages", quoted(value))
    if not value:
        raise BadRow("there are no messages")
    return value


def _raw_role(message: dict[str, Any]) -> str:
    role = message.get("role", message.get("from"))
    name = role.strip().lower() if isinstance(role, str) else ""
    if name not in ROLES:
        raise BadRow("unknown role", quoted(role, 30), f"the roles are {', '.join(ROLES)}")
    return name


def _turn(message: dict[str, Any], name: str) -> Turn:
    """A turn; loss is taken on the assistant's, but where `loss`, `train` or `weight` says no."""
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = _joined(content)
    if content is None and message.get("tool_calls"):
        raise BadRow("an assistant turn holds tool calls and no text", fix="write the call as text")
    if not isinstance(content, str) or not content.strip():
        raise BadRow("empty content" if not content or isinstance(content, str) else f"content is {kind(content)}, not text", f"a turn of {name}")
    role = ROLES[name]
    return Turn(role, content, role == "assistant" and not any(message.get(k, True) in (False, 0) for k in _SILENT))


def _joined(parts: list[Any]) -> str:
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise BadRow("content has a part that is not text", quoted(part))
    return "".join(part["text"] for part in parts)


def _check(turns: list[Turn], named: list[str]) -> None:
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        raise BadRow("no assistant turn")
    if "system" in roles[1:]:
        raise BadRow("a system turn that is not the first")
    for a, b in pairwise(named):
        if (a in _PEOPLE and b in _PEOPLE) or ROLES[a] == ROLES[b] == "assistant":
            raise BadRow(f"two {ROLES[a]} turns in a row")
    if not any(turn.learn for turn in turns):
        raise BadRow("no turn to learn from", fix="some assistant turn must take loss")


def from_prompt(row: dict[str, Any], columns: dict[str, str | None], number: int) -> Dialogue:
    """A prompt and its completion, after the system's words and earlier exchanges where there are any.

    columns: prompt, completion, and input, system, history or None. An `input` follows the prompt on a line of its own (alpaca).
    """
    prompt, completion = columns["prompt"] or "", columns["completion"] or ""
    if isinstance(row.get(prompt), list):
        return _from_halves(row, prompt, completion, number)
    asked = "\n".join(filter(None, (text(row, prompt), optional(row, columns.get("input")))))
    said = optional(row, columns.get("system"))
    start = [Turn("system", said, False)] if said else []
    end = [Turn("user", asked, False), Turn("assistant", _answer(row, completion), True)]
    return Dialogue((*start, *_history(row, columns.get("history")), *end), number)


def _answer(row: dict[str, Any], column: str) -> str:
    """An answer that is a number is written as text."""
    value = present(row, column)
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else text(row, column)


def _history(row: dict[str, Any], column: str | None) -> list[Turn]:
    exchanges = (row.get(column) if column else None) or []
    turns = []
    for exchange in exchanges if isinstance(exchanges, list) else [exchanges]:
        if not isinstance(exchange, list) or len(exchange) != 2 or not all(isinstance(s, str) and s.strip() for s in exchange):
            raise BadRow("history is not a list of [question, answer]", quoted(exchange))
        turns += [Turn("user", exchange[0], False), Turn("assistant", exchange[1], True)]
    return turns


def _from_halves(row: dict[str, Any], prompt: str, completion: str, number: int) -> Dialogue:
    """A prompt and a completion that are lists of messages: loss is taken on the completion alone."""
    asked, answered = messages(row, prompt), messages(row, completion)
    raw = [{**message, "loss": False} for message in asked] + answered
    return from_messages({"messages": raw}, "messages", None, number)
