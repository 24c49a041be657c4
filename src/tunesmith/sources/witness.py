"""What a network that does not change says of each row: asked once, and a column of every batch from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core import Batch, Network, Ragged
from .features import Features
from .table import Table

Answer = Tensor | Ragged  # (B, ...) one entry a row, or a Ragged with B rows


@dataclass
class Witness:
    """`source`, whose batches also carry `column`: what `ask(net, batch)` said of their rows (a reference policy, a teacher).

    The network is at rest while it is asked; whether its delta is absent, or another network answers, is for `ask` to decide.
    `ragged` where a row's answer is as long as the row makes it. `told` hears how many of how many rows are done.
    """

    source: Table | Features | Witness
    column: str
    ask: Callable[[Network, Batch], Answer]
    ragged: bool = False
    told: Callable[[int, int], None] = lambda done, total: None
    store: dict[int, Tensor] = field(default_factory=dict)

    @property
    def gives(self) -> frozenset[str]:
        return self.source.gives | {self.column}

    @property
    def period(self) -> int:
        return self.source.period

    @property
    def table(self) -> Table:
        return self.source if isinstance(self.source, Table) else self.source.table

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]:
        self.fill(net)
        for batch in self.source.batches(net, start):
            yield self.enriched(batch)

    def once(self, net: Network, tokens: int | None = None) -> Iterator[Batch]:
        self.fill(net)
        for batch in self.source.once(net, tokens):
            yield self.enriched(batch)

    @torch.no_grad()
    def fill(self, net: Network) -> None:
        """Ask about the rows that nobody has asked about."""
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
