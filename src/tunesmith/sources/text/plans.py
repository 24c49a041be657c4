"""One plan a task: which columns play which role, and how a row of them becomes an example."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from tunesmith.sources.text import chats, guesses, preferences, tags
from tunesmith.sources.text import columns as known
from tunesmith.sources.text.cells import BadRow, alike, lines, name, number, present, text, usual
from tunesmith.sources.text.columns import Columns, plain
from tunesmith.sources.text.examples import Classified, Dialogue, Example, Plain, Related, Scored, Tagged
from tunesmith.sources.text.records import counted, quoted

_PROMPTED = ("instruction", "input", "output", "prompt", "completion")
_COMPARED = ("prompt", "messages", "chosen", "rejected", "system")
ROLES = {
    "classify": ("text", "pair", "label"),
    "tag": ("tokens", "tags", "text", "spans"),
    "score": ("text", "pair", "score", *_COMPARED),
    "generate": ("messages", "conversations", *_PROMPTED, "system", "history", "text", "chosen", "rejected", "label"),
    "embed": ("anchor", "positive", "negative", "text", "pair", "score", "label"),
}


@dataclass(frozen=True)
class Options:
    """What the user decided. `known`: the labels that there are, or None where this data says so itself."""

    known: frozenset[str] | None = None
    multi_label: bool = False
    skip: bool = False
    repair: bool = False


@dataclass(frozen=True)
class Plan:
    """How rows of one format become examples. `close` looks at all of them and returns further notes."""

    name: str
    columns: dict[str, str | None]
    build: Callable[[int, dict[str, Any]], Example]
    close: Callable[[list[Any]], list[str]] = lambda examples: []


def _texts(view: Columns, wanted: str) -> tuple[str | None, str | None]:
    """(text, pair) columns: the user's, two that belong together, or one."""
    taken = view.given.get(wanted)
    if "text" not in view.given or "pair" in view.given:
        pairs = [pair for pair in known.PAIRS if taken is None or taken not in map(view.has, pair)]
        if two := view.both(("text", "pair"), pairs):
            return two
    return view.find("text", known.TEXT, (taken,)), view.given.get("pair")


def _classify(view: Columns, options: Options) -> Plan:
    one, two = _texts(view, "label")
    label = view.find("label", known.LABEL, (one, two))
    if not (one and label) and guesses.headerless(view):
        one, two, label = guesses.classify(view, one, two, label)
    if not one or not label:
        raise view.missing("classify", {"text": one, "label": label}, {"text": known.TEXT, "label": known.LABEL})
    rows = view.records.rows
    many = options.multi_label or plain(label) == "labels" or any(isinstance(row.get(label), list) for row in rows)
    wanted = None if many else usual(rows, label)
    bar = "|" if any(isinstance(row.get(label), str) and "|" in row[label] for row in rows) else ","

    def build(i: int, row: dict[str, Any]) -> Classified:
        alike(row.get(label), label, wanted)
        value = present(row, label)
        names = _split(value, label, bar, options.multi_label) if many else (name(value, label),)
        _known(names, options.known, label)
        return Classified(text(row, one), text(row, two) if two else None, names, i)

    kind = "multi-label" if any(isinstance(row.get(label), list) for row in rows) or options.multi_label else "pair + label" if two else "text + label"
    return Plan(kind, {"text": one, "pair": two, "label": label}, build, guesses.about_labels)


def _split(value: Any, column: str, bar: str, split: bool) -> tuple[str, ...]:
    parts = value if isinstance(value, list) else value.split(bar) if split and isinstance(value, str) else [value]
    names = [name(part.strip() if isinstance(part, str) else part, column) for part in parts if not split or part != ""]
    return tuple(dict.fromkeys(names))


def _known(names: Collection[str], labels: frozenset[str] | None, column: str) -> None:
    strange = [n for n in names if labels is not None and n not in labels]
    if labels is not None and strange:
        near = difflib.get_close_matches(strange[0], labels, 1)
        listed = ", ".join(map(quoted, sorted(labels)[:8])) + (", ..." if len(labels) > 8 else "")
        fix = f"did you mean {quoted(near[0])}? " if near else ""
        raise BadRow(f"{quoted(column)} has a label that the training data has not", quoted(strange[0]), f"{fix}known: {listed}")


def _score(view: Columns, options: Options) -> Plan:
    if view.both(("chosen", "rejected"), (("chosen", "rejected"),)) and (compared := _preferred(view)):
        return compared
    one, two = _texts(view, "score")
    score = view.find("score", known.SCORE, (one, two))
    if not (one and score) and guesses.headerless(view):
        one, two, score = guesses.score(view, one, two, score)
    if not one or not score:
        raise view.missing("score", {"text": one, "score": score}, {"text": known.TEXT, "score": known.SCORE})

    def build(i: int, row: dict[str, Any]) -> Scored:
        return Scored(text(row, one), text(row, two) if two else None, number(row, score), i)

    return Plan("pair + score" if two else "text + score", {"text": one, "pair": two, "score": score}, build, guesses.about_scores)


def _tag(view: Columns, options: Options) -> Plan:
    words = {"tokens": view.find("tokens", known.TOKENS), "tags": None}
    words["tags"] = view.find("tags", known.TAGS, (words["tokens"],)) if words["tokens"] else None
    spread = {"text": view.find("text", known.TEXT), "spans": None}
    spread["spans"] = view.find("spans", known.SPANS, (spread["text"],)) if spread["text"] else None
    if words["tokens"] and words["tags"] and not {"text", "spans"} & set(view.given):
        return _tag_words(view, words["tokens"], words["tags"], options)
    if spread["text"] and spread["spans"]:
        return _tag_spans(spread["text"], spread["spans"], options)
    lacking, looked = (words, {"tags": known.TAGS}) if words["tokens"] else (spread, {"text": known.TEXT, "spans": known.SPANS})
    raise view.missing("tag", lacking if any(lacking.values()) else {"tokens": None, "tags": None}, {"tokens": known.TOKENS, **looked})


def _tag_spans(whole: str, spans: str, options: Options) -> Plan:
    def build(i: int, row: dict[str, Any]) -> Tagged:
        said = text(row, whole)
        found = tags.spans_of(row, spans, said)
        _known({label for _, _, label in found}, options.known, spans)
        return tags.from_spans(said, found, i)

    return Plan("text + spans", {"text": whole, "spans": spans}, build, guesses.about_tags)


def _tag_words(view: Columns, tokens: str, column: str, options: Options) -> Plan:
    style = tags.scheme({tag for row in view.records.rows for tag in _strings(row, column)})
    if style != "BIO":
        view.notes.append("the tags are BIOES or BILOU and were turned into BIO" if style == "BIOES" else "plain tags, one a word, with no spans")
    mended: list[None] = []

    def build(i: int, row: dict[str, Any]) -> Tagged:
        made = tags.from_words(tags.listed(row, tokens), tags.listed(row, column), style, (lambda: mended.append(None)) if options.repair else None, i)
        types = {tag if style == "plain" else tag[2:] for tag in made.tags if tag != "O"}
        _known(types, options.known, column)
        return made

    def close(examples: list[Any]) -> list[str]:
        return [*guesses.about_tags(examples), *([f"{counted(len(mended), 'I- tag')} without a B- read as B-"] if mended else [])]

    return Plan("tokens + tags", {"tokens": tokens, "tags": column}, build, close)


def _strings(row: dict[str, Any], column: str) -> list[str]:
    try:
        return [tag for tag in tags.listed(row, column) if isinstance(tag, str)]
    except BadRow:
        return []


def _generate(view: Columns, options: Options) -> Plan:
    """The richest format that the columns allow: messages, then prompts with answers, then plain text. The user's roles come first."""
    given = set(view.given) - {"system", "history"}
    readers = [((*_COMPARED, "label"), _preferred), (("messages", "conversations"), _chat), (_PROMPTED, _prompted), (("text",), _plain_text)]
    plans = [plan for roles, reader in readers if not given or given & set(roles) for plan in [reader(view)] if plan]
    if not plans and not given and guesses.headerless(view):
        plans = [_headerless(view)]
    if not plans:
        looked = (*known.CHATS, "prompt + completion", "question + answer", "instruction + output", "text")
        raise view.missing("generate", {"prompt": view.given.get("prompt"), "completion": view.given.get("completion")}, {"prompt": looked})
    if len(plans) > 1:
        view.notes.append(f"read as {plans[0].name}; {plans[1].name} would be possible too (`columns:` decides)")
    return plans[0]


def _preferred(view: Columns) -> Plan | None:
    """A better and a worse answer; or an answer (the file's, or a dialogue's last) with a verdict that is true or false."""
    two = view.both(("chosen", "rejected"), (("chosen", "rejected"),))
    verdict = view.given.get("label") or next((c for c in map(view.has, known.VERDICTS) if c and _is_verdict(view, c)), None)
    if not (two or verdict):
        return None
    asked: dict[str, str | None] = {role: view.given.get(role) or view.has(role) for role in ("system", "input")}
    asked |= {"messages": view.find("messages", known.CHATS), "prompt": view.find("prompt", known.ASKED)}
    if two:
        pair = {"chosen": two[0], "rejected": two[1], **asked}
        return Plan("chosen + rejected", pair, lambda i, row: preferences.from_pair(row, pair, i))
    judged = {"label": verdict, "completion": None if asked["messages"] else view.find("completion", known.ANSWERS), **asked}
    return Plan("answer + verdict", judged, lambda i, row: preferences.from_verdict(row, judged, i))


def _is_verdict(view: Columns, column: str) -> bool:
    return all(isinstance(row.get(column), bool) for row in view.records.rows)


def _chat(view: Columns) -> Plan | None:
    named = view.given.get("messages") or view.given.get("conversations")
    column = named or next((c for c in map(view.has, known.CHATS) if c and _is_list(view, c)), None)
    if column is None:
        return None
    system = view.given.get("system") or view.has("system")
    first = next((row[column] for row in view.records.rows if row.get(column)), [])
    style = "sharegpt" if isinstance(first, list) and first and isinstance(first[0], dict) and "from" in first[0] else "messages"
    return Plan(style, {"messages": column, "system": system}, lambda i, row: chats.from_messages(row, column, system, i))


def _is_list(view: Columns, column: str) -> bool:
    return any(isinstance(row.get(column), list) for row in view.records.rows)


def _prompted(view: Columns) -> Plan | None:
    """Alpaca where there is an instruction; else the first pair of names that belong together."""
    given = view.given
    extra = {role: given.get(role) or view.has(role) for role in ("system", "history")}
    asked = given.get("instruction") or (None if "prompt" in given else view.has("instruction"))
    answer = given.get("output") or given.get("completion") or view.has("output") or view.has("response")
    if asked and answer:
        more = given.get("input") or view.has("input") or view.has("context")
        return _dialogue("alpaca", {"prompt": asked, "completion": answer, "input": more, **extra})
    two = view.both(("prompt", "completion"), known.PROMPTS)
    return _dialogue("prompt + completion", {"prompt": two[0], "completion": two[1], "input": given.get("input"), **extra}) if two else None


def _dialogue(style: str, columns: dict[str, str | None]) -> Plan:
    def build(i: int, row: dict[str, Any]) -> Dialogue:
        return chats.from_prompt(row, columns, i)

    return Plan(style, columns, build)


def _plain_text(view: Columns) -> Plan | None:
    column = view.given.get("text") or next(filter(None, map(view.has, known.PROSE)), None)
    return Plan("plain text", {"text": column}, lambda i, row: Plain(lines(row, column), i)) if column else None


def _headerless(view: Columns) -> Plan:
    if len(view.found) == 1:
        column = view.found[0]
        return Plan("plain text", {"text": column}, lambda i, row: Plain(lines(row, column), i))
    if len(view.found) > 2:
        raise view.missing("generate", {"prompt": None, "completion": None}, {})
    view.notes.append("no header: column1 is taken for the prompt, column2 for the completion (`columns:` decides)")
    return _dialogue("prompt + completion", {"prompt": view.found[0], "completion": view.found[1]})


def _embed(view: Columns, options: Options) -> Plan:
    """Two texts with a score; an anchor with a positive, and perhaps negatives and what they are about; a text with a label; or texts alone."""
    two = view.both(("anchor", "positive"), ()) or view.both(("text", "pair"), ()) or view.both(("anchor", "positive"), known.RELATED)
    score = view.given.get("score") or (view.find("score", ("score", "similarity", "similarity_score")) if two else None)
    if not two and not view.given and guesses.headerless(view):
        one, pair, score = guesses.score(view, None, None, None)
        two = (one, pair) if one and pair and score else None
    if two:
        negatives = (
            []
            if score
            else [view.given["negative"]]
            if "negative" in view.given
            else [n for n in view.found if plain(n).rstrip("_0123456789") in known.NEGATIVES]
        )
        label = None if score else view.given.get("label")  # only where it is named: of sentence pairs, `label` usually says how the two relate
        return _related({"anchor": two[0], "positive": two[1], **{f"negative {i + 1}": n for i, n in enumerate(negatives)}, "score": score, "label": label})
    one = view.find("text", known.TEXT)
    label = view.find("label", known.LABEL, (one,))
    if not one and guesses.headerless(view):
        one, _, label = guesses.classify(view, None, None, label)
    if not one:
        raise view.missing("embed", {"anchor": None, "positive": None}, {"anchor": ("anchor + positive", "two texts + score", "text + label", "text")})
    return _related({"text": one, "label": label})


def _related(columns: dict[str, str | None]) -> Plan:
    score, label = columns.get("score"), columns.get("label")
    texts = [column for role in ("text", "anchor", "positive") if (column := columns.get(role))]
    negatives = [column for role, column in columns.items() if column and role.startswith("negative")]

    def build(i: int, row: dict[str, Any]) -> Related:
        said = [text(row, column) for column in texts] + [t for column in negatives for t in _several(row, column)]
        return Related(tuple(said), i, number(row, score) if score else None, name(present(row, label), label) if label else None)

    names = ["text"] if "text" in columns else ["anchor", "positive", *(["negatives"] if negatives else [])]
    return Plan(" + ".join(names + [role for role in ("score", "label") if columns.get(role)]), columns, build)


def _several(row: dict[str, Any], column: str) -> list[str]:
    """The texts of a cell that has one, several or none."""
    value = row.get(column)
    if isinstance(value, list):
        if not all(isinstance(t, str) and t.strip() for t in value):
            raise BadRow(f"{quoted(column)} has an entry that is no text")
        return value
    return [text(row, column)] if value not in (None, "") else []


PLANS: dict[str, Callable[[Columns, Options], Plan]] = {"classify": _classify, "tag": _tag, "score": _score, "generate": _generate, "embed": _embed}
