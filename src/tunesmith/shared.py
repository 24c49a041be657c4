"""What runs on the same model and data need only once: the rows, the loaded base, and the states of its frozen trunk."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from .curriculum import read_all
from .dataset import Dataset
from .networks.heads import HeadSpec
from .networks.load import add_head, load_network
from .networks.transformer import Transformer
from .objectives import OBJECTIVES
from .recipe import Recipe
from .sources.answers import Stored


def device_of(recipe: Recipe) -> torch.device:
    if recipe.device != "auto":
        return torch.device(recipe.device)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def head_spec(recipe: Recipe, data: Dataset) -> HeadSpec:
    """What begins by the answers begins by those of the first part: later ones may come to a run that was over."""
    h, first = recipe.head, next(iter(data.each.values()))
    return HeadSpec(data.task.outputs, h.kind, h.hidden, h.dropout, usual(first), *unit(first))


def usual(data: Dataset) -> float | None:
    """Of the words to tag, the share that are no entity."""
    if data.task.kind != "tag" or data.task.outputs < 2:
        return None
    known = set(data.task.labels)
    tags = [t for e in data.train.examples for t in e.tags if t in known]  # type: ignore[union-attr]
    return tags.count("O") / len(tags) if tags else None


def unit(data: Dataset) -> tuple[float, float]:
    """Of the numbers to learn, the mean and the standard deviation; (0, 1) where there are none."""
    found = data.train.examples if data.task.kind == "score" else ()
    scores: list[float] = [e.score for e in found if math.isfinite(e.score)]  # type: ignore[union-attr,arg-type,misc]
    return (statistics.fmean(scores), statistics.pstdev(scores) or 1.0) if scores else (0.0, 1.0)


def add_heads(net: Transformer, recipe: Recipe, data: Dataset) -> None:
    """Those of all tasks; tasks of one key share one."""
    for name, one in data.each.items():
        if one.task.outputs and one.task.key not in net.heads:
            add_head(net, one.task.key, head_spec(recipe.each().get(name, recipe), one), recipe.seed)


@dataclass
class Shared:
    """Runs take turns on one base: each finds it as it was loaded, bit for bit, and is the run that it would be alone.

    keeps    hold on to what the next run may need; a run of its own needs not
    base     the base that is loaded, by what decides it, and the pooling it would choose itself; one at a time
    answers  what teachers said, by what was asked
    states   by part of the data: the floor above which they were asked for last, and the store
    """

    keeps: bool = False
    rows: dict[str, Dataset] = field(default_factory=dict)
    base: tuple[str, Transformer, str] | None = None
    answers: dict[str, Stored] = field(default_factory=dict)
    states: dict[str, tuple[tuple[object, ...], dict[int, Tensor]]] = field(default_factory=dict)

    def data(self, recipe: Recipe) -> Dataset:
        if not self.keeps:
            return read_all(recipe)
        seed = recipe.seed if recipe.built_stream().draws else None
        tasks = {name: asdict(task) for name, task in recipe.tasks.items()}
        read = [asdict(recipe.model), recipe.task, asdict(recipe.data), tasks, dict(recipe.stream), seed, recipe.built_method().positions]
        key = json.dumps([*read, self.words(recipe)])
        if key not in self.rows:
            self.rows[key] = read_all(recipe)
        return self.rows[key]

    def words(self, recipe: Recipe) -> list[object]:
        """What else decides how rows are read, where they are asked about in words."""
        worded = OBJECTIVES[recipe.objective["kind"]].rows
        return [dict(recipe.objective), dict(recipe.method), recipe.seed] if worded else []

    @contextmanager
    def lent(self, recipe: Recipe, data: Dataset) -> Iterator[Transformer]:
        """The base with the head of this recipe, which draws from its seed alone. Who borrows it takes off what else he puts on."""
        try:
            yield self.dressed(recipe, data)
        except BaseException:
            self.base = None  # a run that breaks off may leave anything behind
            raise
        if not self.keeps:
            self.base = None

    def dressed(self, recipe: Recipe, data: Dataset) -> Transformer:
        key = json.dumps([asdict(recipe.model), recipe.generates, data.worded, recipe.dropout, str(device_of(recipe))])
        if self.base is None or self.base[0] != key:
            self.base = None  # before the next is loaded
            net = load_network(
                data.source,
                generates=recipe.generates,
                worded=data.worded,
                device=device_of(recipe),
                dropout=recipe.dropout,
                tokenizer=data.reader.tokenizer,
            )
            self.base = (key, net, net.pool)
        _, net, pool = self.base
        net.eval()
        net.heads.clear()
        vars(net).pop("logits", None)  # which a strategy may have stood before
        net.compute, net.room.kernel = torch.float32, "matmul"
        net.pool, net.labels = recipe.head.pool or pool, data.task.labels  # type: ignore[assignment]
        add_heads(net, recipe, data)
        return net

    def store(self, part: str, data: Dataset, net: Transformer, floor: int, pooled: bool) -> dict[int, Tensor]:
        """Where states that enter block `floor` lie, by row. Those of another floor are let go: arms that share one follow each other."""
        key = (id(data), floor, pooled and net.pool, net.compute, net.room.kernel)
        if not self.keeps or part not in self.states or self.states[part][0] != key:
            self.states[part] = (key, {})
        return self.states[part][1]
