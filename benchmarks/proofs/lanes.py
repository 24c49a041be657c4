"""Runs of a proof side by side: on two cores two runs of a thread each are done sooner than one of two threads after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from operator import call
from typing import TypeVar

import torch

T = TypeVar("T")


def side_by_side(calls: Iterable[Callable[[], T]], jobs: int) -> Iterator[T]:
    """What the calls return, in their order; `jobs` at a time, in processes of their own with one thread. What is called must be importable (a `partial`)."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(call, calls)
