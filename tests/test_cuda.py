"""On a GPU every cell of the matrix learns what it learns on the processor, and at the defaults there (bf16, no padding) nearly the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "laws"))

from test_matrix import MODELS, QUIET, SMALL, WAYS, base

from tunesmith.comparison.arms import EIGHT
from tunesmith.errors import Refusal
from tunesmith.recipe import recipe
from tunesmith.train import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
PLACES = {"cpu": {}, "cuda": {"device": "cuda"}, "defaults": {"device": "cuda", "dtype": "auto", "kernel": "auto"}}


def losses(made: dict, place: str, out: Path) -> torch.Tensor:
    """Of each step; three steps, of which the second and third say what the gradients were."""
    folder = run(recipe({**made, **PLACES[place], "budget": {"steps": 3}, "out": str(out)}), QUIET).folder
    return torch.tensor([json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", EIGHT)
def test_the_same_losses(method: str, way: str, model: str, tmp_path: Path) -> None:
    try:
        made = base(tmp_path, way, model, "single") | {"method": {"kind": method, **SMALL.get(method, {})}, "dropout": 0.0}
        on_cpu = losses(made, "cpu", tmp_path / "on-cpu")
    except Refusal:
        pytest.skip("refused on any device")
    torch.testing.assert_close(losses(made, "cuda", tmp_path / "on-cuda"), on_cpu, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(losses(made, "defaults", tmp_path / "at-defaults"), on_cpu, rtol=0.03, atol=0.03)
