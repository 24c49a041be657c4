"""How long one prediction takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from .core import Batch
from .sources.table import Table

ROWS, TURNS = 16, 3  # predictions that are timed, and how often each is; the first turn, which builds kernels, does not count


def lone_rows(table: Table) -> list[Batch]:
    """Examples of all lengths, each a batch by itself."""
    order = sorted(range(len(table.examples)), key=table.long.__getitem__)
    return [table.batch([order[int((i + 0.5) * len(order) / ROWS)]]) for i in range(ROWS)]


def timed(say: Callable[[Batch], Tensor], batch: Batch, waits: bool) -> float:
    """Seconds; a device that works on its own is waited for."""
    began = time.perf_counter()
    say(batch)
    if waits:
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.no_grad()
def latency(say: Callable[[Batch], Tensor], table: Table) -> float:
    """Milliseconds of one prediction, one row at a time: the median over rows of all lengths, each with its fastest turn."""
    batches = lone_rows(table)
    turns = [[timed(say, batch, table.device.type == "cuda") for batch in batches] for _ in range(TURNS)]
    return 1000 * statistics.median(map(min, zip(*turns[1:], strict=True)))
