"""What arrives, when: all rows, a few of each class, several tasks at once, or one after the other. This table is the recipe's vocabulary for streams."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from ..core import Source, Stage
from ..errors import Refusal
from .mix import Mix, Union, probabilities, shares
from .table import Table


@dataclass(frozen=True)
class Plan:
    """What stages are made by.

    lengths  (tables, batches an epoch) -> steps in all, and an epoch
    around   (source, number of the stage) -> what is trained on in it, and batches a step
    joint    all that would come one after the other comes at once
    """

    lengths: Callable[[Sequence[Table], int], tuple[int, int]]
    around: Callable[[Any, int], tuple[Source, int]] = lambda source, stage: (source, 1)
    joint: bool = False
    seed: int = 0


class Stream(ABC):
    """Frozen dataclasses of options.

    draws    the seed decides which rows are learnt from
    chooses  the best evaluation may be kept
    several  it knows several tasks
    grows    tasks may be added to a run that is over
    steps    the budget where the recipe names none; None: three epochs
    splits   runs of an arm in a comparison, where it is not said
    """

    draws: ClassVar[bool] = False
    chooses: ClassVar[bool] = True
    several: ClassVar[bool] = False
    grows: ClassVar[bool] = False
    steps: ClassVar[int | None] = None
    splits: ClassVar[int] = 3

    def draw(self, examples: Sequence[Any], seed: int) -> list[Any]:
        return list(examples)

    def parts(self, tasks: Mapping[str, Any]) -> bool:
        """Whether these tasks, or its options, give it more than one part."""
        return len(tasks) > 1

    def sizes(self, rows: Mapping[str, int], batch: int, joint: bool) -> dict[str, int]:
        """Examples of each task a batch, given how many each has."""
        return dict.fromkeys(rows, batch)

    @abstractmethod
    def stages(self, sources: Mapping[str, Any], plan: Plan) -> list[Stage]:
        """Of the sources of the tasks, in the order of the recipe."""


def alone(sources: Mapping[str, Any], plan: Plan) -> list[Stage]:
    (source,) = sources.values()
    return [Stage("train", source, *plan.lengths([source.table], source.period))]


@dataclass(frozen=True)
class Single(Stream):
    """All rows, epoch after epoch."""

    def stages(self, sources: Mapping[str, Any], plan: Plan) -> list[Stage]:
        return alone(sources, plan)


@dataclass(frozen=True)
class Few(Stream):
    """`k` rows of each label, drawn by the run's seed; of a label with fewer, all.

    One draw is noise: at 8 a class results of equal methods differ by 2 to 12 points (Tunstall et al. 2022, table 2), so a comparison draws ten times and
    its tests are paired by the draw. The budget is steps, since an epoch is a step or two, and nothing is chosen on the rows that judge, which are many.
    """

    k: Annotated[int, Ge(1)] = 8

    draws: ClassVar[bool] = True
    chooses: ClassVar[bool] = False
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

    def stages(self, sources: Mapping[str, Any], plan: Plan) -> list[Stage]:
        return alone(sources, plan)


def label_of(example: Any) -> str:
    labels = getattr(example, "labels", None) or (getattr(example, "label", None),)
    if len(labels) != 1 or labels[0] is None:
        raise Refusal(
            "`stream: few` draws rows of each label, and these rows have not one label each",
            where="stream",
            fix="task: classify or embed with a column of labels; or data.limit, which draws from all rows",
        )
    return str(labels[0])


@dataclass(frozen=True)
class Mixed(Stream):
    """Several tasks at once.

    temperature, cap   a task of n rows has the share min(n, cap)^(1 / temperature): 1 by size, the larger the more equal
    batches            `mixed`: every step holds rows of all tasks, in these shares; `one_task`: of one, drawn with these probabilities
    mean               `task`: each task's loss is a mean over its own units, whatever their number; `global`: over the units of all, so that long answers weigh more
    """

    temperature: Annotated[float, Ge(1)] = 1.0
    cap: Annotated[int, Ge(1)] | None = None
    batches: Literal["mixed", "one_task"] = "mixed"
    mean: Literal["task", "global"] = "task"

    several: ClassVar[bool] = True

    def sizes(self, rows: Mapping[str, int], batch: int, joint: bool) -> dict[str, int]:
        p = probabilities(list(rows.values()), self.temperature, self.cap)
        return dict(zip(rows, shares(batch, p), strict=True)) if self.batches == "mixed" else dict.fromkeys(rows, batch)

    def stages(self, sources: Mapping[str, Any], plan: Plan) -> list[Stage]:
        tables = [source.table for source in sources.values()]
        p = probabilities([len(table.examples) for table in tables], self.temperature, self.cap)
        mix = mixed(sources, plan, p if self.batches == "one_task" else None)
        return [Stage("train", mix, *plan.lengths(tables, mix.period), mix.width)]


@dataclass(frozen=True)
class InTurn(Stream):
    """Tasks, or the parts of one, one after the other; after each, all are asked how they stand. The budget is of each stage.

    by        the column of the training file whose values tell the parts apart, in the order in which they first occur; `label`: its labels themselves
    into      how many parts the values are laid together in; None: one a value
    order     the values in another order
    scenario  `class`: one head, to which new labels come (class-incremental); `task`: a head each, and whose task a row is, is known when it is judged;
              `domain`: one head, the same labels throughout (van de Ven & Tolias 2019, table 1). None: what the labels say
    among     where labels come to one head, what the label of a new row is told apart from: `all` labels so far, or those of its `stage`, so that new rows do not
              push old labels down (ER-ACE, Caccia et al. 2022). None: as the strategy has it, which is `all` for all but lwf and olora
    """

    by: str | None = None
    into: Annotated[int, Ge(2)] | None = None
    order: tuple[str, ...] = ()
    scenario: Literal["class", "task", "domain"] | None = None
    among: Literal["all", "stage"] | None = None

    several: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    chooses: ClassVar[bool] = False

    def parts(self, tasks: Mapping[str, Any]) -> bool:
        return bool(self.by) != (len(tasks) > 1)

    def sizes(self, rows: Mapping[str, int], batch: int, joint: bool) -> dict[str, int]:
        return dict(zip(rows, shares(batch, probabilities(list(rows.values()), 1.0, None)), strict=True)) if joint else dict.fromkeys(rows, batch)

    def stages(self, sources: Mapping[str, Any], plan: Plan) -> list[Stage]:
        if plan.joint:
            mix, tables = mixed(sources, plan, None), [source.table for source in sources.values()]
            size = sum(table.size for table in tables)  # a batch of all, as large as a stage's would be
            steps = sum(plan.lengths([table], -(-len(table.examples) // size))[0] for table in tables)
            one = len({table.task for table in tables}) == 1
            return [Stage("all at once", Union(mix) if one else mix, steps, mix.period, 1 if one else mix.width)]
        made = []
        for i, (name, source) in enumerate(sources.items()):
            around, width = plan.around(source, i)
            made.append(Stage(name, around, *plan.lengths([source.table], source.period), width))
        return made


def mixed(sources: Mapping[str, Any], plan: Plan, drawn: tuple[float, ...] | None) -> Mix:
    """An epoch has as many batches as all rows need."""
    tables = [source.table for source in sources.values()]
    size = tables[0].size if drawn else sum(table.size for table in tables)
    return Mix(sources, -(-sum(len(table.examples) for table in tables) // size), drawn, plan.seed)


STREAMS: dict[str, type[Stream]] = {"single": Single, "few": Few, "mix": Mixed, "sequence": InTurn}
