"""Two tokenizers on one answer: positions at which both have read the same characters and are to say what comes next.

Boizard et al. 2024 (ULD, section 3) compare position t with position t; we compare those that stand before the same character, as GOLD does: others
would be compared after different texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import Refusal
from ..sources.text.encode import Reader
from ..sources.text.template import Template
from ..sources.text.tokens import learnt

LEAST = 0.05  # share of the student's positions below which nothing would be learnt


@dataclass(frozen=True)
class Aligned:
    """Of one row: of the student's `length` labelled positions, which are compared (`ours`), with which of the teacher's."""

    length: int
    ours: tuple[int, ...]
    theirs: tuple[int, ...]


def aligned(examples: Sequence[Any], student: Reader, teacher: Reader) -> list[Aligned]:
    """Raises Refusal where next to no position of the student has its like."""
    found = []
    for example in examples:
        ours, theirs = starts(example, student), {place: i for i, place in reversed(list(enumerate(starts(example, teacher))))}
        pairs = [(i, theirs[place]) for i, place in enumerate(ours) if place in theirs]
        found.append(Aligned(len(ours), tuple(i for i, _ in pairs), tuple(j for _, j in pairs)))
    share = sum(len(a.ours) for a in found) / max(1, sum(a.length for a in found))
    if share < LEAST:
        raise Refusal(
            f"only {share:.0%} of the student's tokens begin where a token of the teacher begins",
            where="objective.align", why="the two tokenizers part texts too differently", fix="let the teacher write the answers, and learn from its text",
        )  # fmt: skip
    return found


def starts(example: Any, reader: Reader) -> list[tuple[int, int]]:
    """By labelled position: (answer, character of it at which the token to be said begins)."""
    template = Template.of(reader.tokenizer, reader.template)
    made = template.render(example.turns, reader.learn_prompt)
    found = reader.tokenizer(made.text, add_special_tokens=template.special(made.text), return_offsets_mapping=True, verbose=False)
    offsets = found["offset_mapping"][: reader.max_length]
    return [place(made.learn, offsets[t + 1][0], made.text) for t in learnt(offsets, made.learn)]


def place(spans: Sequence[tuple[int, int]], start: int, text: str) -> tuple[int, int]:
    """Counted from the answer's first character that is no blank: templates differ in those."""
    k = next(i for i, (a, b) in enumerate(spans) if a <= start < b)
    a, b = spans[k]
    blank = len(text[a:b]) - len(text[a:b].lstrip())
    return k, max(0, start - a - blank)
