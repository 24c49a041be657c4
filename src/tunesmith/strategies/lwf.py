"""Learning without forgetting: what the network said of the new rows before it learnt from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ..core import Batch, Counts, Delta, Network, Objective, Ragged, Run, Signals, Source, Stage, Terms
from ..errors import Refusal
from .around import Around
from .strategy import Strategy, number

LABELS = {"ids", "label"}
Olds = dict[str, int]  # task -> how many outputs it had when the last stage ended


@dataclass
class Past:
    """`source`, whose batches also carry `past` (M, outputs): what was said of their rows when the stage began."""

    source: Any
    said: Callable[[], Ragged]

    @property
    def gives(self) -> frozenset[str]:
        return self.source.gives | {"past"}

    def fill(self, net: Network) -> None:
        self.source.fill(net)

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]:
        for batch in self.source.batches(net, start):
            yield batch.plus(past=self.said().pick(batch["row"].tolist()).to(batch["ids"].device))


class Recalling(Around):
    """`past`: strength x, summed over old heads, the distance of their outputs on new rows to what they were, over the outputs that they had then.

    moved   whether a step of this stage has been taken. Before it the distance has no gradient but the rounding of two forward passes, of which AdamW would make a
            step of its full size
    """

    def __init__(self, inner: Objective, strength: float, temperature: float, kinds: Mapping[str, str]):
        super().__init__(inner)
        self.strength, self.temperature, self.kinds = strength, temperature, kinds
        self.olds: Olds = {}
        self.moved = False

    def read(self, net: Network, batch: Batch) -> Signals:
        if "past" not in batch:
            return self.inner.read(net, batch)
        once = read_once(net, batch)
        signals = self.inner.read(net, once if self.inner.of(batch.task).needs <= LABELS else batch)  # others may listen to what happens in the blocks
        own = {batch.task: signals["logits"]} if "logits" in signals else {}
        return {**signals, "past": answers(net, once, self.olds, own)}

    def score(self, signals: Signals, batch: Batch) -> Terms:
        terms = self.inner.score(signals, batch)
        if "past" not in batch:
            return terms
        widths = list(self.olds.values())
        past = signals["past"] if self.moved else signals["past"].detach()
        pairs = zip(self.olds, batch["past"].split(widths, -1), past.split(widths, -1), strict=True)
        return {**terms, "past": self.strength * torch.stack([DISTANCES[self.kinds[task]](then, now, self.temperature) for task, then, now in pairs]).sum()}

    def count(self, batch: Batch) -> Counts:
        return {**self.inner.count(batch), **({"past": len(batch["past"])} if "past" in batch else {})}


def read_once(net: Network, batch: Batch) -> Batch:
    """The batch with what its trunk says, so that several heads read it at the price of one."""
    if "at" not in batch:
        return batch.plus(pooled=net.pooled(batch))
    return batch.plus(trunk=net.states(batch).values, floor=torch.full((len(batch),), net.anatomy.depth))


def answers(net: Network, once: Batch, olds: Olds, own: Mapping[str, Tensor]) -> Tensor:
    """(M, outputs of all old heads, side by side)."""
    said = {task: own[task] if task in own else net.logits(Batch(once.columns, task)) for task in olds}
    return torch.cat([said[task][:, :width].float() for task, width in olds.items()], -1)


def classes(then: Tensor, now: Tensor, heat: float) -> Tensor:
    """T^2 KL(then || now) at temperature T, summed."""
    return heat**2 * F.kl_div((now / heat).log_softmax(-1), (then / heat).log_softmax(-1), reduction="sum", log_target=True)


def several(then: Tensor, now: Tensor, heat: float) -> Tensor:
    """The same of each class' yes or no, a mean over classes."""
    p = (then / heat).sigmoid()
    cross = lambda logits: F.binary_cross_entropy_with_logits(logits / heat, p, reduction="sum")
    return heat**2 * (cross(now) - cross(then)) / then.shape[-1]


def numbers(then: Tensor, now: Tensor, heat: float) -> Tensor:
    return (then - now).square().sum()


DISTANCES = {"single": classes, "tag": classes, "multi": several, "score": numbers}


@dataclass
class LwF(Strategy):
    """New rows are also to be answered as the network answered them before: by the old labels of its head, or by its old heads (Li & Hoiem 2016, section 3).

    Where one head has all labels, new ones are told apart among themselves (see InTurn, `among`), as in the paper, whose tasks have outputs of their own.
    Asked once a row, at rest, at the start of each stage; no old row is kept. The paper's lambda is 1, and it has no factor T^2, without which the term
    fades as T grows.

    strength     of each old head
    temperature  T
    """

    strength: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 2.0

    paper: ClassVar[str] = "Li & Hoiem 2016, https://arxiv.org/abs/1606.09282"
    tasks: ClassVar[tuple[str, ...]] = ("classify", "tag", "score")
    hears: ClassVar[bool] = True
    rows: ClassVar[bool] = True
    anchors: ClassVar[bool] = True
    among: ClassVar[str] = "stage"

    def __post_init__(self) -> None:
        self.sources: list[Any] = []
        self.held = Held()

    def meet(self, net: Network, delta: Delta, kinds: Mapping[str, str]) -> None:
        self.kinds = kinds
        if odd := [kind for kind in kinds.values() if kind not in DISTANCES]:
            raise Refusal(f"`strategy: lwf` and rows of kind {odd[0]}", where="strategy", fix="strategy: replay")

    def source(self, source: Any, stage: int) -> tuple[Source, int]:
        self.sources.append(source)
        return (Past(source, lambda: self.held.said) if stage and self.strength else source), 1

    def objective(self, learn: Objective) -> Objective:
        self.learn = Recalling(learn, self.strength, self.temperature, self.kinds) if self.strength else None
        return self.learn or learn

    def begin(self, run: Run, stage: Stage) -> None:
        """On the network as the last stage left it; where a run continues within a stage, what was said then is there."""
        i = number(run, stage)
        if self.learn:
            self.learn.olds = self.held.olds
        if i and self.learn and self.held.stage != i:
            self.held.ask(self.sources[i], run.net, i)
            self.learn.moved = False

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        if self.learn:
            self.learn.moved = True

    def end(self, run: Run, stage: Stage) -> None:
        self.held.olds |= dict([width_of(self.sources[number(run, stage)], run.net)])

    def state(self) -> Mapping[str, Any]:
        return {"stage": self.held.stage, "olds": list(self.held.olds.items()), "moved": bool(self.learn and self.learn.moved)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.held.stage, self.held.olds = state["stage"], dict(state["olds"])
        if self.learn:
            self.learn.moved = state["moved"]

    def tensors(self) -> Mapping[str, Tensor]:
        return {"said": self.held.said.values, "lengths": torch.tensor(self.held.said.lengths)}

    def recall(self, tensors: Mapping[str, Tensor]) -> None:
        self.held.said = Ragged(tensors["said"], tuple(tensors["lengths"].tolist()))


@dataclass
class Held:
    """What was said of the rows of stage `stage`, by row of its table; a run of positions a row."""

    stage: int = 0
    olds: Olds = field(default_factory=dict)
    said: Ragged = field(default_factory=lambda: Ragged(torch.zeros(0, 0), ()))

    @torch.no_grad()
    def ask(self, source: Any, net: Network, stage: int) -> None:
        was, found = net.training, dict[int, Tensor]()
        net.eval()
        for batch in source.once(net):
            lengths = batch.ragged("at").lengths if "at" in batch else (1,) * len(batch)
            said = answers(net, read_once(net, batch), self.olds, {}).cpu().split(list(lengths))
            found |= zip(batch["row"].tolist(), said, strict=True)
        net.train(was)
        rows = [found[i] for i in range(len(found))]
        self.said, self.stage = Ragged(torch.cat(rows), tuple(map(len, rows))), stage


@torch.no_grad()
def width_of(source: Any, net: Network) -> tuple[str, int]:
    """The task of a stage, and how many outputs its head has by now."""
    was = net.training
    net.eval()
    batch = next(iter(source.once(net)))
    width = net.logits(batch.take(0, 1)).shape[-1]
    net.train(was)
    return batch.task, width
