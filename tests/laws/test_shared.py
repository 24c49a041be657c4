"""Arms that take turns on one base are the runs that they would be alone, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import shop
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.shared import Shared
from tunesmith.train import Company, Result, run

ARMS: list[dict[str, Any]] = [
    {"kind": "lora", "rank": 2, "start": "pissa"},
    {"kind": "full"},
    {"kind": "layers", "last": 1},
    {"kind": "layers", "blocks": [1], "unfreeze": 1},
    {"kind": "head"},
    {"kind": "prefix", "length": 3, "start": "text", "text": "w1 w2 w3"},
    {"kind": "prompt", "length": 3, "start": "vocabulary"},
    {"kind": "adapter", "width": 4},
    {"kind": "bitfit"},
    {"kind": "lora", "rank": 2, "dropout": 0.2},
]
SAME = ("before", "after", "history", "undefined", "trainable_parameters", "total_parameters", "artifact_bytes", "steps", "learning_rate", "dtype", "test")


def tensors(result: Result) -> dict[str, torch.Tensor]:
    return {n: t for path in sorted((result.folder / "artifact").glob("*.safetensors")) for n, t in load_file(path).items()}


def the_same(mine: Result, other: Result) -> None:
    assert {k: mine.record.get(k) for k in SAME} == {k: other.record.get(k) for k in SAME}
    a, b = tensors(mine), tensors(other)
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    assert (mine.folder / "predictions.jsonl").read_text() == (other.folder / "predictions.jsonl").read_text()


def arms(work: Path, shape: str, dtype: str) -> list[dict[str, Any]]:
    """Every method, some twice: with another seed, and with activations formed again."""
    data = shop.recipe(work, shape)["data"]
    common = {"dtype": dtype, "data": {**data, "test": data["train"]}}
    made = [shop.recipe(work, shape, method, **common) for method in ARMS]
    made += [shop.recipe(work, shape, ARMS[i], seed=3, **common) for i in (2, 4, 5)]
    made.insert(2, shop.recipe(work, shape, ARMS[1], recompute=True, **common))
    if shape == "classify":
        made += [{**shop.recipe(work, shape, ARMS[4], **common), "head": head} for head in ({"pool": "cls", "kind": "mlp"}, {"pool": "mean"})]
    return made


@pytest.mark.parametrize(
    ("shape", "model", "dtype"),
    [("classify", shop.encoder, "bf16"), ("tag", shop.encoder, "fp32"), ("generate", shop.decoder, "bf16"), ("generate", shop.seq2seq, "fp32")],
)
def test_arms_are_what_they_are_alone(shape, model, dtype, tmp_path):
    model(tmp_path / "model")
    shared = Shared(keeps=True)
    for i, made in enumerate(arms(tmp_path, shape, dtype)):
        if model is shop.seq2seq and made["method"]["kind"] == "head":
            continue
        alone, among = (recipe({**made, "out": str(tmp_path / f"{i}-{way}")}) for way in ("alone", "among"))
        the_same(run(among, Reporter(quiet=True), company=Company(shared)), run(alone, Reporter(quiet=True)))
    assert len(shared.rows) <= 3


def test_tasks_take_turns_too(tmp_path):
    shop.encoder(tmp_path / "model")
    shared = Shared(keeps=True)
    for i, shape in enumerate(("classify", "score", "tag", "classify")):
        made = shop.recipe(tmp_path, shape, "full")
        alone, among = (recipe({**made, "out": str(tmp_path / f"{i}-{way}")}) for way in ("alone", "among"))
        the_same(run(among, Reporter(quiet=True), company=Company(shared)), run(alone, Reporter(quiet=True)))


def test_a_broken_arm_leaves_nothing_behind(tmp_path):
    shop.encoder(tmp_path / "model")
    shared = Shared(keeps=True)

    def breaks(job):
        raise OSError("the disk is full")

    made = shop.recipe(tmp_path)
    with pytest.raises(OSError):
        run(recipe({**made, "out": str(tmp_path / "broken")}), Reporter(quiet=True), company=Company(shared, measures=[breaks]))
    alone, among = (recipe({**made, "out": str(tmp_path / way)}) for way in ("alone", "among"))
    the_same(run(among, Reporter(quiet=True), company=Company(shared)), run(alone, Reporter(quiet=True)))


def test_states_are_computed_once(tmp_path, monkeypatch):
    """Eight heads on one trunk: it runs over the rows once."""
    from tunesmith.networks.transformer import Transformer

    shop.encoder(tmp_path / "model")
    asked: list[int] = []
    whole = Transformer.states
    monkeypatch.setattr(Transformer, "states", lambda net, batch: asked.append(len(batch)) or whole(net, batch))
    shared = Shared(keeps=True)
    counts = []
    for seed in range(8):
        asked.clear()
        run(recipe(shop.recipe(tmp_path, method="head", seed=seed, out=str(tmp_path / f"{seed}"))), Reporter(quiet=True), company=Company(shared))
        counts.append(sum(asked))
    assert counts[0] >= 80 and counts[1:] == [0] * 7
