"""The five nouns of a run, and the law of each. Everything else in the package is an instance of one of them.

    Network    what is tuned          a published Transformer, its class untouched, and named heads
    Method     what may move          a predicate over parameter names and, for some, modules it injects      -> Delta
    Objective  what is better         read(net, batch) -> signals; score(signals, batch) -> sums over units
    Source     what arrives, when     net -> iterator of batches, lazy
    Update     how it moves           one step's batches -> record

A `Run` is these five side by side, and `engine.fit` is the only loop. Imports torch and nothing else of ours but the errors.

Shapes: B rows, N tokens of all rows laid end to end, D width, C classes, V vocabulary, M labelled positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from .errors import Refusal

Signals = Mapping[str, Tensor]  # what an objective reads off a network
Terms = Mapping[str, Tensor]  # name -> loss summed over units, never averaged: the update divides, once
Counts = Mapping[str, float]  # name -> how many units were summed


# ------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length laid end to end: `values` (N, ...), `lengths` (B), sum(lengths) = N. There is no padding."""

    values: Tensor
    lengths: tuple[int, ...]

    def rows(self) -> tuple[Tensor, ...]:
        return self.values.split(list(self.lengths))

    def starts(self) -> Tensor:
        """(B,): index of each row's first value."""
        return torch.tensor((0, *self.lengths[:-1]), device=self.values.device).cumsum(0)

    def take(self, start: int, stop: int) -> Ragged:
        """Rows start:stop."""
        first = sum(self.lengths[:start])
        return Ragged(self.values[first : first + sum(self.lengths[start:stop])], self.lengths[start:stop])

    def to(self, device: torch.device) -> Ragged:
        return Ragged(self.values.to(device, non_blocking=True), self.lengths)


@dataclass(frozen=True)
class Batch:
    """Named columns of B rows: a Tensor (B, ...) or a Ragged. Enriched by copy, never in place.

    `ids` is the text. `at`, where labels belong to tokens, holds the labelled positions of each row, counted from its start;
    `label` holds their labels, or one label a row.
    """

    columns: Mapping[str, Tensor | Ragged]
    task: str = "task"

    def __getitem__(self, name: str) -> Tensor:
        column = self.columns[name]
        return column.values if isinstance(column, Ragged) else column

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(self.ragged("ids").lengths)

    def ragged(self, name: str) -> Ragged:
        column = self.columns[name]
        assert isinstance(column, Ragged), f"column {name!r} is not ragged"
        return column

    def labelled(self) -> Tensor:
        """(M,): the labelled positions as indices into the N tokens."""
        at = self.ragged("at")
        return at.values + self.ragged("ids").starts().repeat_interleave(torch.tensor(at.lengths, device=at.values.device))

    def take(self, start: int, stop: int) -> Batch:
        """Rows start:stop."""
        return Batch({k: v.take(start, stop) if isinstance(v, Ragged) else v[start:stop] for k, v in self.columns.items()}, self.task)

    def plus(self, **columns: Tensor | Ragged) -> Batch:
        return Batch({**self.columns, **columns}, self.task)

    def to(self, device: torch.device) -> Batch:
        return Batch({k: v.to(device) for k, v in self.columns.items()}, self.task)


# ------------------------------------------------------------------------------------------------ Network


@dataclass(frozen=True)
class Anatomy:
    """Where a published architecture keeps its parts; every path starts at the Network (`model.` ...). A row of data.

    linears maps a projection's path to its role: query key value out up gate down, fused ones joined by `+`.
    tails are the modules that run after the last block, under the heads; unused ones never run, so they never train.
    """

    kind: str  # encoder | decoder | seq2seq
    blocks: tuple[str, ...]
    linears: Mapping[str, str]
    attentions: tuple[str, ...]
    embedding: str
    tails: tuple[str, ...]
    unused: tuple[str, ...]
    width: int
    kv_heads: int
    head_dim: int
    positions: int | None = None  # learned or configured limit on the length of a row
    position_offset: int = 0  # the index of the first position (RoBERTa counts from padding_idx + 1)
    vocabulary: str | None = None  # the output embedding, where it is not the input embedding too

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def block_of(self, name: str) -> int:
        """Index of the block a parameter belongs to; `depth` for a head, -1 for what lies under the first block."""
        for i, path in enumerate(self.blocks):
            if name.startswith(path + "."):
                return i
        if name.startswith("heads.") or (self.vocabulary and name.startswith(self.vocabulary + ".")):
            return self.depth
        return self.depth - 1 if any(name.startswith(tail + ".") for tail in self.tails) else -1

    def projections(self, *roles: str) -> list[str]:
        """Paths of the linear layers that play any of these roles, in the order of the network."""
        return [path for path, role in self.linears.items() if set(role.split("+")) & set(roles)]


class Network(nn.Module, ABC):
    """A Transformer to tune. `model` is the object Hugging Face built; `heads` holds one module a task.

    `prompt` and `prefix` are the two places outside the blocks where a method may put an Insert: rows before the first
    token, and keys and values before every self-attention.
    """

    model: nn.Module
    heads: nn.ModuleDict
    anatomy: Anatomy
    prompt: Slot | None
    prefix: Slot | None
    labels: tuple[str, ...]
    takes_prefix: bool  # its class asks for an attention function, so keys and values can be put before a row's own

    @abstractmethod
    def token_ids(self, text: str) -> list[int]:
        """The text as tokens, without special ones."""

    @abstractmethod
    def keys_values(self, ids: Tensor) -> Tensor:
        """(2 layers, p, kv heads, d): what p tokens leave in each self-attention, key at 2i and value at 2i + 1."""

    @abstractmethod
    def states(self, batch: Batch) -> Ragged:
        """(N, D): the last hidden state of every token. Starts above the cached trunk when the batch carries `trunk`."""

    @abstractmethod
    def pooled(self, batch: Batch) -> Tensor:
        """(B, D)."""

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """(B, C) for a head on pooled states, (M, C) for a head or vocabulary on labelled positions."""

    @abstractmethod
    def label_logp(self, batch: Batch) -> Tensor:
        """(M,): log-probability of each label under the vocabulary. Never holds all (M, V) logits in fp32 at once."""

    def rest_below(self, floor: int) -> None:
        """Train mode, but what lies under the floor is a constant of the run: no dropout, hence cacheable bit for bit."""
        if self.training and self.__dict__.get("rested") == floor and self.model.training == (floor <= 0):
            return  # as it was left: `train()` by anyone else would have woken the whole model
        self.train()
        self.__dict__["rested"] = floor
        if floor > 0:
            self.model.eval()
            for path in (*self.anatomy.blocks[floor:], *self.anatomy.tails):
                self.get_submodule(path).train()


# ------------------------------------------------------------------------------------------------ Method


class Insert(nn.Module):
    """A module that a method put into a network. With `on = False` the network is exactly what it was."""

    on: bool = True

    def ungraft(self) -> None:
        """Leave the network, which is then as if this had never been there."""
        raise NotImplementedError

    def fold(self) -> None:
        """Add what this does to the base weights; only where the method merges."""
        raise NotImplementedError


class Graft(Insert):
    """An insert that lives inside a host module, so that no name of the base network changes, and stands before its forward."""

    def graft(self, host: nn.Module, name: str) -> None:
        self._site = (host, name, host.__dict__.get("forward"))  # a tuple, lest the host become a child of its guest
        inner = host.forward
        host.add_module(name, self)
        host.forward = partial(self.around, inner)

    def around(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self(inner, x) if self.on else inner(x)

    @property
    def host(self) -> nn.Module:
        return self._site[0]

    def ungraft(self) -> None:
        host, name, before = self._site
        if before is None:
            del host.__dict__["forward"]
        else:
            host.__dict__["forward"] = before
        del host._modules[name]


class Slot(Insert):
    """An insert in one of the network's two places outside the blocks: `prompt` -> (p, D), `prefix` -> (2 layers, p, kv heads, d)."""

    def place(self, net: Network, name: str) -> None:
        self._site = (net, name)
        setattr(net, name, self)

    def ungraft(self) -> None:
        setattr(*self._site, None)


class Method(ABC):
    """What may move. A frozen dataclass of hyper-parameters; knows no loss and no data.

    rates    learning rate by kind of architecture, measured (docs/LOG.md)
    neutral  attaching it changes no output
    merges   its change can be folded into the base weights
    """

    paper: ClassVar[str] = ""
    neutral: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    rates: ClassVar[Mapping[str, float]] = {"encoder": 1e-3, "decoder": 1e-3, "seq2seq": 1e-3}

    def refuse(self, net: Network) -> None:
        """Raise Refusal, with what would work, if this method makes no sense on this network."""

    def inject(self, net: Network) -> list[Insert]:
        """Add modules and return them. Selection methods add none."""
        return []

    @abstractmethod
    def trains(self, name: str, net: Network) -> bool:
        """Whether the parameter of this name may move. Heads always may."""

    def pace(self, name: str, net: Network) -> float:
        """Factor on the learning rate of this parameter."""
        return 1.0

    def wakes(self, name: str, net: Network) -> int:
        """The epoch in which this parameter begins to move."""
        return 0

    def notes(self, net: Network) -> list[str]:
        """What the user should know about this method on this network."""
        return []

    def attach(self, net: Network, *, keep: bool = True) -> Delta:
        """Rewrite the network in place. `keep` holds the base values of what will move, so that the delta can be undone."""
        self.refuse(net)
        before = {id(t) for t in (*net.parameters(), *net.buffers())}
        inserts = [insert.train(net.training) for insert in self.inject(net)]
        names = {n: p for n, p in net.named_parameters()}
        added = frozenset(n for n, t in net.state_dict(keep_vars=True).items() if id(t) not in before)
        live = {n for n, p in names.items() if p.is_floating_point() and not n.startswith(tuple(f"{path}." for path in net.anatomy.unused))}
        trains = frozenset(n for n in live if n.startswith("heads.") or self.trains(n, net))
        if not trains:
            raise Refusal(f"{type(self).__name__} finds nothing to train in this network", where="method", fix="tunesmith list methods")
        base = {n: names[n].detach().clone() for n in trains - added} if keep else {}
        delta = Delta(net, added, trains, inserts, base, keep, {n: self.pace(n, net) for n in trains}, {n: self.wakes(n, net) for n in trains})
        for n, p in names.items():
            p.requires_grad_(n in trains)
        return delta


@dataclass
class Delta:
    """The mark a method left on a network: what it added, what may move, how to look past it, how to take it away."""

    net: Network
    added: frozenset[str]  # parameters and buffers that did not exist before
    trains: frozenset[str]  # parameters that may receive a gradient
    inserts: list[Insert]
    base: dict[str, Tensor]  # values, before any step, of what moves and was there before
    kept: bool
    pace: Mapping[str, float]
    wakes: Mapping[str, int]
    epoch: int = 0

    @property
    def awake(self) -> frozenset[str]:
        return frozenset(n for n in self.trains if self.wakes[n] <= self.epoch)

    @property
    def floor(self) -> int:
        """Blocks below this index still compute what the base network computes: they rest, and may be cached."""
        return self.under(self.awake)

    @property
    def lowest(self) -> int:
        """The floor of the whole run, when all that will wake is awake."""
        return self.under(self.trains)

    def under(self, names: frozenset[str]) -> int:
        depths = (self.net.anatomy.block_of(n) for n in names | (self.added - self.trains))
        return max(0, min(depths, default=self.net.anatomy.depth))

    def advance(self, epoch: int) -> None:
        """Enter an epoch: what wakes in it begins to move (gradual unfreezing)."""
        self.epoch = epoch
        awake = self.awake
        for n, p in self.net.named_parameters():
            p.requires_grad_(n in awake)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.net.named_parameters() if n in self.trains}

    def state_dict(self) -> dict[str, Tensor]:
        """All that must be stored to rebuild the tuned network from its base."""
        keep = self.added | self.trains
        return {n: t for n, t in self.net.state_dict().items() if n in keep}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Exact inverse of `state_dict`; any missing, unexpected or misshapen entry is an error."""
        here = self.state_dict()
        if odd := set(here) ^ set(state):
            raise Refusal(f"the stored delta does not fit this network: {sorted(odd)[:3]} ...", where="artifact")
        with torch.no_grad():
            for n, t in here.items():
                if t.shape != state[n].shape:
                    raise Refusal(f"{n} has shape {tuple(state[n].shape)}, expected {tuple(t.shape)}", where="artifact")
                t.copy_(state[n])

    def cast(self, frozen: torch.dtype) -> None:
        """What moves is kept in fp32; what rests is stored in `frozen`, once, instead of being cast at every step.

        A norm of which only the bias moves stays in fp32 whole, because its kernel takes no mixture.
        """
        hosts = {n.rpartition(".")[0] for n in self.trains}
        for n, p in self.net.named_parameters():
            if p.is_floating_point():
                moves = n in self.trains or (p.dim() == 1 and n.rpartition(".")[0] in hosts)
                data = p.data.to(torch.float32 if moves else frozen)
                if self.kept and n not in self.added and data.dtype != p.dtype:
                    self.base.setdefault(n, p.data)
                p.data = data

    def merge(self) -> Network:
        """Fold the inserts into the base weights and leave a plain network."""
        for insert in reversed(self.inserts):
            insert.fold()
            insert.ungraft()
        return self.net

    @contextmanager
    def absent(self) -> Iterator[Network]:
        """The base network, for as long as the block lasts (reference policy, untuned teacher)."""
        self._need_base()
        params = dict(self.net.named_parameters())
        here = {n: params[n].data for n in self.base}
        self._swap(params, self.base, on=False)
        try:
            yield self.net
        finally:
            self._swap(params, here, on=True)

    def detach(self) -> Network:
        """The base network, for good, bit for bit."""
        self._need_base()
        self._swap(dict(self.net.named_parameters()), self.base, on=False)
        for insert in reversed(self.inserts):
            insert.ungraft()
        for p in self.net.parameters():
            p.grad = None
            p.requires_grad_(p.is_floating_point())
        return self.net

    def _swap(self, params: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], on: bool) -> None:
        for n, value in values.items():
            params[n].data = value
        for insert in self.inserts:
            insert.on = on

    def _need_base(self) -> None:
        if not self.kept and self.trains - self.added - self.base.keys():
            raise RuntimeError("attached with keep=False: the base values were not kept")


# ------------------------------------------------------------------------------------------------ Objective, Source, Update


class Objective(nn.Module, ABC):
    """What is better. `read` is the only half that sees the network; `score` is a pure function of what was read.

    Never owns the network; anything learnable in it is its own parameter. `needs` are the columns both halves look up.
    """

    needs: frozenset[str] = frozenset()

    @abstractmethod
    def read(self, net: Network, batch: Batch) -> Signals: ...

    @abstractmethod
    def score(self, signals: Signals, batch: Batch) -> Terms: ...

    def count(self, batch: Batch) -> Counts:
        """Units by term, known before the forward pass."""
        return {batch.task: len(batch)}

    def forward(self, net: Network, batch: Batch) -> Terms:
        return self.score(self.read(net, batch), batch)


class Source(Protocol):
    """What arrives, when. `batches` counts from `start`, so that a run continues where it stopped; it may look at the network."""

    @property
    def gives(self) -> frozenset[str]: ...

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Stage:
    """A stretch of training between two boundaries: one for most streams, one a task for continual ones.

    `steps` optimiser steps in all, `period` of them an epoch.
    """

    name: str
    train: Source
    steps: int
    period: int


class Listener:
    """Anything that acts beside the loop: evaluation, checkpoints, progress, Fisher estimates, snapshots.

    `state` and `restore` carry what it must remember over an interruption, as JSON.
    """

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        """After each optimiser step; `run.done` counts it already."""

    def end(self, run: Run, stage: Stage) -> None:
        """After the last step of a stage."""

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""


class Update(Protocol):
    """How the trainable part moves, given all batches of one step."""

    def step(self, run: Run, micro: Sequence[Batch]) -> Mapping[str, float]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass
class Run:
    """The five nouns side by side.

    done   optimiser steps taken
    halt   the reason to stop early, if any
    spent  share of a budget that is not counted in steps (time), in [0, 1]
    """

    net: Network
    delta: Delta
    objective: Objective
    stream: Sequence[Stage]
    update: Update
    listeners: Sequence[Listener] = ()
    accumulate: int = 1
    seed: int = 0
    done: int = 0
    halt: str = ""
    spent: float = 0.0
    log: list[Mapping[str, float]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(stage.steps for stage in self.stream)

    @property
    def progress(self) -> float:
        """Share of the run that is behind, in [0, 1]: what schedules go by."""
        return max(self.done / self.total, self.spent)

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.delta.parameters() | {f"objective.{n}": p for n, p in self.objective.named_parameters()}
