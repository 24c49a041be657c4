"""GradCache: the exact gradient of a loss in which all rows of a batch see each other, in pieces and over processes.

Gao et al. 2021, https://arxiv.org/abs/2101.06983, section 3: read all pieces without a graph, form the loss and its gradient on what was read,
read each piece again with a graph and the same dropout, and send that gradient back through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Batch, Run, Signals
from ..parallel import add_up, rank, world
from .descend import EVEN, Form, Formed, Losses, by_term, own_rows, pieces, summed, units


@dataclass(frozen=True)
class Cached(Form):
    """The sum of all losses, each batch scored whole, in the memory of one pass."""

    def __call__(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> Formed:
        return Formed(by_term(cached(run, batches, tokens, seed)))


def cached(run: Run, batches: Sequence[Batch], tokens: int, seed: int, total: Mapping[str, float] | None = None, weights: Mapping[str, float] = EVEN) -> Losses:
    """The batches of a step are scored one by one, each whole. What the objective reads must have one entry a row. Those of a task whose rows do not see
    each other go the ordinary way.

    Accumulating batches is not one larger batch: rows of different batches do not see each other. A batch that fits one pass is read once.
    `total`, `weights` and no gradients as in `summed`.
    """
    total, learns = units(run, batches) if total is None else total, torch.is_grad_enabled()
    plain = [batch for batch in batches if not run.objective.of(batch.task).whole]
    sums = summed(run, plain, tokens, seed, total, weights) if plain else Losses()
    for k, batch in enumerate(batches):
        own = run.objective.of(batch.task)
        if not own.whole:
            continue
        mine = own_rows(batch)
        parts = list(pieces(batch if world() == 1 else batch.pick(mine), tokens))
        shown = parts or [batch.pick(batch.groups()[0])]  # who has no rows learns from others' what is read off a row
        seeds = [(seed + 7919 * k + 104_729 * j) & 0x7FFF_FFFF for j in range(len(shown))]
        alone = learns and len(parts) == 1 and world() == 1
        with torch.set_grad_enabled(alone):
            read = [seen(run, part, s) for part, s in zip(shown, seeds, strict=True)]
        signals = {name: leaf(torch.cat([r[name] for r in read])[: len(mine)], batch, mine, alone) for name in read[0]}
        losses = {name: loss / (total[name] or 1) for name, loss in run.objective.score(signals, batch).items()}
        ends = [signal for signal in signals.values() if signal.requires_grad]
        if learns:  # all form the same gradient of the objective's own parameters
            (torch.stack(list(losses.values())).sum() * own.weight * weights.get(batch.task, 1.0)).backward(inputs=ends if rank() else None)
        if learns and not alone:
            send_back(run, parts, seeds[: len(parts)], {name: signal.grad[mine] for name, signal in signals.items() if signal.grad is not None})
        for name, loss in losses.items() if rank() == 0 else ():
            key = batch.task, name
            sums[key] = sums[key] + loss.detach() if key in sums else loss.detach()
    return sums


def seen(run: Run, part: Batch, seed: int) -> Signals:
    torch.manual_seed(seed)
    return run.objective.read(run.net, part)


def leaf(signal: Tensor, batch: Batch, mine: Sequence[int], alone: bool) -> Tensor:
    """What all processes read, in the order of the batch: the end of the graph, unless one pass was enough."""
    if alone:
        return signal
    whole = signal.new_zeros(len(batch), *signal.shape[1:])
    whole[list(mine)] = signal
    return add_up(whole).requires_grad_(signal.is_floating_point())


def send_back(run: Run, parts: Sequence[Batch], seeds: Sequence[int], grads: dict[str, Tensor]) -> None:
    """Read each piece again as it was read, and take the gradients that the loss has left at its rows through it."""
    start = 0
    for part, seed in zip(parts, seeds, strict=True):
        again = seen(run, part, seed)
        names = [name for name in grads if again[name].requires_grad]
        torch.autograd.backward([again[name] for name in names], [grads[name][start : start + len(part)] for name in names])
        start += len(part)
