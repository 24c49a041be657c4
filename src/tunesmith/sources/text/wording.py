"""A prompt in words: a template, the words that stand for each label, an instruction, and demonstrations. Imports neither torch nor transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import Refusal
from .examples import Classified, Turn

SLOT = re.compile(r"\{(text|pair|label)\}")
LIKE_A_SLOT = re.compile(r"\{\w+\}")

Shot = tuple[str, str | None, str]  # text, pair, label


@dataclass(frozen=True)
class Asked:
    """A prompt up to the label and, for a masked model, from it on. `lead` is the space before the label: it belongs to the word's first token."""

    before: str
    lead: str
    after: str


@dataclass(frozen=True)
class Wording:
    """How a row is asked about, and what an answer looks like.

    template     has {text} and {label} once each, and {pair} for pairs; every other character stands for itself
    words        what may be said for each label, the first being what a demonstration says
    instruction  stands before everything
    shots        demonstrations, in order; of a row that is itself among them, those with another text
    chat         as turns of the model's chat template: what stands before {label} is asked, the label is answered
    between      what parts the demonstrations
    pool         rows that demonstrations are chosen among for each text, the `nearest` of them by `embedder`, the nearest last or, in `reverse`, first; then there are no fixed shots
    blanks       texts without content, or of random words, by which answers are calibrated
    bare         one place is read and no word is put there: for verbalisers of their own
    """

    template: str
    words: Mapping[str, tuple[str, ...]]
    instruction: str = ""
    shots: tuple[Shot, ...] = ()
    chat: bool = False
    between: str = "\n\n"
    pool: tuple[Shot, ...] = ()
    nearest: int = 0
    reverse: bool = False
    embedder: str = "minilm"
    blanks: tuple[str, ...] = ()
    bare: bool = False

    def __post_init__(self) -> None:
        for slot in ("text", "label"):
            if (n := self.template.count(f"{{{slot}}}")) != 1:
                raise Refusal(f"the template has {{{slot}}} {n} times: {self.template!r}", where="template", fix='"{text}\\nCategory: {label}"')
        if odd := [m for m in LIKE_A_SLOT.findall(self.template) if not SLOT.fullmatch(m)]:
            raise Refusal(f"the template has {odd[0]}, which is no column", where="template", fix="{text}, {pair} and {label} are")

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.words)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def without(self, text: str, pair: str | None) -> tuple[Shot, ...]:
        """The demonstrations for a row: never the row itself."""
        return tuple(shot for shot in self.shots if shot[:2] != (text, pair))

    def asked(self, text: str, pair: str | None, shots: Sequence[Shot] | None = None) -> Asked:
        """Without a chat template."""
        shown = self.without(text, pair) if shots is None else shots
        before, after = (fill(part, text, pair) for part in self.template.split("{label}"))
        said = [self.instruction, *(self.shown(*shot) for shot in shown), before]
        whole = self.between.join(part for part in said if part)
        return Asked(whole.rstrip(), whole[len(whole.rstrip()) :], after)

    def shown(self, text: str, pair: str | None, label: str) -> str:
        """One demonstration."""
        return fill(self.template, text, pair, self.words[label][0])

    def turns(self, text: str, pair: str | None, shots: Sequence[Shot] | None = None) -> list[Turn]:
        """The prompt as a dialogue that ends where the label is to be answered."""
        ask = self.template.split("{label}")[0].rstrip()
        shown = self.without(text, pair) if shots is None else shots
        found = [Turn("system", self.instruction, False)] if self.instruction else []
        for one, other, label in shown:
            found += [Turn("user", fill(ask, one, other), False), Turn("assistant", self.words[label][0], True)]
        return [*found, Turn("user", fill(ask, text, pair), False)]


def fill(template: str, text: str, pair: str | None, label: str = "") -> str:
    """In one pass, so that a text that looks like a slot stays a text."""
    here = {"text": text, "pair": pair or "", "label": label}
    return SLOT.sub(lambda m: here[m[1]], template)


def wording_of(plain: Mapping[str, Any]) -> Wording:
    """The inverse of `Wording.plain`, also from JSON."""
    shots = {key: tuple((str(s[0]), s[1], str(s[2])) for s in plain[key]) for key in ("shots", "pool")}
    words = {label: tuple(words) for label, words in plain["words"].items()}
    return Wording(**{**plain, **shots, "words": words, "blanks": tuple(plain["blanks"])})


def suits(wording: Wording, example: Classified, masked: bool) -> None:
    """Raise Refusal where a template and rows, or a kind of model, do not go together."""
    has = "{pair}" in wording.template
    if has != (example.pair is not None):
        what = "the template has {pair}, and the rows have one text each" if has else "the rows are pairs, and the template has no {pair}"
        raise Refusal(what, where="template", fix='"{text}\\n{pair}\\nAnswer: {label}"' if not has else "leave {pair} out, or name its column in data.columns")
    before, after = wording.template.split("{label}")
    if not masked and (found := SLOT.findall(after)):
        raise Refusal(f"{{{found[0]}}} stands after {{label}}, and this model reads from left to right", where="template", fix="{label} last")
    if not masked and not (before.strip() or wording.chat):
        raise Refusal("nothing stands before {label}", where="template", fix='"{text}\\nCategory: {label}"')
    if masked and wording.chat:
        raise Refusal("`chat: true`, and a masked model fills in a word: it does not answer", where="chat", fix="leave it out")


def words_for(labels: Sequence[str], given: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The words of every label, in the order of the labels; of a label that is not given, its own name. Raises Refusal for words that say nothing or two things."""
    if odd := [name for name in given if str(name) not in labels]:
        raise Refusal(f"words are given for {odd[0]!r}, which is no label", where="words", fix=f"the labels are {', '.join(labels[:12])}")
    found = {}
    for label in labels:
        said = given.get(label, label.replace("_", " "))
        found[label] = tuple(str(word).strip() for word in ([said] if isinstance(said, str) else said))
        if not found[label] or not all(found[label]):
            raise Refusal(f"there is no word for {label!r}", where="words", fix=f"words: {{{label}: [{label.lower()}]}}")
    owner: dict[str, str] = {}
    for label, words in found.items():
        for word in words:
            if owner.setdefault(word, label) != label:
                raise Refusal(f"{word!r} stands for {owner[word]} and for {label}", where="words", fix="a word of its own for each label")
    return found
