"""How a head begins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import shop
from tunesmith.artifact import load
from tunesmith.dataset import read_data
from tunesmith.networks.heads import Head, HeadSpec
from tunesmith.predicting import outputs
from tunesmith.recipe import recipe
from tunesmith.shared import Shared, unit, usual
from tunesmith.sources.text.examples import UNKNOWN
from tunesmith.train import run

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
    first = Head(4, HeadSpec(3, usual=share))[-1].bias.softmax(0)[0].item()
    assert first == pytest.approx(min(max(share, 0.01), 0.99))


# ------------------------------------------------------------------------------------------------ numbers


def scored(work: Path, unit_of: float, zero: float = 0.0, rows: int = 48, seed: int = 0) -> str:
    """Scores in another unit, counted from another zero."""
    file = work / f"score-{unit_of}-{zero}-{rows}.jsonl"
    made_of = [{**shop.SHAPES["score"](t, h), "domain": "xyz"[i * 3 // rows]} for i, (t, h) in enumerate(shop.texts(rows, seed))]
    file.write_text("".join(json.dumps({**row, "score": zero + unit_of * row["score"]}) + "\n" for row in made_of))
    return str(file)


def scorer(work: Path, file: str, out: Path, **more: object) -> dict:
    return {**shop.recipe(work, "score", "full", out=str(out), data={"train": file, "eval": file}), "dropout": 0.0, "head": {"dropout": 0.0}, **more}


def test_a_number_begins_near_the_mean(work: Path) -> None:
    one = recipe(scorer(work, scored(work, 20.0, 7.0), work / "begins"))
    data = read_data(one)
    scores = torch.tensor([e.score for e in data.train.examples])
    assert unit(data) == pytest.approx((scores.mean().item(), scores.std(correction=0).item()))
    with Shared().lent(one, data) as net:
        said = net.heads["score"](torch.randn(256, net.anatomy.width))[:, 0]
        assert abs(said.mean().item() - unit(data)[0]) < 0.1 * unit(data)[1]
    assert unit(
        replace(data, train=replace(data.train, encoded=replace(data.train.encoded, kept=tuple(replace(e, score=float("nan")) for e in data.train.examples))))
    ) == (0.0, 1.0)


@pytest.mark.parametrize("method", ["full", "lora", "head"])
def test_stars_and_per_cent_are_learnt_alike(work: Path, tmp_path: Path, method: str) -> None:
    """In another unit, from another zero: the same answers, in that unit."""
    said = []
    for name, factor, zero in (("stars", 1.0, 0.0), ("cent", 64.0, -20.0)):
        result = run(recipe(scorer(work, scored(work, factor, zero), tmp_path / name, method=method, budget={"steps": 12}, dtype="fp32")))
        rows = [json.loads(line)["text"] for line in Path(scored(work, factor, zero)).read_text().splitlines()]
        said.append((torch.cat(outputs(load(result.folder), rows, 16)) - zero) / factor)
        assert result["after"]["rmse"] < result["before"]["rmse"]
    torch.testing.assert_close(said[0], said[1], rtol=0.02, atol=0.02)


def test_a_line_in_the_answers_own_unit() -> None:
    head, x = Head(4, HeadSpec(1, dropout=0.0, centre=50.0, spread=30.0)), torch.randn(6, 4)
    weight, bias = torch.randn(1, 4, dtype=torch.float64), torch.tensor([70.0], dtype=torch.float64)
    head.say(weight, bias)
    torch.testing.assert_close(head(x), (x.double() @ weight.T + bias).float())


def test_a_stage_that_comes_later_leaves_the_unit(work: Path, tmp_path: Path) -> None:
    """The unit is that of the first part, so a run that was over goes on as one that had all parts from the beginning, and what it says is loaded as it was said."""
    rows = Path(scored(work, 20.0)).read_text().splitlines(keepends=True)
    file, stream = tmp_path / "growing.jsonl", {"kind": "sequence", "by": "domain", "scenario": "domain"}
    made_of = lambda out: recipe(scorer(work, str(file), tmp_path / out, stream=stream, strategy="naive", budget={"steps": 2}))
    for domains in ("xy", "xyz"):
        file.write_text("".join(row for row in rows if json.loads(row)["domain"] in domains))
        found = run(made_of("parts"))
    whole = run(made_of("whole"))
    one, two = (load(r.folder) for r in (whole, found))
    assert all(torch.equal(a, b) for a, b in zip(one.delta.state_dict().values(), two.delta.state_dict().values(), strict=True))
    assert one.about.head["centre"] == two.about.head["centre"] == pytest.approx(sum(r["score"] for r in map(json.loads, rows[:16])) / 16)
    texts, scores = zip(*((r["text"], r["score"]) for r in map(json.loads, rows)), strict=True)
    off = torch.cat(outputs(two, texts, 16)) - torch.tensor(scores)
    assert off.square().mean().item() == pytest.approx(found["after"]["loss"], rel=1e-3)
