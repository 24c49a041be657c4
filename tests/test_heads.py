"""How a head begins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import shop
from tunesmith.dataset import read_data
from tunesmith.networks.heads import Head
from tunesmith.recipe import recipe
from tunesmith.shared import Shared, usual
from tunesmith.sources.text.examples import UNKNOWN

WORDS = ("the", "a", "to", "of", "in", "Paris", "Rome", "Bern")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    shop.encoder(folder / "model")
    for shape in ("classify", "tag"):
        shop.rows(folder / f"{shape}.jsonl", shape)
    return folder


def tagged(path: Path, shares: int) -> str:
    """Rows of `shares` words that are no entity before each one that is."""
    rows = [{"tokens": [WORDS[(i + k) % 5] for k in range(shares)] + [WORDS[5 + i % 3]], "tags": ["O"] * shares + ["B-place"]} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def made(work: Path, file: str, **more: object) -> dict:
    return {**shop.recipe(work, "tag", "full", out=str(work / "run"), data={"train": file, "eval": file}), **more}


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("shares", [1, 3, 9])
def test_a_tagger_begins_with_what_is_usual(work: Path, tmp_path: Path, shares: int, kind: str) -> None:
    """It says `O` as often as the rows do, and all else alike; so the first gradient does not push every word towards `O`."""
    one = recipe(made(work, tagged(tmp_path / "rows.jsonl", shares), head={"kind": kind}))
    data = read_data(one)
    share = shares / (shares + 1)
    assert usual(data) == pytest.approx(share)
    with Shared().lent(one, data) as net:
        bias = net.heads["tag"][-1].bias
        assert bias.softmax(0)[0].item() == pytest.approx(share)
        assert torch.equal(bias[1:], torch.zeros_like(bias[1:]))
        labels = data.train.encoded.columns["label"].values
        gradient = torch.autograd.grad(nn.functional.cross_entropy(bias.expand(len(labels), -1), labels), bias)[0]
        assert abs(gradient[0].item()) < 1e-6
        plain = nn.functional.cross_entropy(torch.zeros_like(bias).requires_grad_().expand(len(labels), -1), labels)
        assert plain.item() > nn.functional.cross_entropy(bias.expand(len(labels), -1), labels).item()


def test_what_is_unknown_is_not_counted(work: Path, tmp_path: Path) -> None:
    """Words that a teacher is to tag."""
    data = read_data(recipe(made(work, tagged(tmp_path / "rows.jsonl", 3))))
    unknown = [replace(e, tags=(UNKNOWN,) * len(e.tags)) for e in data.train.examples]
    mixed = lambda rows: replace(data, train=replace(data.train, encoded=replace(data.train.encoded, kept=tuple(rows))))
    assert usual(mixed([*data.train.examples[:4], *unknown])) == pytest.approx(0.75)
    assert usual(mixed(unknown)) is None


def test_other_heads_begin_with_nothing(work: Path) -> None:
    file = str(work / "classify.jsonl")
    one = recipe(shop.recipe(work, "classify", "full", out=str(work / "run"), data={"train": file, "eval": file}))
    with Shared().lent(one, read_data(one)) as net:
        assert not net.heads["classify"][-1].bias.any()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_it_never_begins_sure(share: float) -> None:
    first = Head(4, 3, usual=share)[-1].bias.softmax(0)[0].item()
    assert first == pytest.approx(min(max(share, 0.01), 0.99))
