"""What may move, and the mark it leaves on a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import Refusal
from .network import Graft, Insert, Network

WIDTHS = {"encoder": 384, "decoder": 2048, "seq2seq": 512}  # for which the methods' rates are given


class Method(ABC):
    """What may move. A frozen dataclass of hyper-parameters; knows no loss and no data.

    rates    learning rate by kind of architecture at the width in WIDTHS, measured or, for what does not fit here, published (docs/LOG.md)
    learns   it has parameters, which a gradient moves; else `update` names what chooses instead
    implies  the objective of a task, where only this method's own will do; `hands_on` are the options that it is given
    needs_head  it moves nothing but what stands on the trunk: a head or a vocabulary
    matrices what moves are matrices: the wider the model, the lower their best rate, as 1 / width (Yang et al. 2022, table 3); vectors keep theirs
    neutral  attaching it changes no output
    merges   its change can be folded into the base weights
    builds   on finished runs, which the recipe must name
    """

    paper: ClassVar[str] = ""
    neutral: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    builds: ClassVar[bool] = False
    matrices: ClassVar[bool] = False
    needs_head: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    update: ClassVar[str] = "descend"
    implies: ClassVar[Mapping[str, str]] = {}
    hands_on: ClassVar[tuple[str, ...]] = ()
    rates: ClassVar[Mapping[str, float]] = {"encoder": 1e-3, "decoder": 1e-3, "seq2seq": 1e-3}

    def rate(self, kind: str, width: int) -> float:
        """The default learning rate for a model, two digits of it."""
        return float(f"{self.rates[kind] * (WIDTHS[kind] / width if self.matrices else 1.0):.2g}")

    @property
    def positions(self) -> int:
        """How many of the model's positions it takes from each row."""
        return 0

    def foreseen(self, model: Mapping[str, Any]) -> None:
        """Raise Refusal for what can be told from the recipe's model (name, revision, blocks) alone, before weights are loaded."""

    def settled(self) -> Method:
        """As an artifact names it: nothing in it lies elsewhere."""
        return self

    @property
    def steps(self) -> int | None:
        """How many steps it takes, where that is its own to say."""
        return None

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
        names = dict(net.named_parameters())
        added = frozenset(n for n, t in net.state_dict(keep_vars=True).items() if id(t) not in before)
        live = {n for n, p in names.items() if p.is_floating_point() and not n.startswith(tuple(f"{path}." for path in net.anatomy.unused))}
        trains = frozenset(n for n in live if n.startswith("heads.") or self.trains(n, net))
        if self.learns and not trains:
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

    def cast(self, frozen: torch.dtype, keep: bool = True) -> None:
        """What moves is kept in fp32; what rests is stored in `frozen`, once, instead of being cast at every step.

        `keep`: hold on to what was cast, where base values are kept at all, so that `detach` gives it back bit for bit. A norm of which only the bias moves stays in fp32 whole, because its kernel takes no mixture.
        What moves gets memory of its own, lest the whole file that it was read from stays mapped for its sake.
        """
        hosts = {n.rpartition(".")[0] for n in self.trains}
        keep = keep and self.kept
        leaves = not keep and any(p.is_floating_point() and p.dtype != frozen for n, p in self.net.named_parameters() if n not in self.trains)
        for n, p in self.net.named_parameters():
            if p.is_floating_point():
                moves = n in self.trains or (p.dim() == 1 and n.rpartition(".")[0] in hosts)
                data = p.data.to(torch.float32 if moves else frozen, copy=moves and leaves and n not in self.added)
                if keep and n not in self.added and data.dtype != p.dtype:
                    self.base.setdefault(n, p.data)
                p.data = data

    def merge(self) -> Network:
        """Fold the inserts into the base weights and leave a plain network."""
        for insert in reversed(self.inserts):
            insert.fold()
            insert.ungraft()
        return self.net

    @torch.no_grad()
    def folded(self) -> Iterator[tuple[str, Tensor]]:
        """The tuned network as a plain one, a parameter at a time, by the names under `net.model`: as `merge` would leave it, and nothing is touched."""
        grafts = {id(insert.host): insert for insert in self.inserts if isinstance(insert, Graft)}
        if len(grafts) < len(self.inserts):
            raise RuntimeError("what stands outside the layers cannot be folded")
        guests = {id(module) for insert in self.inserts for module in insert.modules()}
        for path, module in self.net.model.named_modules():
            if id(module) in guests:
                continue
            changed = grafts[id(module)].folded() if id(module) in grafts else {}
            for name, value in (dict(module.named_parameters(recurse=False)) | changed).items():
                yield f"{path}.{name}" if path else name, value.detach()

    @contextmanager
    def absent(self, cast: bool = False) -> Iterator[Network]:
        """The base network, for as long as the block lasts (reference policy, untuned teacher).

        `cast`: what rests stays in the dtype in which it rests, so that nothing but what moves sets the two networks apart.
        """
        self._need_base()
        params = dict(self.net.named_parameters())
        base = {n: value for n, value in self.base.items() if n in self.trains or not cast}
        here = {n: params[n].data for n in base}
        self._swap(params, base, on=False)
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
