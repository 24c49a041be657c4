"""Several processes, one run: each takes its share of every step's rows, and gradients are summed before the update.

    torchrun --nproc-per-node 4 -m tunesmith run recipe.yaml          or any launcher that sets RANK, LOCAL_RANK and WORLD_SIZE

Every process holds the whole table and draws the same batches, so the units of a step are known to all of them without a word,
and the sum of the shares' gradients is the gradient of the step: two processes are one. The first process alone
measures, judges, saves and speaks; what it finds is told to the others, so that they all stop at the same step.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
BUCKET = 1 << 24  # elements that are summed in one message
PATIENCE = timedelta(hours=6)  # the others wait while the first process evaluates and saves


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def first() -> bool:
    return rank() == 0


def join() -> None:
    """Meet the other processes, if the launcher started any; each takes a GPU of its own where there are enough."""
    if world() == 1 or dist.is_initialized():
        return
    cuda = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", world()))  # NCCL refuses two processes on one
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)


def wait() -> None:
    """Until all are here."""
    if world() > 1:
        dist.barrier()


looking: ContextVar[bool] = ContextVar("looking", default=False)  # the first process is, and the others wait for what it finds


def told(find: Callable[[], T]) -> T:
    """What the first process finds; the others do not look. Within, it is alone: what it is to tell there it keeps to itself."""
    if world() == 1 or looking.get():
        return find()
    found: list[T | None] = [None]
    if first():
        token = looking.set(True)
        try:
            found = [find()]
        finally:
            looking.reset(token)
    dist.broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def any_of(mine: bool) -> bool:
    """Whether it is so in any process."""
    if world() == 1:
        return mine
    flag = torch.tensor(int(mine))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def add_up(tensor: Tensor) -> Tensor:
    """The sum over the processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(params: Sequence[nn.Parameter], record: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Add up gradients over the processes, in place, and return the sums of the record's entries of these names.

    A parameter that no process has a gradient for is left without one; a process that has none where others do counts as zero.
    """
    if world() == 1:
        return dict(record)
    zero = torch.zeros((), device=params[0].device)
    present = torch.stack([zero + float(p.grad is not None) for p in params])
    dist.all_reduce(present)
    live = [p for p, count in zip(params, present.tolist(), strict=True) if count]
    for p in live:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    for bucket in buckets([p.grad for p in live if p.grad is not None]):
        flat = torch.cat([g.flatten() for g in bucket])
        dist.all_reduce(flat)
        for g, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            g.copy_(part.view_as(g))
    sums = torch.stack([zero + record.get(name, zero) for name in names])
    dist.all_reduce(sums)
    return dict(zip(names, sums.unbind(), strict=True))


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one dtype, up to BUCKET elements; a larger one goes alone."""
    held: list[Tensor] = []
    for t in tensors:
        if held and (t.dtype != held[0].dtype or sum(h.numel() for h in held) + t.numel() > BUCKET):
            yield held
            held = []
        held.append(t)
    if held:
        yield held
