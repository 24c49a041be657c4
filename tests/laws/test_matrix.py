"""Every method x every objective x reader and writer: each trains, or is refused with its sentence before a weight is loaded.

`python tests/laws/test_matrix.py` writes docs/matrix.md from what this test sees.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import shop
from tunesmith import shared
from tunesmith.comparison.arms import EIGHT
from tunesmith.errors import Refusal
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.train import run

QUIET = Reporter(quiet=True)
SMALL = {"adapter": {"width": 4}, "prompt": {"length": 3}, "prefix": {"length": 3}, "layers": {"last": 1}, "lora": {"rank": 2}}
POLICY = {"kind": "reinforce", "reward": "exact", "length": 3}
WAYS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {  # name -> rows by kind of model, task by kind, objective
    "supervised": ("", {"encoder": "classify", "decoder": "generate"}, {"kind": "supervised"}),
    "distil": ("", {"encoder": "classify", "decoder": "generate"}, {"kind": "distil"}),
    "contrast": ("", {"encoder": "embed", "decoder": "embed"}, {"kind": "contrast"}),
    "setfit": ("", {"encoder": "classify", "decoder": "classify"}, {"kind": "setfit"}),
    "dpo": ("generate", {"encoder": "prefer", "decoder": "prefer"}, {"kind": "prefer", "loss": "dpo"}),
    "ppo": ("generate", {"encoder": "generate", "decoder": "generate"}, {**POLICY, "algorithm": "ppo"}),
    "grpo": ("generate", {"encoder": "generate", "decoder": "generate"}, {**POLICY, "algorithm": "grpo", "group": 4}),
}
MODELS = {"encoder": shop.encoder, "decoder": shop.decoder}


def base(work: Path, way: str, model: str) -> dict[str, Any]:
    """A recipe but for its method, on a tiny model; a teacher is trained where one is needed."""
    task, rows, objective = WAYS[way]
    MODELS[model](work / "model")
    short = {"budget": {"steps": 1}, "evaluate": {"samples": 0, "every": 10**6}}
    made = shop.recipe(work, rows[model], "full", **short)
    if way == "distil":
        objective = {**objective, "teacher": str(run(recipe({**made, "out": str(work / "teacher")}), QUIET).folder)}
    return {**made, "task": task or made["task"], "objective": objective}


@contextmanager
def counted() -> Iterator[list[int]]:
    """How often weights are loaded."""
    loads, load = list[int](), shared.load_network

    def loading(*args: Any, **named: Any):
        net = load(*args, **named)
        loads.append(1)
        return net

    shared.load_network = loading
    try:
        yield loads
    finally:
        shared.load_network = load


def cell(made: dict[str, Any], method: str, out: Path) -> str:
    """Empty where it trains, else the sentence with which it is refused; that comes before any weights."""
    with counted() as loads:
        try:
            record = run(recipe({**made, "method": {"kind": method, **SMALL.get(method, {})}, "out": str(out)}), QUIET).record
        except Refusal as refusal:
            assert not loads, f"{method} was refused after weights were loaded: {refusal}"
            assert refusal.fix, str(refusal)
            return refusal.what
    assert record["steps"] == 1 and loads
    return ""


def column(work: Path, way: str, model: str) -> dict[str, str]:
    made = base(work, way, model)
    return {method: cell(made, method, work / f"run-{method}") for method in EIGHT}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_each_cell_trains_or_is_refused_before_loading(way, model, tmp_path):
    found = column(tmp_path, way, model)
    written = (ROOT / "docs" / "matrix.md").read_text(encoding="utf-8")
    for method, sentence in found.items():
        line = next(text for text in written.splitlines() if text.startswith(f"| {way}, {model} |"))
        mark = line.split("|")[2 + EIGHT.index(method)].strip()
        assert (mark == "trains") == (sentence == ""), (
            f"{way}, {model}, {method}: {sentence or 'trains'}; python tests/laws/test_matrix.py has not been run since"
        )
        assert not sentence or f"| {way}, {model} | {sentence} |" in written


def page(found: dict[tuple[str, str], dict[str, str]]) -> str:
    head = "| objective, model | " + " | ".join(EIGHT) + " |\n|---|" + "---|" * len(EIGHT) + "\n"
    lines = [f"| {way}, {model} | " + " | ".join("refused" if cells[m] else "trains" for m in EIGHT) + " |" for (way, model), cells in found.items()]
    said = [f"| {way}, {model} | {sentence} |" for (way, model), cells in found.items() for sentence in dict.fromkeys(cells.values()) if sentence]
    return (
        "# Every method with every objective\n\nWhat trains, on a tiny encoder and a tiny decoder, and what is refused before a weight is loaded; the tests train every "
        "cell.\n`python tests/laws/test_matrix.py` writes this page.\n\n"
        + head
        + "\n".join(lines)
        + "\n\n## What is refused, and why\n\n| objective, model | the sentence |\n|---|---|\n"
        + "\n".join(said)
        + "\n"
    )


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    for way in WAYS:
        for model in MODELS:
            with tempfile.TemporaryDirectory() as work:
                found[way, model] = column(Path(work), way, model)
                print(way, model, found[way, model], flush=True)  # noqa: T201
    (ROOT / "docs" / "matrix.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
