"""The names that columns go by, and the choice of a column for each role of ours."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunesmith.errors import Refusal
from tunesmith.sources.text.records import Records, quoted

# Each list is in order of preference: where a file has two of them, the first is taken and a note says so.
TEXT = ("text", "sentence", "content", "query", "review", "comment", "utterance", "question", "document", "tweet", "body", "title", "input")
PROSE = ("text", "content", "document", "story", "body", "paragraphs", "article", "sentence")
LABEL = ("label", "labels", "intent", "target", "category", "class", "label_name", "label_text", "sentiment", "emotion", "topic", "tag")
SCORE = ("score", "label", "similarity", "similarity_score", "target", "rating", "stars", "reward", "value")
TOKENS = ("tokens", "words", "token")
TAGS = ("tags", "ner_tags", "labels", "ner", "tag", "label")
SPANS = ("spans", "entities", "entity_list", "annotations", "label", "labels")
PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("text", "text_pair"),
    ("text", "pair"),
    ("question1", "question2"),
    ("question", "answer"),
    ("question", "sentence"),
    ("query", "passage"),
    ("query", "document"),
)
PROMPTS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("input", "output"),
    ("source", "target"),
    ("problem", "solution"),
    ("mr", "ref"),
)
RELATED = (
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "passage"),
    ("query", "document"),
    ("question", "answer"),
    *PAIRS,
)
NEGATIVES = ("negative", "negatives", "hard_negative", "hard_negatives")
ASKED = ("prompt", "question", "instruction", "query", "input")
ANSWERS = ("completion", "response", "output", "answer")
VERDICTS = ("label", "kto_tag", "good", "desirable", "verdict")
CHATS = ("messages", "conversations", "conversation")

KNOWN = frozenset(
    (
        *TEXT,
        *PROSE,
        *LABEL,
        *SCORE,
        *TOKENS,
        *TAGS,
        *SPANS,
        *CHATS,
        *(n for p in (*PAIRS, *PROMPTS) for n in p),
        "anchor",
        "positive",
        *NEGATIVES,
        "chosen",
        "rejected",
        "instruction",
        "system",
        "id",
        "idx",
    )
)


def plain(name: str) -> str:
    """A column's name as it is compared: lower case, with _ for spaces and hyphens."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


@dataclass
class Columns:
    """The columns of some records, and what the user said about them (`given`: our name -> column)."""

    records: Records
    given: Mapping[str, str]
    key: str
    found: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.found = self.records.columns

    def check(self, roles: Sequence[str]) -> None:
        """Refuse a role that the task has not, and a column that the file has not."""
        for role, column in self.given.items():
            if role not in roles:
                near = difflib.get_close_matches(role, roles, 1)
                fix = f"write `{near[0]}: {column}`" if near else ""
                raise Refusal(f"no column of ours is named `{role}`", where=f"{self.key}.{role}", why=f"there are {', '.join(roles)}", fix=fix)
            if column not in self.found:
                raise self._absent(role, column)

    def _absent(self, role: str, column: str) -> Refusal:
        near = [n for n in self.found if plain(n) == plain(column)] or difflib.get_close_matches(column, self.found, 3, 0.5)
        closest = f"; closest: {', '.join(map(quoted, near))}" if near else ""
        line = ", ".join(f"{r}: {(near or ['<column>'])[0] if r == role else c}" for r, c in self.given.items())
        why = f"{self.records.path} has {self.listed()}{closest}"
        return Refusal(f"no column is named {quoted(column)}", where=f"{self.key}.{role}", why=why, fix=f"`columns: {{{line}}}`")

    def listed(self) -> str:
        more = f" and {len(self.found) - 12} more" if len(self.found) > 12 else ""
        return ", ".join(quoted(name, 30) for name in self.found[:12]) + more or "no column"

    def has(self, name: str) -> str | None:
        """The column that goes by this name, written in any case."""
        return next((n for n in self.found if plain(n) == name), None)

    def find(self, role: str, names: Sequence[str], taken: Sequence[str | None] = ()) -> str | None:
        """The column of a role: the user's, or the first known name. A second candidate becomes a note."""
        if role in self.given:
            return self.given[role]
        hits = [n for n in map(self.has, names) if n is not None and n not in taken and n not in self.given.values()]
        if len(hits) > 1:
            self.notes.append(f"{role} is read from {quoted(hits[0])}; {', '.join(map(quoted, hits[1:3]))} would do too (`columns: {{{role}: ...}}`)")
        return hits[0] if hits else None

    def both(self, roles: tuple[str, str], pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        """Two columns that belong together, by the user's word or by the first pair of known names."""
        first, second = (self.given.get(role) for role in roles)
        for a, b in [] if first and second else pairs:
            left, right = first or self.has(a), second or self.has(b)
            if left and right and left != right and (first or second or {left, right}.isdisjoint(self.given.values())):
                return left, right
        return (first, second) if first and second else None

    def missing(self, task: str, roles: Mapping[str, str | None], looked: Mapping[str, Sequence[str]]) -> Refusal:
        """The refusal where no column was found for a role (None in `roles`), with the line to paste."""
        left = [name for name in self.found if name not in roles.values()]
        lacking = [role for role, column in roles.items() if column is None]
        line = ", ".join(f"{role}: {column or self._likely(role, looked.get(role, ()), left)}" for role, column in roles.items())
        why = f"found {self.listed()}; looked for {', '.join(looked.get(lacking[0], lacking))}"
        what = f"no column for {' and '.join(f'`{role}`' for role in lacking)}, which `task: {task}` needs"
        return Refusal(what, where=self.records.path, why=why, fix=f"name it: `columns: {{{line}}}`")

    def _likely(self, role: str, names: Sequence[str], left: list[str]) -> str:
        spelled = [n for name in (role, *names) for n in difflib.get_close_matches(name, left, 1, 0.75)]
        choice = next(iter(spelled or (left if role not in ("tokens", "tags", "spans") else ())), "<column>")
        if choice in left:
            left.remove(choice)
        return choice
