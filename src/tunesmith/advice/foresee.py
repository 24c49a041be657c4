"""How much memory and time a run will take: from its rehearsal alone, or from three of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .. import machine
from ..core import Batch
from ..dataset import Dataset
from ..job import Job, assemble
from ..progress import Reporter
from ..recipe import Recipe
from ..shared import Shared
from ..sources.features import Features
from ..sources.mix import Mix
from ..sources.table import Table
from .rehearsal import Rehearsal, Work, steps_of

# Measured by benchmarks/advice.py, docs/LOG.md.
SLACK = 1.05  # resident over live bytes: what the allocator cannot hand out again
PACKED = 1.9  # bytes a byte of the largest tensor of a matrix product, which oneDNN lays out anew
KERNEL = 1_100_000  # bytes of a kernel that oneDNN has built, in bf16
CALLS = 0.6  # seconds of a call of the library in a step, over that of a tiny addition
FLOPS = 0.7  # share of a matrix product's speed that a step reaches


def memory(found: Rehearsal, resident: int) -> int:
    """Bytes of the process at the fullest moment; on CUDA of the tensors alone, of which nothing is lost on the way.

    `resident` is what a process holds that has read the data, and loaded and rehearsed nothing yet.
    """
    if found.device == "cuda":
        return found.peak
    kernels = int(machine.kernels_kept()) * KERNEL if found.dtype == "bf16" else 0
    return round(resident + SLACK * found.peak + PACKED * found.step.widest + kernels)


# ------------------------------------------------------------------------------------------------ time, from the rehearsal


@dataclass(frozen=True)
class Speed:
    """Of this machine: floating-point operations a second, and seconds of one small call."""

    flops: float
    call: float


def seconds(found: Rehearsal, speed: Speed) -> float:
    """To train, and to store the frozen trunk's states where there are any. An estimate: a step is as fast as its products and its calls."""
    return of_passes(found.step, found.tokens, speed) + (of_passes(found.fill, [sum(found.rows)], speed) if found.fill else 0.0)


def of_passes(work: Work, tokens: Sequence[int], speed: Speed) -> float:
    each = work.flops / work.tokens / (speed.flops * FLOPS)
    return sum(n * each + max(1.0, n / work.tokens) * work.calls * speed.call * CALLS for n in tokens)


@lru_cache
def speed_of(dtype: str, width: int, tokens: int, device: str) -> Speed:
    """Half a second of measuring."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    x, w = torch.randn(tokens, width, device=device, dtype=kind), torch.randn(4 * width, width, device=device, dtype=kind)
    small = torch.ones(8, 8, device=device)
    product = fastest(lambda: torch.nn.functional.linear(x, w), 0.25)
    return Speed(2 * tokens * width * 4 * width / product, fastest(lambda: small + small, 0.05))


def fastest(act: Callable[[], object], spend: float) -> float:
    """Seconds of the median call of those that fit in `spend` seconds."""
    taken, until = [], time.perf_counter() + spend
    act()
    while time.perf_counter() < until or len(taken) < 3:
        taken.append(timed(act))
    return float(np.median(taken))


def timed(act: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    act()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


# ------------------------------------------------------------------------------------------------ time, from three steps


@dataclass(frozen=True)
class Pace:
    """Seconds of a step of n tokens: `fixed` + `each` n; and `first` more where a length of batch is met that was not met before."""

    fixed: float
    each: float
    first: float

    def of(self, tokens: Sequence[int], shapes: int) -> float:
        return sum(self.fixed + self.each * n for n in tokens) + self.first * shapes


def probe(recipe: Recipe, data: Dataset, shared: Shared) -> float:
    """Seconds of the run, from three steps of each of its tasks (the shortest, the middle and the longest), each taken twice. What they taught is thrown away."""
    with shared.lent(recipe, data) as net:
        job = assemble(recipe, data, net, Reporter(quiet=True), shared)
        job.run.update.prepare(job.run)  # type: ignore[attr-defined]
        total = sum(taken(job, source) for source in sources_of(job))
        job.delta.detach() if shared.keeps else None
    return total


def sources_of(job: Job) -> list[Table | Features]:
    """Of each task, without what stands around it."""
    trained: list[Any] = [stage.train for stage in job.run.stream]
    found = [source for train in trained for source in (train.sources.values() if isinstance(train, Mix) else [train])]
    return [bare(source) for source in found]


def bare(source: Any) -> Table | Features:
    while not isinstance(source, Table | Features):
        source = source.source
    return source


def taken(job: Job, source: Table | Features) -> float:
    """Seconds of all steps with this source's rows, and of storing the states that it starts from."""
    table, update, total = source.table, job.run.update, 0.0
    planned = steps_of(job.recipe, table)
    steps = [table.batch(rows) for rows in picked(planned, key=lambda rows: sum(table.long[i] for i in rows))]
    if isinstance(source, Features):
        batches = list(table.once())
        total += pace_of(lambda batch: stored(source, job, batch), picked(batches)).of([len(b["ids"]) for b in batches], len(batches))
        for batch in steps:
            source.store |= zip(batch["row"].tolist(), stored(source, job, batch), strict=True)
        steps = [source.enriched(batch) for batch in steps]
    learn = job.run.objective.of(table.task)
    steps = [learn.presumed(job.net, batch) for batch in steps]
    tokens = [sum(table.lengths[i] for i in rows) for rows in planned]
    total += pace_of(lambda batch: update.step(job.run, [batch]), steps).of(tokens, len({n + job.net.filler(n) for n in tokens}))
    source.store.clear() if isinstance(source, Features) else None
    return total


def stored(source: Features, job: Job, batch: Batch) -> Sequence[torch.Tensor]:
    """As `Features.fill` does it."""
    net, was = job.net, job.net.training
    net.eval()
    with torch.no_grad():
        states = net.pooled(batch) if source.pooled else net.trunk_states(batch, source.floor)
    net.train(was)
    return states.unbind() if isinstance(states, torch.Tensor) else states.rows()


def picked(items: Sequence, key: Callable = lambda batch: len(batch["ids"])) -> list:
    """The one with the fewest tokens, the middle one, and the one with the most."""
    order = sorted(items, key=key)
    return [order[0], order[len(order) // 2], order[-1]]


def pace_of(act: Callable[[Batch], object], batches: Sequence[Batch]) -> Pace:
    act(batches[1])  # what is only done once in a process
    firsts = [timed(lambda b=batch: act(b)) for batch in batches]
    taken = [min(timed(lambda b=batch: act(b)) for _ in range(2)) for batch in batches]
    tokens = [len(batch["ids"]) for batch in batches]
    each = max(0.0, float(np.polyfit(tokens, taken, 1)[0])) if tokens[0] < tokens[2] else 0.0
    each = min(each, sum(taken) / sum(tokens))  # a step takes no less than nothing, and no less for more tokens
    fixed = float(np.mean(taken)) - each * float(np.mean(tokens))
    return Pace(fixed, each, max(0.0, min(firsts[0] - taken[0], firsts[-1] - taken[-1])))
