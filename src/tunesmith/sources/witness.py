"""What a network that does not change says of each row: asked once, and a column of every batch from then on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core import Batch, Network, Ragged
from .enriched import Enriched

Answer = Tensor | Ragged  # (B, ...) one entry a row, or a Ragged with B rows


@dataclass
class Witness(Enriched):
    """`source`, whose batches also carry `column`: what `ask(net, batch)` said of their rows (a reference policy, a teacher).

    The network is at rest while it is asked; whether its delta is absent, or another network answers, is for `ask` to decide.
    `ragged` where a row's answer is as long as the row makes it. `told` hears how many of how many rows are done.
    """

    column: str
    ask: Callable[[Network, Batch], Answer]
    ragged: bool = False
    told: Callable[[int, int], None] = lambda done, total: None
    store: dict[int, Tensor] = field(default_factory=dict)

    @property
    def adds(self) -> frozenset[str]:
        return frozenset({self.column})

    @torch.no_grad()
    def fill(self, net: Network) -> None:
        """Ask about the rows that nobody has asked about."""
        self.source.fill(net)
        if len(self.store) == len(self.table):
            return
        was = net.training
        net.eval()
        for batch in self.source.once(net):
            said = self.ask(net, batch)
            rows = said.unbind() if isinstance(said, Tensor) else said.rows()
            self.store |= zip(batch["row"].tolist(), (row.clone() for row in rows), strict=True)
            self.told(len(self.store), len(self.table))
        net.train(was)

    def enriched(self, batch: Batch) -> Batch:
        rows = [self.store[i] for i in batch["row"].tolist()]
        return batch.plus(**{self.column: Ragged(torch.cat(rows), tuple(map(len, rows))) if self.ragged else torch.stack(rows)})
