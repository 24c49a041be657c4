"""Every method x every objective x every stream x reader and writer: each trains, or is refused with its sentence before a weight is loaded.

`python tests/laws/test_matrix.py` writes docs/matrix.md from what this test sees.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import shop
import worded
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
    "cloze": ("", {"encoder": "classify", "decoder": "classify"}, {"kind": "cloze"}),
    "dpo": ("generate", {"encoder": "prefer", "decoder": "prefer"}, {"kind": "prefer", "loss": "dpo"}),
    "ppo": ("generate", {"encoder": "generate", "decoder": "generate"}, {**POLICY, "algorithm": "ppo"}),
    "grpo": ("generate", {"encoder": "generate", "decoder": "generate"}, {**POLICY, "algorithm": "grpo", "group": 4}),
}
LABELLED = {"contrast": "grouped"}  # rows with a label each, where those of the way have none
BESIDE = {"task": "classify", "objective": {"kind": "supervised"}}  # the other task of a mix
MODELS = {"encoder": shop.encoder, "decoder": shop.decoder}
MASKED = {("cloze", "encoder"): worded.masked}  # where the words of the vocabulary answer


def base(work: Path, way: str, model: str, stream: str) -> dict[str, Any]:
    """A recipe but for its method, on a tiny model; a teacher is trained where one is needed."""
    task, rows, objective = WAYS[way]
    MASKED.get((way, model), MODELS[model])(work / "model")
    short = {"budget": {"steps": 1}, "evaluate": {"samples": 0} | ({} if stream == "sequence" else {"every": 10**6})}
    made = shop.recipe(work, LABELLED.get(way, rows[model]) if stream == "few" else rows[model], "full", **short)
    if way == "distil":
        objective = {**objective, "teacher": str(run(recipe({**made, "out": str(work / "teacher")}), QUIET).folder)}
    return STREAMS[stream](work, {**made, "task": task or made["task"], "objective": objective})


def mixed(work: Path, made: dict[str, Any]) -> dict[str, Any]:
    """Beside rows to classify."""
    own = {key: made.pop(key) for key in ("task", "data", "objective")}
    file = str(shop.rows(work / "beside.jsonl", "classify"))
    return {**made, "tasks": {"own": own, "beside": {**BESIDE, "data": {"train": file, "eval": file}}}, "stream": {"kind": "mix"}}


def in_turn(work: Path, made: dict[str, Any]) -> dict[str, Any]:
    """In two parts, by a column."""
    file = Path(made["data"]["train"])
    parted = [json.dumps({**json.loads(line), "part": "xy"[i % 4 // 2]}) + "\n" for i, line in enumerate(file.read_text().splitlines())]
    (work / "parted.jsonl").write_text("".join(parted))
    return {**made, "data": dict.fromkeys(("train", "eval"), str(work / "parted.jsonl")), "stream": {"kind": "sequence", "by": "part"}}


STREAMS: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
    "single": lambda work, made: made,
    "few": lambda work, made: {**made, "stream": {"kind": "few", "k": 4}},
    "mix": mixed,
    "sequence": in_turn,
}


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
    assert record["steps"] == (2 if "sequence" in made.get("stream", {}).values() else 1) and loads
    return ""


def column(work: Path, way: str, model: str, stream: str) -> dict[str, str]:
    made = base(work, way, model, stream)
    return {method: cell(made, method, work / f"run-{method}") for method in EIGHT}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stream", STREAMS)
def test_each_cell_trains_or_is_refused_before_loading(stream, way, model, tmp_path):
    found = column(tmp_path, way, model, stream)
    written = (ROOT / "docs" / "matrix.md").read_text(encoding="utf-8").partition(f"## {stream}\n")[2].partition("\n## ")[0]
    for method, sentence in found.items():
        line = next(text for text in written.splitlines() if text.startswith(f"| {way}, {model} |"))
        mark = line.split("|")[2 + EIGHT.index(method)].strip()
        assert (mark == "trains") == (sentence == ""), (
            f"{stream}, {way}, {model}, {method}: {sentence or 'trains'}; python tests/laws/test_matrix.py has not been run since"
        )
        assert not sentence or f"| {way}, {model} | {sentence} |" in written


def page(found: dict[str, dict[tuple[str, str], dict[str, str]]]) -> str:
    return (
        "# Every method with every objective and every stream\n\nWhat trains, on a tiny encoder and a tiny decoder, and what is refused before a weight is loaded; "
        "the tests train every cell.\n`python tests/laws/test_matrix.py` writes this page. `single`: all rows; `few`: some of each label; `mix`: beside rows to classify; "
        "`sequence`: in two stages.\n" + "".join(f"\n## {stream}\n\n{section(cells)}" for stream, cells in found.items())
    )


def section(found: dict[tuple[str, str], dict[str, str]]) -> str:
    head = "| objective, model | " + " | ".join(EIGHT) + " |\n|---|" + "---|" * len(EIGHT) + "\n"
    lines = [f"| {way}, {model} | " + " | ".join("refused" if cells[m] else "trains" for m in EIGHT) + " |" for (way, model), cells in found.items()]
    said = [f"| {way}, {model} | {sentence} |" for (way, model), cells in found.items() for sentence in dict.fromkeys(cells.values()) if sentence]
    return head + "\n".join(lines) + "\n\n| refused | why |\n|---|---|\n" + "\n".join(said) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    for stream, way, model in product(STREAMS, WAYS, MODELS):
        with tempfile.TemporaryDirectory() as work:
            cells = found.setdefault(stream, {})[way, model] = column(Path(work), way, model, stream)
            print(stream, way, model, cells, flush=True)  # noqa: T201
    (ROOT / "docs" / "matrix.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
