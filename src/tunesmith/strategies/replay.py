"""Old examples among the new: replay, dark experience replay, and both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from ..core import Batch, Counts, Delta, Network, Objective, Ragged, Run, Signals, Source, Stage, Terms
from ..errors import Refusal
from .around import Around
from .memory import Balance, Memory
from .strategy import Strategy, number

Weight = Annotated[float, Ge(0)]
Size = Annotated[int, Ge(1)]
HEADS = ("single", "multi", "score", "tag", "reward")  # kinds of rows whose answer is a head's outputs


@dataclass
class Replayed:
    """Each step a batch of the source, then what is drawn from the memory: one batch a task that it holds, twice where the outputs are replayed apart from the labels.

    What is drawn is a function of (seed, stage, step) and of the memory. `tasks`: how many the memory holds in this stage.
    """

    source: Any
    memory: Memory
    stage: int
    tasks: int
    size: int
    keeps: tuple[bool, ...]  # of each draw: whether its outputs (`dark`) come along

    @property
    def gives(self) -> frozenset[str]:
        return self.source.gives

    @property
    def width(self) -> int:
        return 1 + len(self.keeps) * self.tasks

    def fill(self, net: Network) -> None:
        self.source.fill(net)

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]:
        new = self.source.batches(net, start // self.width)
        steps = (batch for step in count(start // self.width) for batch in (next(new), *self.drawn(step)))
        return islice(steps, start % self.width, None)

    def drawn(self, step: int) -> Iterator[Batch]:
        table = self.source.table
        for k, dark in enumerate(self.keeps):
            dice = torch.Generator().manual_seed(((table.seed * 1_000_003 + self.stage) * 1_000_003 + step * 2 + k) & 0x7FFF_FFFF_FFFF)
            for batch in self.memory.draw(self.size, dice):
                columns = {name: column for name, column in batch.columns.items() if dark or name != "dark"}
                yield Batch(columns, batch.task).to(table.device)


class Replaying(Around):
    """The terms of new rows, and beside them those of replayed ones under names of their own, each a mean over its own rows.

    replay  strength x what `inner` says of old rows. Where the memory holds several tasks, `replay.task`: the task's own mean times its share of the rows drawn.
            So new and old rows weigh as the strength says, however long the old ones are, and a task of long answers weighs by its rows, not its tokens.
    dark    alpha x squared difference of the outputs to those at the end of their stage, a mean over the classes that were known then
    """

    def __init__(self, inner: Objective, strength: float, alpha: float, several: bool):
        super().__init__(inner)
        self.strength, self.alpha, self.several = strength, alpha, several

    def read(self, net: Network, batch: Batch) -> Signals:
        return {"logits": net.logits(batch)} if "dark" in batch else self.inner.read(net, batch)

    def score(self, signals: Signals, batch: Batch) -> Terms:
        if "replayed" not in batch:
            return self.inner.score(signals, batch)
        share = batch["replayed"][0]
        if "dark" in batch:
            return {self.named("dark", batch): self.alpha * share * apart(signals["logits"], batch.ragged("dark"))}
        return {self.named("replay", batch, term): self.strength * share * v for term, v in self.inner.score(signals, batch).items()}

    def count(self, batch: Batch) -> Counts:
        if "replayed" not in batch:
            return self.inner.count(batch)
        if "dark" in batch:
            return {self.named("dark", batch): len(batch)}
        return {self.named("replay", batch, term): v for term, v in self.inner.count(batch).items()}

    def named(self, what: str, batch: Batch, term: str = "") -> str:
        own = term.removeprefix(batch.task).removeprefix(".")
        return ".".join([what, *([batch.task] if self.several else []), *([own] if own else [])])


def apart(logits: Tensor, dark: Ragged) -> Tensor:
    """Summed over rows: the mean squared difference over a row's positions and the classes known to it. logits (M, C), dark (M, K) with NaN for what was not known, K <= C."""
    then = dark.values
    known = then.isfinite()
    squares = torch.where(known, logits[:, : then.shape[1]] - then.nan_to_num(), 0.0).square().sum(1) / known.sum(1)
    lengths = torch.tensor(dark.lengths, device=then.device)
    return (squares / lengths.repeat_interleave(lengths, output_size=len(squares))).sum()


@dataclass
class Remembering(Strategy):
    """What strategies with a memory have in common.

    size     examples that are kept, at most
    balance  `reservoir`: uniform over all examples so far; `class`: as many of each label
    batch    old examples a step; None: as many as new ones
    """

    size: Size = 500
    balance: Balance = "reservoir"
    batch: Size | None = None

    rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.memory = Memory(self.size, self.balance)
        self.sources: list[Any] = []
        self.keys: list[str] = []

    @property
    def draws(self) -> tuple[bool, ...]:
        """Whether each draw of a step brings its outputs along."""
        raise NotImplementedError

    def meet(self, net: Network, delta: Delta, kinds: Mapping[str, str]) -> None:
        self.keys = list(kinds)
        if self.size < len(kinds):
            raise Refusal(f"a memory of {self.size} examples for {len(kinds)} tasks", where="strategy.size", fix=f"size: {50 * len(kinds)}")

    def source(self, source: Any, stage: int) -> tuple[Source, int]:
        self.sources.append(source)
        old = len({one.table.task for one in self.sources[:-1]})
        if not (old and self.draws):
            return source, 1
        replayed = Replayed(source, self.memory, stage, old, self.batch or source.table.size, self.draws)
        return replayed, replayed.width

    def end(self, run: Run, stage: Stage) -> None:
        i = number(run, stage)
        self.memory.learn(self.sources[i], run.net, i, run.seed, outputs if any(self.draws) else None)

    def tensors(self) -> Mapping[str, Tensor]:
        return self.memory.tensors()

    def recall(self, tensors: Mapping[str, Tensor]) -> None:
        self.memory.recall(tensors, self.keys)


@dataclass
class Replay(Remembering):
    """Beside each batch of new rows one of old rows, from a memory that is filled at the end of each stage (experience replay, Chaudhry et al. 2019; section 3).

    weight  of the old rows' mean loss beside the new rows'; 0 is naive
    """

    weight: Weight = 1.0

    paper: ClassVar[str] = "Chaudhry et al. 2019, https://arxiv.org/abs/1902.10486"

    @property
    def draws(self) -> tuple[bool, ...]:
        return (False,) if self.weight else ()

    def objective(self, learn: Objective) -> Objective:
        return Replaying(learn, self.weight, 0.0, several=len(self.keys) > 1) if self.draws else learn


def outputs(net: Network, batch: Batch) -> Ragged:
    """(M, C): what the head says at rest, one run a row."""
    logits = net.logits(batch).float()
    return Ragged(logits, batch.ragged("at").lengths if "at" in batch else (1,) * len(batch))


@dataclass
class Der(Remembering):
    """Old rows keep the outputs that they had when their stage ended (dark experience replay, Buzzega et al. 2020, equation 5).

    The outputs are those at rest, without dropout; the paper stores those of the training pass at which a row came in.

    alpha   weight of the mean squared difference over rows and known classes
    weight  of the old rows' labels: none, which is what sets it apart from derpp
    """

    weight: Weight = 0.0
    alpha: Weight = 0.3

    paper: ClassVar[str] = "Buzzega et al. 2020, https://arxiv.org/abs/2004.07211"
    tasks: ClassVar[tuple[str, ...]] = ("classify", "tag", "score")
    hears: ClassVar[bool] = True

    @property
    def draws(self) -> tuple[bool, ...]:
        return (*((True,) if self.alpha else ()), *((False,) if self.weight else ()))

    def objective(self, learn: Objective) -> Objective:
        return Replaying(learn, self.weight, self.alpha, several=len(self.keys) > 1) if self.draws else learn

    def meet(self, net: Network, delta: Delta, kinds: Mapping[str, str]) -> None:
        super().meet(net, delta, kinds)
        if odd := [task for task, kind in kinds.items() if kind not in HEADS]:
            raise Refusal(f"`strategy: der` keeps the outputs of a head, and {odd[0]} has none", where="strategy", fix="strategy: replay")


@dataclass
class Derpp(Der):
    """Old rows keep their outputs and, on a second draw, their labels (DER++, Buzzega et al. 2020, equation 6). `weight` is the paper's beta."""

    weight: Weight = 0.5
