"""Dtype and kernel: the fastest measured one is taken, what the recipe says is kept, and emulated bf16 is not waited for."""

from __future__ import annotations

import pytest
import torch

from tunesmith import machine
from tunesmith.networks import precision
from tunesmith.networks.precision import Sizes, choose

SIZES, CPU = Sizes(64, 8, 16, 2, 8), torch.device("cpu")
TIMES = {"fp32 matmul": 4.0, "fp32 sdpa": 3.0, "bf16 matmul": 1.0, "bf16 sdpa": 2.0}


@pytest.fixture(autouse=True)
def measured(monkeypatch, tmp_path):
    """A machine with bf16 products and these times; each measurement is counted."""
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: True)
    monkeypatch.setattr(precision, "measure", lambda sizes: calls.append(sizes) or TIMES)
    return calls


def test_the_fastest_is_taken_and_remembered(measured):
    for _ in range(2):
        choice = choose(SIZES, CPU)
        assert (choice.dtype, choice.kernel) == ("bf16", "matmul")
    assert len(measured) == 1


def test_a_lower_precision_must_be_worth_it(monkeypatch):
    monkeypatch.setitem(TIMES, "bf16 matmul", 2.8)
    monkeypatch.setitem(TIMES, "bf16 sdpa", 2.8)
    assert choose(SIZES, CPU).dtype == "fp32"


@pytest.mark.parametrize(("asked", "found"), [(("fp32", "auto"), ("fp32", "sdpa")), (("bf16", "sdpa"), ("bf16", "sdpa")), (("auto", "sdpa"), ("bf16", "sdpa"))])
def test_what_the_recipe_says_is_kept(asked, found):
    choice = choose(SIZES, CPU, *asked)
    assert (choice.dtype, choice.kernel) == found


def test_emulated_bf16_is_not_timed(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: False)
    assert set(precision.measure(SIZES)) == {"fp32 matmul", "fp32 sdpa"}
    assert choose(SIZES, CPU, "bf16").dtype == "bf16"  # who asks for it gets it


@pytest.mark.parametrize(
    ("flags", "has", "kept"),
    [("avx2 avx512_bf16", True, "32"), ("avx512_bf16 amx_bf16", True, "256"), ("fp asimd bf16", True, "32"), ("avx2 avx512f", False, "4")],
)
def test_bf16_products_are_read_off_the_processor(monkeypatch, tmp_path, flags, has, kept):
    info = tmp_path / "cpuinfo"
    info.write_text(f"model name : x\nflags : {flags}\n")
    monkeypatch.setattr(machine, "Path", lambda path: info)
    assert machine.multiplies_bf16() is has
    assert machine.kernels_kept() == kept
