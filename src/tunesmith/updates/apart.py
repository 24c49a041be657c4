"""The tasks of a step apart: whose batches are whose, what they share, and the gradient and the loss of each. What surgery and balancing stand on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..core import Batch, Run
from ..parallel import add_up, sum_gradients
from .descend import EVEN, Losses, summed, units
from .gradcache import cached


def by_task(batches: Sequence[Batch]) -> dict[str, list[Batch]]:
    """The batches of each task, in an order that all processes and all steps agree on."""
    found: dict[str, list[Batch]] = defaultdict(list)
    for batch in batches:
        found[batch.task].append(batch)
    return {task: found[task] for task in sorted(found)}


def formed(run: Run, batches: Sequence[Batch], tokens: int, seed: int, total: Counter | None = None, weights: Mapping[str, float] = EVEN) -> Losses:
    """As the objective asks: whole batches through the cache, others piece by piece."""
    way = cached if run.objective.whole else summed
    return way(run, batches, tokens, seed, total, weights)


def each(run: Run, batches: Sequence[Batch], tokens: int, seed: int, weights: Mapping[str, float] = EVEN) -> Iterator[tuple[str, Losses]]:
    """One task after the other, over the units of the whole step; each adds its gradient to what is there."""
    total = units(run, batches)
    for k, (task, own) in enumerate(by_task(batches).items()):
        yield task, formed(run, own, tokens, (seed + 15_485_863 * k) & 0x7FFF_FFFF, total, weights)


def shared(run: Run) -> dict[str, nn.Parameter]:
    """What several tasks may move: all that trains and is awake, but for the heads, of which each task has its own."""
    return {name: p for name, p in run.delta.parameters().items() if p.requires_grad and not name.startswith("heads.")}


def last_block(run: Run) -> dict[str, nn.Parameter]:
    """Those of the shared parameters that lie nearest to the heads."""
    found, place = shared(run), run.net.anatomy.block_of
    top = max((place(name) for name in found), default=0)
    return {name: p for name, p in found.items() if place(name) == top}


def taken(params: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """The gradients of these, which then have none; summed over the processes."""
    sum_gradients(params, {}, [""])
    found = [p.grad for p in params]
    for p in params:
        p.grad = None
    return found


def told(losses: Losses, tasks: Sequence[str], device: torch.device) -> dict[str, float]:
    """Each task's loss, all its terms together, over all processes."""
    sums = torch.zeros(len(tasks), device=device)
    for (task, _), loss in losses.items():
        sums[tasks.index(task)] += loss
    return dict(zip(tasks, add_up(sums).tolist(), strict=True))
