"""What arrives of the training rows: all of them, or a few of each class. This table is the recipe's vocabulary for streams."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from ..errors import Refusal


@dataclass(frozen=True)
class Single:
    """All rows, epoch after epoch."""

    draws: ClassVar[bool] = False  # whether the seed decides which rows are learnt from
    steps: ClassVar[int | None] = None  # the budget where the recipe names none; None: three epochs
    splits: ClassVar[int] = 3  # runs of an arm in a comparison, where it is not said

    def draw(self, examples: Sequence[Any], seed: int) -> list[Any]:
        return list(examples)


@dataclass(frozen=True)
class Few:
    """`k` rows of each label, drawn by the run's seed; of a label with fewer, all.

    One draw is noise: at 8 a class results of equal methods differ by 2 to 12 points (Tunstall et al. 2022, table 2), so a comparison draws ten times and
    its tests are paired by the draw. The budget is steps, since an epoch is a step or two, and nothing is chosen on the rows that judge, which are many.
    """

    k: Annotated[int, Ge(1)] = 8

    draws: ClassVar[bool] = True
    steps: ClassVar[int | None] = 100
    splits: ClassVar[int] = 10

    def draw(self, examples: Sequence[Any], seed: int) -> list[Any]:
        """In the order of the file. Every process draws the same rows."""
        of_label: dict[str, list[int]] = defaultdict(list)
        for i, example in enumerate(examples):
            of_label[label_of(example)].append(i)
        dice = random.Random(seed)
        chosen = [i for label in sorted(of_label) for i in dice.sample(of_label[label], min(self.k, len(of_label[label])))]
        return [examples[i] for i in sorted(chosen)]


def label_of(example: Any) -> str:
    labels = getattr(example, "labels", None) or (getattr(example, "label", None),)
    if len(labels) != 1 or labels[0] is None:
        raise Refusal(
            "`stream: few` draws rows of each label, and these rows have not one label each",
            where="stream",
            fix="task: classify or embed with a column of labels; or data.limit, which draws from all rows",
        )
    return str(labels[0])


STREAMS: dict[str, type[Single] | type[Few]] = {"single": Single, "few": Few}
