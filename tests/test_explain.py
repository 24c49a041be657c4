"""Explanations: the drawing's counts are the model's, every row can be explained, pictures are whole, the gallery is up to date."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

import shop
import tunesmith
from tunesmith.advice.rehearsal import rehearse
from tunesmith.comparison.arms import EIGHT
from tunesmith.construct import build
from tunesmith.construct import options as options_of
from tunesmith.dataset import read_data
from tunesmith.errors import Refusal
from tunesmith.explanation.explain import choices, explain
from tunesmith.explanation.figure import Figure
from tunesmith.guide import GUIDE
from tunesmith.objectives import OBJECTIVES
from tunesmith.recipe import recipe
from tunesmith.sources.streams import STREAMS
from tunesmith.strategies import STRATEGIES
from tunesmith.updates import UPDATES

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Configurations and tokenizers without weights: nothing else may be read."""
    folder = tmp_path_factory.mktemp("models")
    for make in (shop.encoder, shop.decoder, shop.seq2seq):
        for weights in make(folder / make.__name__).glob("*.safetensors"):
            weights.unlink()
    return folder


def summed(figure: Figure) -> tuple[int, int]:
    """What trains or was added, and all, added over the drawing's cells."""
    cells = [(floor.many, cell) for floor in figure.floors for cell in floor.cells]
    before = figure.before[2] if figure.before else 0
    return sum(n * (c.trains + c.added) for n, c in cells) + before, sum(n * (c.total + c.added) for n, c in cells) + before


@pytest.mark.parametrize("method", EIGHT)
@pytest.mark.parametrize("model", ["encoder", "decoder", "seq2seq"])
def test_the_drawing_adds_up(models, method, model):
    figure = explain(method, str(models / model)).figure
    assert figure is not None
    trains, total = summed(figure)
    assert trains == figure.trainable
    assert total <= figure.total  # a part that the task does not use, such as a pooler, is not drawn
    assert sum(floor.many for floor in figure.floors if floor.blocks) == figure.depth


@pytest.mark.parametrize("method", EIGHT)
def test_it_counts_what_a_run_trains(tmp_path, method):
    shop.encoder(tmp_path / "model")
    made = recipe(shop.recipe(tmp_path, "classify", method))
    figure = explain(method, str(tmp_path / "model"), task="classify").figure
    assert figure is not None
    assert figure.trainable == rehearse(made, read_data(made)).trainable


@pytest.mark.parametrize("row", [*GUIDE, *OBJECTIVES])
def test_every_row_can_be_explained(models, row):
    found = explain(row, str(models / "encoder"))
    text = "\n".join(found.lines())
    assert len(text) > 80
    if row in GUIDE:
        assert GUIDE[row].texts["en"].strength in text
    json.dumps(found.record)


@pytest.mark.parametrize("method", EIGHT)
def test_pictures_are_whole(models, method):
    found = explain(method, str(models / "decoder"))
    root = ET.fromstring(found.svg)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w, h = (float(box.attrib.get(k, 0)) for k in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    assert f"{found.figure.trainable:,}" in "\n".join(found.lines())  # type: ignore[union-attr]
    assert max(map(len, found.lines()[:30])) <= 160


def test_options_change_the_drawing(models):
    small, large = (tunesmith.explain("lora", str(models / "encoder"), rank=r).figure for r in (2, 8))
    assert small is not None
    assert large is not None
    assert large.trainable - small.trainable == 6 * 2 * (4 * (32 + 32) + 2 * (32 + 64))  # rank 6 more, in two blocks, on every projection


def test_it_is_a_command(models, tmp_path):
    picture = tmp_path / "lora.svg"
    command = [sys.executable, "-m", "tunesmith", "explain", "lora", "--model", str(models / "encoder"), "--option", "rank=4", "--svg", str(picture), "--json"]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said["figure"]["trainable"] > 0
    ET.parse(picture)


@pytest.mark.parametrize(("row", "options", "told"), [("lroa", [], "did you mean `lora`"), ("lora", ["rnak=3"], "rank"), ("lora", ["rank=no"], "rank")])
def test_what_is_not_there_is_refused(models, row, options, told):
    with pytest.raises(Refusal, match=told):
        explain(row, str(models / "encoder"), options)


def test_the_gallery_is_up_to_date(tmp_path):
    """Made again, it is the same."""
    command = [sys.executable, str(ROOT / "docs" / "gallery.py"), "--out", str(tmp_path)]
    subprocess.run(command, check=True)
    made = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    assert len(made) == 1 + 2 * len(EIGHT)
    for name, text in made.items():
        assert (ROOT / "docs" / name).read_text() == text, f"python docs/gallery.py has not been run since {name} changed"


@pytest.mark.parametrize(
    ("name", "row", "line"),
    [
        ("ppo", "reinforce", "objective: {kind: reinforce, algorithm: ppo}"),
        ("dpo", "prefer", "objective: {kind: prefer, loss: dpo}"),
        ("supcon", "contrast", "objective: {kind: contrast, loss: supcon}"),
        ("ewc", "sequence", "strategy: ewc"),
        ("pcgrad", "mix", "update: {kind: pcgrad}"),
    ],
)
def test_a_choice_within_a_row_leads_there(name, row, line):
    found = explain(name)
    assert (found.row, found.facts[0]) == (row, f"{name} is written `{line}`")
    assert found.facts[2:] == explain(row).facts


def test_what_a_choice_is_written_as_can_be_read():
    for row, line in choices().values():
        (section, written), *_ = yaml.safe_load(line).items()
        if section == "objective":
            assert build(options_of(OBJECTIVES[written.pop("kind")]), written, section, None)
        else:
            assert (written if section == "strategy" else written["kind"]) in {"strategy": STRATEGIES, "update": UPDATES}[section]
            assert row in STREAMS
