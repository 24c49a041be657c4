"""Who trains the arms of a comparison: this process, one after another, or Ray's workers, several at a time (Moritz et al. 2018)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..errors import OutOfMemory, Refusal, not_installed
from ..progress import Reporter
from ..shared import Shared
from .board import Left, News, Over, Tell
from .measures import Measures

T = TypeVar("T")
R = TypeVar("R")
OFTEN = 0.25  # seconds between two words of one worker about one run


@dataclass
class Worker:
    """What the arms that take turns in one process share, and whom they tell how far they are."""

    measures: Measures
    tell: Tell
    reporter: Reporter
    shared: Shared = field(default_factory=lambda: Shared(keeps=True))


class Crew(Protocol):
    def each(self, act: Callable[[Worker, T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
        """Every item with what `act` makes of it, as they get done. Items are asked for when somebody is free for them."""
        ...


class Alone:
    """This process."""

    def __init__(self, passages: Sequence[str], tell: Tell, reporter: Reporter) -> None:
        self.worker = Worker(Measures(passages), tell, reporter)

    def each(self, act: Callable[[Worker, T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
        for item in items:
            yield item, act(self.worker, item)


class Workers(AbstractContextManager["Workers"]):
    """Ray's: `jobs` processes, each with a loaded base of its own and, where there are GPUs, its share of them.

    `everywhere`: of the cluster that Ray was started on; the folders of the recipe must then be the same on all its machines. Else
    of this machine, listening on loopback alone. Nothing is reported to anybody.
    """

    def __init__(self, jobs: int, everywhere: bool, passages: Sequence[str], tell: Tell, threads: int | None) -> None:
        self.jobs, self.everywhere, self.passages, self.hear, self.threads = jobs, everywhere, passages, tell, threads
        self.opened = ExitStack()

    def __enter__(self) -> Workers:
        ray = self.ray = asked_for_ray()
        if self.everywhere:
            try:
                ray.init(address="auto", log_to_driver=False, logging_level="error")
            except ConnectionError as e:
                raise Refusal(
                    "this machine belongs to no Ray cluster", where="--on", why=str(e), fix="ray start --head, or --jobs N for this machine alone"
                ) from e
        else:
            cores = max(self.jobs, os.cpu_count() or 1)
            ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="error", _node_ip_address="127.0.0.1")
        self.opened.callback(ray.shutdown)
        from ray.util.queue import Queue

        self.post = Queue(actor_options={"num_cpus": 0})
        self.free = self.hired(ray)
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def hired(self, ray: Any) -> list[Any]:
        has = ray.cluster_resources()
        cores, devices = has.get("CPU", 1), has.get("GPU", 0)
        each = self.threads or max(1, int(cores // self.jobs))
        if each * self.jobs > cores:
            raise Refusal(f"{self.jobs} jobs of {each} threads need more than {cores:.0f} cores", where="--jobs", fix=f"--jobs {max(1, int(cores // each))}")
        kind = ray.remote(num_cpus=each, num_gpus=min(1.0, devices / self.jobs))(Station)
        return [kind.remote(self.passages, self.post, os.getcwd(), each) for _ in range(self.jobs)]

    def each(self, act: Callable[[Worker, T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
        waiting, busy = iter(items), {}
        while True:
            while self.free and (item := next(waiting, None)) is not None:
                hand = self.free.pop()
                busy[hand.do.remote(act, item)] = hand, item
            if not busy:
                return
            done, _ = self.ray.wait(list(busy), timeout=OFTEN)
            self.read()
            for ref in done:
                hand, item = busy.pop(ref)
                self.free.append(hand)
                found = self.answer(ref)
                self.read()
                if isinstance(found, Refusal):
                    raise found
                yield item, found

    def answer(self, ref: Any) -> Any:
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayActorError as e:
            why = "most often it was killed because the machine had no memory left"
            raise OutOfMemory("a worker's process has ended", where="--jobs", why=why, fix="fewer --jobs; the same command continues") from e

    def read(self) -> None:
        while not self.post.empty():
            self.hear(self.post.get())


class Station:
    """A worker's process."""

    def __init__(self, passages: Sequence[str], post: Any, folder: str, threads: int) -> None:
        import torch

        from .. import machine

        self.fault = self.entered(Path(folder))
        machine.keep_freed_memory()
        torch.set_num_threads(threads)
        self.worker = Worker(Measures(passages), Letters(post), Reporter(quiet=True))

    def entered(self, folder: Path) -> Refusal | None:
        try:
            os.chdir(folder)
        except OSError as e:
            return Refusal(f"{folder} is not on every machine", where="--on", why=str(e), fix="a folder that all machines share")

    def do(self, act: Callable[[Worker, Any], Any], item: Any) -> Any:
        """A refusal comes back as a value: raised, it would come back wrapped."""
        try:
            return self.fault or act(self.worker, item)
        except Refusal as e:
            return e


@dataclass
class Letters:
    """Sends what a run tells, but not more often than anybody reads."""

    post: Any
    sent: float = 0.0

    def __call__(self, told: News | Over | Left) -> None:
        now = time.monotonic()
        if not isinstance(told, News) or now - self.sent >= OFTEN:
            self.sent = now
            self.post.put(told)


def asked_for_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as e:
        raise not_installed("several jobs need Ray", "ray", where="--jobs", why=str(e)) from e
    return ray


def crew(jobs: int, on: str | None, passages: Sequence[str], tell: Tell, reporter: Reporter, threads: int | None) -> AbstractContextManager[Crew]:
    """`jobs` 1 and `on` None: this process."""
    if on not in (None, "ray"):
        raise Refusal(f"there is no {on!r} to run on", where="--on", fix="--on ray, or --jobs N for this machine alone")
    if jobs == 1 and on is None:
        return nullcontext(Alone(passages, tell, reporter))
    return Workers(jobs, on == "ray", passages, tell, threads)
