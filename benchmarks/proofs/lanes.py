"""Runs of a proof side by side: on two cores two runs of a thread each are done sooner than one of two threads after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from operator import call
from typing import TypeVar

T = TypeVar("T")


def side_by_side(calls: Iterable[Callable[[], T]], jobs: int) -> Iterator[T]:
    """What the calls return, in their order; `jobs` at a time, in processes of their own with one thread. What is called must be importable (a `partial`)."""
    os.environ["OMP_NUM_THREADS"] = "1"  # torch and numpy each have threads of their own, and read this as they are loaded
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(call, calls)
