"""What a row becomes: one frozen class a task, all with `row`, the index into Records that says where it came from."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = "(unlabelled)"  # the label, or each tag, of a row for a teacher to label


@dataclass(frozen=True)
class Classified:
    """A text, or a pair of them, and its labels: one for single-label data, any number for multi-label data."""

    text: str
    pair: str | None
    labels: tuple[str, ...]
    row: int


@dataclass(frozen=True)
class Tagged:
    """Words with BIO tags, three tuples of one length. `spaces[i]`: a space follows word i in the text."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    spaces: tuple[bool, ...]
    row: int

    @property
    def text(self) -> str:
        return "".join(token + " " * space for token, space in zip(self.tokens, self.spaces))


@dataclass(frozen=True)
class Scored:
    """A text, or a pair of them, and a finite number in the data's own unit."""

    text: str
    pair: str | None
    score: float
    row: int


@dataclass(frozen=True)
class Turn:
    """One turn of a dialogue. `role` is system, user or assistant; `learn`: loss is taken on it."""

    role: str
    content: str
    learn: bool


@dataclass(frozen=True)
class Dialogue:
    """Turns, of which at least one is to be learnt."""

    turns: tuple[Turn, ...]
    row: int


@dataclass(frozen=True)
class Plain:
    text: str
    row: int


@dataclass(frozen=True)
class Preferred:
    """Two dialogues that differ in their last answer: `chosen` is the better one."""

    chosen: Dialogue
    rejected: Dialogue
    row: int


@dataclass(frozen=True)
class Judged:
    """A dialogue whose last answer somebody found good or not."""

    dialogue: Dialogue
    good: bool
    row: int


@dataclass(frozen=True)
class Related:
    """Texts to embed: an anchor, then what means the same, then what does not; or two with a score; or one, with a label or without."""

    texts: tuple[str, ...]
    row: int
    score: float | None = None
    label: str | None = None


Example = Classified | Tagged | Scored | Dialogue | Plain | Preferred | Judged | Related
