"""A gradient an example: what a mean over a batch hides.

The gradient of a batch's mean, squared, is the mean of squares divided by the batch and mixed with cross terms: at batches of 32 a Fisher of it is 30 times too
small and ranks parameters otherwise (correlation 0.6), so that the penalty is silently none. Packed attention looks at lengths, which `torch.func.vmap` cannot
trace, so examples are asked one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..core import Batch, Network, Run, Stage
from .strategy import number

Loss = Callable[[Network, Batch], Tensor]


def mean_of(run: Run, stage: Stage, most: int, loss: Loss, form: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """By parameter that moves, fp32: the mean over at most `most` examples of a stage of `form` of the gradient of `loss` of one example, with the network at rest."""
    params = {n: p for n, p in run.delta.parameters().items() if p.requires_grad}
    total = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in params.items()}
    was, seen = run.net.training, 0
    run.net.eval()
    for batch in one_by_one(stage.train, run.net, most, run.seed + number(run, stage)):
        grads = torch.autograd.grad(loss(run.net, batch), list(params.values()), allow_unused=True)
        for n, grad in zip(params, grads, strict=True):
            if grad is not None:
                total[n] += form(grad.float())
        seen += 1
    run.net.train(was)
    return {n: t / max(1, seen) for n, t in total.items()}


def one_by_one(source: Any, net: Network, most: int, seed: int) -> Iterator[Batch]:
    """At most so many examples of a source, drawn by the seed, each a batch."""
    examples = source.table.examples
    picked = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:most].tolist()
    wanted = {i for e in picked for i in examples[e]}
    for batch in source.once(net):
        rows = batch["row"].tolist()
        for group in batch.groups():
            if rows[group.start] in wanted:
                yield batch.take(group.start, group.stop)


# ------------------------------------------------------------------------------------------------ what the model itself would answer


def sampled(net: Network, batch: Batch, kind: str) -> Batch:
    """The example with an answer drawn from the model's own distribution."""
    with torch.no_grad():
        logits = net.logits(batch).float()
    dice = torch.Generator(logits.device).manual_seed(int(batch["row"][0]) * 7_919 + 1)
    label = DRAWS[kind](logits, dice)
    column = batch.columns["label"]
    return batch.plus(label=label if isinstance(column, Tensor) else type(column)(label, column.lengths))


def one_of(logits: Tensor, dice: torch.Generator) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1, generator=dice)[:, 0]


def yes_or_no(logits: Tensor, dice: torch.Generator) -> Tensor:
    return torch.bernoulli(logits.sigmoid(), generator=dice)


def around(logits: Tensor, dice: torch.Generator) -> Tensor:
    """Squared error is a normal distribution of variance 1/2."""
    return logits[:, 0] + torch.randn(len(logits), generator=dice, device=logits.device) * 0.5**0.5


DRAWS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {"single": one_of, "multi": yes_or_no, "tag": one_of, "score": around, "generate": one_of}
