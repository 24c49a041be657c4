"""Who is asked, which texts may answer, and which of those are neither right nor wrong: what a contrastive loss needs to know of a batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Batch


@dataclass(frozen=True)
class Contest:
    """Q rows are asked, A rows may answer, each a text of its own: a text that stands in a batch several times answers once.

    right  of each that is asked, the index of the answer
    apart  (question, answer) that are neither right nor wrong: the text that is asked itself, what it is right with elsewhere in the batch, and answers of its label
    """

    asked: Sequence[int]
    answers: Sequence[int]
    right: Sequence[int]
    apart: Sequence[tuple[int, int]]

    def barred(self, like: Tensor) -> Tensor:
        """(Q, A) bool: the answers that do not count as wrong, besides the right one."""
        mask = torch.zeros(len(self.asked), len(self.answers), dtype=torch.bool, device=like.device)
        if self.apart:
            rows, columns = zip(*self.apart, strict=True)
            mask[torch.tensor(rows, device=like.device), torch.tensor(columns, device=like.device)] = True
        return mask

    @property
    def wrong(self) -> list[int]:
        """How many wrong answers each that is asked could get."""
        found = [len(self.answers) - 1] * len(self.asked)
        for i, _ in self.apart:
            found[i] -= 1
        return found


def contest(texts: Sequence[int], asked: Sequence[int], right: Sequence[int], others: Sequence[int] = (), alike: Sequence[int] = ()) -> Contest:
    """Row asked[i] is answered by row right[i]; `others` are wrong for everybody. `texts` says of every row which text it is, `alike` which label it has, if any."""
    index: dict[int, int] = {}
    answers: list[int] = []
    for row in (*right, *others):
        if texts[row] not in index:
            index[texts[row]] = len(answers)
            answers.append(row)
    partners: dict[int, set[int]] = defaultdict(set)
    for a, b in zip(asked, right, strict=True):
        partners[texts[a]].add(texts[b])
    of_label: dict[int, set[int]] = defaultdict(set)
    for row in answers if alike else ():
        of_label[alike[row]].add(texts[row])
    of_label.pop(-1, None)
    apart = [
        (i, index[text])
        for i, (a, b) in enumerate(zip(asked, right, strict=True))
        for text in sorted({texts[a], *partners[texts[a]], *(of_label.get(alike[a], ()) if alike else ())} - {texts[b]})
        if text in index
    ]
    return Contest(asked, answers, [index[texts[row]] for row in right], apart)


def of_pairs(batch: Batch, backwards: bool = False) -> Contest:
    """Anchors (side 0) ask for their positives (side 1) among all positives and negatives; backwards, positives ask for their anchors."""
    sides, texts, alike = batch.numbers("side"), batch.numbers("text"), batch.numbers("alike") if "alike" in batch else ()
    anchors, positives = ([i for i, s in enumerate(sides) if s == side] for side in (0, 1))
    if backwards:
        return contest(texts, positives, anchors, alike=alike)
    return contest(texts, anchors, positives, [i for i, s in enumerate(sides) if s > 1], alike)


def of_views(batch: Batch) -> Contest:
    """Each text asks for itself as it was read again; of B rows, the second reading of row i is row B + i."""
    texts, n = batch.numbers("text"), len(batch)
    return contest([*texts, *texts], range(n), range(n, 2 * n))


@dataclass(frozen=True)
class Classes:
    """Rows that ask for others of their label among A rows, each a text of its own. Asked are those to whom a right answer is there; with `wrong`, a wrong one too."""

    asked: Sequence[int]
    answers: Sequence[int]
    same: Tensor  # (Q, A) bool: of its label, and another text
    own: Tensor  # (Q, A) bool: the text that asks


def of_labels(batch: Batch, wrong: bool = False) -> Classes:
    """A text that stands in a batch several times answers once, with the label that it has first."""
    texts, labels = batch.numbers("text"), batch.numbers("label")
    answers = firsts(texts)
    by_label: dict[int, set[int]] = defaultdict(set)
    for row in answers:
        by_label[labels[row]].add(texts[row])
    asked = [
        i
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
        if by_label[label] - {text} and (not wrong or any(found - {text} for other, found in by_label.items() if other != label))
    ]
    return between(texts, labels, asked, answers)


def of_texts(batch: Batch) -> Classes:
    """Every text of the batch, once, asks every other."""
    texts = batch.numbers("text")
    rows = firsts(texts)
    return between(texts, batch.numbers("label"), rows, rows)


def firsts(texts: Sequence[int]) -> list[int]:
    """The first row of each text."""
    first: dict[int, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(text, row)
    return list(first.values())


def between(texts: Sequence[int], labels: Sequence[int], asked: Sequence[int], answers: Sequence[int]) -> Classes:
    pick = lambda column, rows: torch.tensor([column[i] for i in rows], dtype=torch.long)  # of numbers, so that it may be rehearsed
    own = pick(texts, asked)[:, None] == pick(texts, answers)
    return Classes(asked, answers, (pick(labels, asked)[:, None] == pick(labels, answers)) & ~own, own)


def comparable(batch: Batch) -> bool:
    """Whether some text has both a right and a wrong answer: a label with two texts, and another label. In one pass over the rows."""
    by_label: dict[int, set[int]] = defaultdict(set)
    for text, label in zip(batch.numbers("text"), batch.numbers("label"), strict=True):
        by_label[label].add(text)
    return len(by_label) > 1 and any(len(found) > 1 for found in by_label.values())
