"""No gradient: candidates are priced on the same rows by the run's objective, and kept if better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core import Batch, Network, Run
from ..errors import Refusal

Chosen = tuple[int, ...]


@dataclass
class Search:
    """Greedy: what is chosen never gets worse on the rows that it is priced on.

    choice   (n,) whole numbers on the network, which move instead of parameters
    propose  the candidate of a step, given what is chosen and how many steps were taken, or None where nothing else is offered: a function of both and the seed, so
             nothing random is stored
    asked    the rows under a candidate; they are the same at every step, else prices could not be compared, so the step's own batch goes unread. What `passes` a
             batch `said` were spent beside its own rows counts too
    passes   rows that the network may read in all; a candidate is given up as soon as it is dearer than what is there, which is exact where no term is negative
    price    of what is chosen: summed loss over units
    """

    choice: Tensor
    propose: Callable[[Chosen, int], Chosen | None]
    asked: Callable[[Network, Chosen], Iterable[Batch]]
    passes: int
    price: float = math.inf
    used: int = 0
    rate: float = field(default=0.0, init=False)

    def prepare(self, run: Run) -> None:
        """There is no optimiser."""

    @torch.no_grad()
    def step(self, run: Run, micro: Sequence[Batch]) -> Mapping[str, float]:
        run.net.eval()
        here, first = tuple(self.choice.tolist()), not run.done
        there = self.propose(here, run.done)
        found, spent = self.cost(run, there or here, math.inf) if first else self.priced(run, here, there)
        kept = first or found < self.price
        if kept:
            self.price = found
            self.choice.copy_(torch.tensor(there or here))
        self.used += spent
        run.spent = min(1.0, self.used / self.passes)
        if run.done + 1 < run.total:
            run.halt = "nothing else is offered" if there is None else f"{self.used} passes are used up" if self.used >= self.passes else run.halt
        return {"loss": self.price, "kept": float(kept), "passes": self.used, "rate": 0.0, "tokens": 0, "rows": spent}

    def priced(self, run: Run, here: Chosen, there: Chosen | None) -> tuple[float, int]:
        """Of a candidate; one that cannot be asked, such as a prompt that is too long, is never better, and neither is what is there already."""
        try:
            return self.cost(run, there, self.price) if there not in (None, here) else (math.inf, 0)
        except Refusal:
            return math.inf, 0

    def cost(self, run: Run, there: Chosen, limit: float) -> tuple[float, int]:
        """Loss a unit, or infinity as soon as it exceeds the limit; and the rows that were read."""
        batches = list(self.asked(run.net, there))
        units = [run.objective.count(batch) for batch in batches]
        total = sum(max(count.values()) for count in units)
        price, spent = 0.0, int(sum(batch.said.get("passes", 0) for batch in batches))
        for batch in batches:
            price += float(torch.stack(list(run.objective(run.net, batch).values())).sum()) / total
            spent += len(batch)
            if price > limit:
                return math.inf, spent
        return price, spent

    def state_dict(self) -> dict[str, Tensor]:
        return {"price": torch.tensor(self.price, dtype=torch.float64), "used": torch.tensor(self.used)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.price, self.used = float(state["price"]), int(state["used"])
