"""`init`: what a file is for, by what stands in it, and a recipe that reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import shop
from tunesmith.errors import Refusal
from tunesmith.recipe import read_recipe
from tunesmith.start import init, sniff

TASKS = {"classify": "classify", "multi": "classify", "pair": "classify", "tag": "tag", "score": "score", "generate": "generate", "messages": "generate"}


@pytest.mark.parametrize("shape", [*TASKS, "plain"])
def test_a_file_says_what_it_is_for(tmp_path, shape):
    assert sniff(str(shop.rows(tmp_path / "rows.jsonl", shape)))[0] == TASKS.get(shape, "generate")


def test_a_table_without_names_is_classes_where_they_repeat(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("".join(f"{text}\t{half}\n" for text, half in shop.texts(40)))
    assert sniff(str(path))[0] == "classify"


def test_a_file_for_nothing_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"size": 3}) + "\n")
    with pytest.raises(Refusal):
        sniff(str(path))


def test_the_recipe_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, _ = init(str(shop.rows(Path("rows.jsonl"), "classify")), Path("recipe.yaml"), None, False)
    made = read_recipe("recipe.yaml")
    assert (made.task, made.model.name, made.method["kind"]) == ("classify", "minilm", "lora")
    assert "rows.jsonl" in text
    with pytest.raises(Refusal):
        init("rows.jsonl", Path("recipe.yaml"), None, False)


def test_what_writes_starts_from_the_embedded_language_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init(str(shop.rows(Path("rows.jsonl"), "generate")), Path("recipe.yaml"), None, False)
    assert read_recipe("recipe.yaml").model.name == "desk-lm"
