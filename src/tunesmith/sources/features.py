"""States under the floor, computed once a row: epochs after the first, and every evaluation, start above a constant trunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core import Batch, Network, Ragged
from .enriched import Enriched
from .table import Table


@dataclass
class Features(Enriched):
    """A table whose batches also carry `trunk` (N, D) and `floor`, or `pooled` (B, D) where nothing but a pooled head trains.

    Legal because the run keeps the blocks under the floor at rest. The store holds one tensor a row, in the dtype in which
    the network hands its states on. `told` hears how many of how many rows are done.
    """

    source: Table
    floor: int
    pooled: bool = False
    told: Callable[[int, int], None] = lambda done, total: None
    store: dict[int, Tensor] = field(default_factory=dict)

    @property
    def adds(self) -> frozenset[str]:
        return frozenset({"pooled"} if self.pooled else {"trunk", "floor"})

    @torch.no_grad()
    def fill(self, net: Network) -> None:
        """Compute what is missing, short rows first, many at a time, with the network at rest."""
        if len(self.store) == len(self.table):
            return
        was = net.training
        net.eval()
        for batch in self.table.once():
            states = net.pooled(batch) if self.pooled else net.trunk_states(batch, self.floor)  # type: ignore[operator]
            rows = states.unbind() if isinstance(states, Tensor) else states.rows()
            self.store |= zip(batch["row"].tolist(), rows, strict=True)
            self.told(len(self.store), len(self.table))
        net.train(was)

    def enriched(self, batch: Batch) -> Batch:
        rows = [self.store[i] for i in batch["row"].tolist()]
        if self.pooled:
            return batch.plus(pooled=torch.stack(rows))
        return batch.plus(trunk=Ragged(torch.cat(rows), batch.ragged("ids").lengths), floor=torch.full((len(batch),), self.floor))
