"""A delta a stage, and for each row the one whose texts it resembles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Batch, Delta, Network, Run, Source, Stage
from ..updates import Form
from .strategy import Strategy, number

PLACE = "_routes"  # among the heads: so it lies above every block, and a checkpoint and the artifact hold it as they hold a head
Logits = Callable[[Batch], Tensor]


class Routes(nn.Module):
    """What stages left behind, as buffers.

    centroids (K, D)  unit vectors: means of the base's pooled states by label of a stage, or, of rows without one label each, of the stage
    stage (K,)        whose they are; -1: not come yet
    current ()        the stage that the network itself is of
    `k:name`          parameter `name` as stage k left it; as it began where it came later (the head of a later task)
    """

    def __init__(self, params: Mapping[str, Tensor], stages: int, centroids: int, width: int):
        super().__init__()
        self.stages, self.names = stages, list(params)
        self.register_buffer("centroids", torch.zeros(centroids, width))
        self.register_buffer("stage", torch.full((centroids,), -1))
        self.register_buffer("current", torch.tensor(-1))
        for k in range(stages):
            for name, p in params.items():
                self.register_buffer(key_of(k, name), p.detach().clone().float())

    def kept(self, k: int) -> dict[str, Tensor]:
        return {name: self.get_buffer(key_of(k, name)) for name in self.names}

    def nearest(self, pooled: Tensor) -> Tensor:
        """(B,): the stage of the nearest centroid, by cosine, of those that have come."""
        likeness = F.normalize(pooled.float(), dim=-1) @ self.get_buffer("centroids").T
        stage = self.get_buffer("stage")
        return stage[likeness.masked_fill(stage < 0, -torch.inf).argmax(-1)]


def key_of(k: int, name: str) -> str:
    return f"{k}:{name.replace('.', ':')}"


class Router:
    """Stands before the network's logits. In training they are the present stage's; at rest, each row's are those of the stage it is sent to."""

    def __init__(self, net: Network, delta: Delta, routes: Routes, whose: Mapping[str, int]):
        self.net, self.delta, self.routes, self.whose = net, delta, routes, whose
        self.plain: Logits = type(net).logits.__get__(net)
        net.heads[PLACE] = routes
        net.logits = self.logits  # type: ignore[method-assign]
        self.delta.added |= {f"heads.{PLACE}.{name}" for name in routes.state_dict()}

    def logits(self, batch: Batch) -> Tensor:
        if self.net.training or int(self.routes.get_buffer("current")) < 0:
            return self.plain(batch)
        to = self.sent(batch)
        parts: list[Tensor] = []
        places: list[int] = []
        lengths = batch.ragged("at").lengths if "at" in batch else (1,) * len(batch)
        spots = torch.arange(sum(lengths)).split(list(lengths))
        for k in sorted(set(to)):
            rows = [i for i, stage in enumerate(to) if stage == k]
            with self.lent(k):
                parts.append(self.plain(batch.pick(rows)))
            places += [spot for i in rows for spot in spots[i].tolist()]
        found = torch.cat(parts)
        return torch.empty_like(found).index_copy(0, torch.tensor(places, device=found.device), found)

    def sent(self, batch: Batch) -> list[int]:
        """A stage a row. Where each task has a head of its own, whose a row is, is known."""
        if batch.task in self.whose:
            return [min(self.whose[batch.task], int(self.routes.get_buffer("current")))] * len(batch)
        return self.routes.nearest(self.base(batch)).tolist()

    @torch.no_grad()
    def base(self, batch: Batch) -> Tensor:
        with self.delta.absent(cast=True):
            return self.net.pooled(batch)

    @contextmanager
    def lent(self, k: int) -> Iterator[None]:
        """The network as stage k left it."""
        if k == int(self.routes.get_buffer("current")):
            yield
            return
        params = self.delta.parameters()
        here = {name: p.data for name, p in params.items()}
        for name, value in self.routes.kept(k).items():
            params[name].data = value
        try:
            yield
        finally:
            for name, value in here.items():
                params[name].data = value


@dataclass
class Route(Strategy):
    """Each stage learns a delta of its own, and a row is sent to the stage whose texts it resembles (expert gate, Aljundi et al. 2017).

    Past deltas and heads do not change, so nothing is forgotten; what can go wrong is the way: to the stage of the nearest centroid of the base's pooled states,
    one a label (the nearest class mean of Rebuffi et al. 2017, section 3.1, in the place of the paper's autoencoders). It is judged as it predicts, by that way;
    only with a head for each task is whose a row is known.

    The artifact holds every stage's delta and the centroids, hence with `method: full` as many models as stages.
    """

    paper: ClassVar[str] = "Aljundi et al. 2017, https://arxiv.org/abs/1611.06194"
    tasks: ClassVar[tuple[str, ...]] = ("classify", "tag", "score")
    hears: ClassVar[bool] = True
    rows: ClassVar[bool] = True
    base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.sources: list[Any] = []

    def meet(self, net: Network, delta: Delta, kinds: Mapping[str, str]) -> None:
        self.net, self.delta, self.keys = net, delta, list(kinds)
        self.afresh = {n: p.detach().clone() for n, p in delta.parameters().items()}

    def source(self, source: Any, stage: int) -> tuple[Source, int]:
        self.sources.append(source)
        return source, 1

    def form(self, form: Form) -> Form:
        """All stages are known by now."""
        centroids = sum(len(labels_of(source.table)) for source in self.sources)
        routes = Routes(self.delta.parameters(), len(self.sources), centroids, self.net.anatomy.width).to(next(iter(self.net.parameters())).device)
        self.router = Router(self.net, self.delta, routes, {key: k for k, key in enumerate(self.keys)} if len(self.keys) > 1 else {})
        return form

    @torch.no_grad()
    def begin(self, run: Run, stage: Stage) -> None:
        k, routes = number(run, stage), self.router.routes
        if int(routes.get_buffer("current")) == k:
            return  # taken up again
        routes.get_buffer("current").fill_(k)
        for name, p in self.delta.parameters().items():
            p.copy_(self.afresh[name])
        self.learn_the_way(k)

    def learn_the_way(self, k: int) -> None:
        source, sums, was = self.sources[k], dict[int, Tensor](), self.net.training
        self.net.eval()
        for batch in source.once(self.net):
            pooled = self.router.base(batch).float()
            for i, label in enumerate(labels_of_rows(source.table, batch)):
                sums[label] = sums.get(label, 0) + F.normalize(pooled[i], dim=-1)
        self.net.train(was)
        routes = self.router.routes
        first = int((routes.get_buffer("stage") >= 0).sum())
        found = F.normalize(torch.stack([sums[label] for label in sorted(sums)]), dim=-1)
        routes.get_buffer("centroids")[first : first + len(found)] = found
        routes.get_buffer("stage")[first : first + len(found)] = k

    @torch.no_grad()
    def end(self, run: Run, stage: Stage) -> None:
        kept = self.router.routes.kept(number(run, stage))
        for name, p in self.delta.parameters().items():
            kept[name].copy_(p)


def labels_of(table: Any) -> list[int]:
    """The labels of a table's rows; one where a row has not one."""
    label = table.columns.get("label")
    return sorted(set(label.tolist())) if single(label) else [0]


def labels_of_rows(table: Any, batch: Batch) -> list[int]:
    return batch["label"].tolist() if single(table.columns.get("label")) else [0] * len(batch)


def single(label: Any) -> bool:
    return isinstance(label, Tensor) and label.dim() == 1 and not label.is_floating_point()


# ------------------------------------------------------------------------------------------------ from an artifact


def routed(state: Mapping[str, Tensor]) -> bool:
    """Whether a stored delta has routes."""
    return f"heads.{PLACE}.current" in state


def put_back(net: Network, delta: Delta, state: Mapping[str, Tensor], keys: list[str]) -> None:
    """Make room for the routes of a stored delta, before it is loaded."""
    stages = 1 + max(int(name.removeprefix(f"heads.{PLACE}.").split(":")[0]) for name in state if name.startswith(f"heads.{PLACE}.") and ":" in name)
    centroids, width = state[f"heads.{PLACE}.centroids"].shape
    routes = Routes(delta.parameters(), stages, centroids, width).to(next(iter(net.parameters())).device)
    Router(net, delta, routes, {key: k for k, key in enumerate(keys)} if len(keys) > 1 else {})
