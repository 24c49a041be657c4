"""Several tasks at once: each step a batch of one of them, or rows of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ..core import Batch, Network, Source


@dataclass(frozen=True)
class Mix:
    """`sources` by task; their batches have the sizes that they are to have in the mix.

    drawn   each step is a batch of one task, drawn with these probabilities by the seed; None: a step holds a batch of every task,
            those that share a head joined
    period  steps an epoch: as many rows as all sources have together
    """

    sources: Mapping[str, Source]
    period: int
    drawn: tuple[float, ...] | None = None
    seed: int = 0

    @property
    def gives(self) -> frozenset[str]:
        return frozenset.intersection(*(source.gives for source in self.sources.values()))

    @cached_property
    def width(self) -> int:
        """Batches a step."""
        return 1 if self.drawn else len(self.sources)

    def fill(self, net: Network) -> None:
        for source in self.sources.values():
            source.fill(net)

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]:
        return self.one_by_one(net, start) if self.drawn else self.all_at_once(net, start // self.width)

    def one_by_one(self, net: Network, start: int) -> Iterator[Batch]:
        """Where each source goes on is known from who was drawn before."""
        dice, names = torch.Generator().manual_seed(self.seed * 1_000_003 + 11), list(self.sources)
        drawn = lambda: names[int(torch.multinomial(torch.tensor(self.drawn), 1, generator=dice))]
        before = Counter(drawn() for _ in range(start))
        streams = {name: source.batches(net, before[name]) for name, source in self.sources.items()}
        while True:
            yield next(streams[drawn()])

    def all_at_once(self, net: Network, step: int) -> Iterator[Batch]:
        streams = [source.batches(net, step) for source in self.sources.values()]
        while True:
            yield from map(next, streams)


@dataclass(frozen=True)
class Union:
    """A mix of everything at once whose tasks share a head: one batch a step."""

    mix: Mix

    @property
    def gives(self) -> frozenset[str]:
        return self.mix.gives

    @property
    def period(self) -> int:
        return self.mix.period

    def fill(self, net: Network) -> None:
        self.mix.fill(net)

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]:
        batches = self.mix.batches(net, start * self.mix.width)
        while True:
            yield Batch.joined([next(batches) for _ in range(self.mix.width)])


def probabilities(rows: Sequence[int], temperature: float, cap: int | None) -> tuple[float, ...]:
    """p_k proportional to min(n_k, cap)^(1 / T) (Raffel et al. 2020, section 3.5.2): T = 1 by size, the larger T the more equal; inf: equal."""
    sizes = [float(min(n, cap or n)) ** (1 / temperature) for n in rows]
    return tuple(size / sum(sizes) for size in sizes)


def shares(total: int, p: Sequence[float]) -> list[int]:
    """`total` rows split by p, each at least one, as evenly as whole numbers allow (largest remainders)."""
    exact = [total * x for x in p]
    found = [max(1, int(x)) for x in exact]
    for i in sorted(range(len(p)), key=lambda i: int(exact[i]) - exact[i])[: max(0, total - sum(found))]:
        found[i] += 1
    return found
