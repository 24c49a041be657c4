"""Embedding in a comparison, in advice, in a check and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

import shop
from test_embed import QUIET, embed
from tunesmith.advice.recommend import recommend
from tunesmith.advice.rehearsal import rehearse
from tunesmith.check import check
from tunesmith.comparison.compare import compare
from tunesmith.dataset import read_data
from tunesmith.errors import Refusal
from tunesmith.recipe import recipe
from tunesmith.start import init


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    shop.encoder(folder / "model")
    return folder


@pytest.mark.parametrize("shape", ["pairs", "similar", "grouped"])
def test_a_comparison_has_the_untuned_model_and_leaves_out_what_is_refused(work, shape, tmp_path):
    made = compare(recipe(embed(work, shape, out=str(tmp_path / "all"), budget={"steps": 3})), ["head", "lora", "prefix"], seeds=1, reporter=QUIET)
    rows = {row["label"]: row for row in made.table}
    assert set(rows) == {"untuned", "lora", "prefix"} and rows["untuned"]["baseline"]
    assert rows["untuned"]["mean"] == pytest.approx(rows["lora"]["before"], abs=1e-5)
    assert (tmp_path / "all" / "report.html").exists()


@pytest.mark.parametrize("shape", ["pairs", "negatives", "similar", "grouped", "texts"])
def test_a_check_foretells_what_a_run_will_be(work, shape, tmp_path):
    report = check(recipe(embed(work, shape, out=str(tmp_path / "run"))), QUIET)
    assert report.facts["predicted_peak_memory_bytes"] > 0 and report.facts["steps"] == 20


def test_a_rehearsal_reads_repeated_texts_once_and_knows_a_guide(work, tmp_path):
    made = recipe(embed(work, "pairs", out=str(tmp_path / "run"), objective={"kind": "contrast", "guide": "base", "projection": True}))
    assert rehearse(made, read_data(made)).step.flops > 0
    with pytest.raises(Refusal, match="32 components"):
        other = recipe(embed(work, "pairs", objective={"kind": "contrast", "dims": [64]}))
        rehearse(other, read_data(other))


def test_recommend_speaks_of_embedding(work, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(embed(work, "pairs", out=str(tmp_path / "run"))))
    advice = recommend(str(file), reporter=QUIET)
    verdicts = {v.row: v for v in advice.verdicts}
    assert verdicts["contrast"].fits == "yes" and verdicts["head"].fits == "no" and "no head" in verdicts["head"].why[0]
    assert verdicts["lora"].outlook is not None


def test_a_file_of_pairs_is_for_embedding(work, tmp_path):
    made = embed(work, "pairs")["data"]["train"]
    text, _ = init(made, tmp_path / "recipe.yaml")
    assert recipe(yaml.safe_load(text)).task == "embed"


def test_the_command_mines(work, tmp_path):
    made = embed(work, "pairs")
    command = [sys.executable, "-m", "tunesmith", "mine", made["data"]["train"], "--out", str(tmp_path / "m.jsonl"), "--model", str(work / "model"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["pairs"] == 40 and (tmp_path / "m.jsonl").exists()
