"""What holds for every strategy: stopped anywhere it ends the same, pieces are the whole, two processes are one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from strategies import CASES, given, trained

import staged
from tunesmith.artifact import load
from tunesmith.core import Listener
from tunesmith.recipe import recipe
from tunesmith.strategies import STRATEGIES
from tunesmith.train import Company, run

HERE = Path(__file__).parent
PAIR = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged.workshop(tmp_path_factory.mktemp("staged"))


@pytest.fixture(scope="module")
def pair(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([*PAIR, str(HERE / "pair_strategies.py"), str(work), str(folder)], env=env, check=False, capture_output=True, timeout=600, text=True)
    assert not done.returncode, done.stderr[-3000:]
    return folder


class Killed(Exception):
    """As if the power went."""


class Kill(Listener):
    """After so many steps of this process, before anything is saved of the last."""

    def __init__(self, steps: int):
        self.left = steps

    def step(self, run: Any, record: Any) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def test_every_strategy_is_here() -> None:
    assert CASES.keys() == STRATEGIES.keys()
    assert all("http" in one.paper for name, one in STRATEGIES.items() if name not in ("naive", "joint"))


@pytest.mark.parametrize("name", CASES)
def test_killed_anywhere_it_ends_the_same(work: Path, tmp_path: Path, name: str) -> None:
    """Killed at every step in turn, so also at the border of two stages; the matrix and every weight are those of a run that never stopped."""
    more: dict[str, Any] = {"dropout": 0.1, "stream": {"kind": "sequence", "by": "domain", "into": 2}}
    whole = run(recipe(given(work, name, out=str(tmp_path / "whole"), **more)), staged.QUIET)
    parts = recipe(given(work, name, out=str(tmp_path / "parts"), **more))
    found = None
    while not found:
        try:
            found = run(parts, staged.QUIET, company=Company(listeners=[Kill(2)]))
        except Killed:
            continue
    assert found.record["sequence"] == whole.record["sequence"]
    assert staged.same(*(load(r.folder).delta.state_dict() for r in (whole, found)))


@pytest.mark.parametrize("name", CASES)
def test_pieces_are_the_whole(work: Path, name: str) -> None:
    whole, pieces = (trained(work, name, update={"batch": 8, "rate": 1e-3, "micro": tokens}) for tokens in (10_000, 20))
    close(pieces, whole)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(work: Path, pair: Path, name: str) -> None:
    a, b = (load_file(pair / f"{name}-{rank}.safetensors") for rank in (0, 1))
    assert staged.same(a, b)
    close(a, trained(work, name))


def close(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Sums are taken in another order, hence not to the bit."""
    assert found.keys() == right.keys()
    for key, value in right.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=5e-5, msg=lambda m, key=key: f"{key}: {m}")
