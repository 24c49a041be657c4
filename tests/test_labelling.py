"""Several teachers, and few-shot runs that label texts for a student (PET), in generations (iPET); texts to warm up on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import shop
import tunesmith
from tunesmith.artifact import export, load
from tunesmith.dataset import read_data
from tunesmith.errors import Refusal
from tunesmith.job import agreed, assemble
from tunesmith.labelling import pet
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.shared import Shared
from tunesmith.train import run

QUIET = Reporter(quiet=True)
FEW = {"stream": {"kind": "few", "k": 3}, "budget": {"steps": 6}, "update": {"batch": 8, "rate": 5e-3}, "evaluate": {"samples": 0}}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelling")
    shop.encoder(folder / "model")
    shop.rows(folder / "held.jsonl", "classify", 30, seed=5)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t, _ in shop.texts(60, seed=9)))
    for name, method in (("a", "full"), ("b", "lora")):
        run(recipe({**few(folder, folder / name), "method": method}), QUIET)
    return folder


def few(work: Path, out: Path, **more) -> dict:
    made = shop.recipe(work, "classify", "full", out=str(out), **FEW, **more)
    return {**made, "data": {**made["data"], "eval": str(work / "held.jsonl")}}


def student(work: Path, out: Path, *teachers: str, **more) -> dict:
    made = few(work, out, objective={"kind": "distil", "teacher": [str(work / name) for name in teachers], "alpha": 1.0, **more})
    return {**made, "data": {**made["data"], "unlabelled": str(work / "texts.jsonl")}}


def test_several_teachers_are_their_mean(work, tmp_path):
    """What the student is given for each row is the mean of what each says of it alone; the run ends, and says who taught."""
    found = run(recipe(student(work, tmp_path / "both", "a", "b")), QUIET)
    said = {}
    for name in ("a", "b"):
        run(recipe({**student(work, tmp_path / name, name), "budget": {"steps": 1}}), QUIET)
        said[name] = load_file(tmp_path / name / "teacher/teacher.safetensors")
    members = [load_file(tmp_path / "both/teacher" / str(i) / "teacher.safetensors") for i in (0, 1)]
    for alone, member in zip(said.values(), members, strict=True):
        assert torch.equal(alone["teacher"], member["teacher"])
    made = recipe(student(work, tmp_path / "batch", "a", "b"))
    data, shared = read_data(made), Shared()
    with shared.lent(made, data) as net:
        job = assemble(made, data, net, QUIET)
        batch = next(job.run.stream[0].train.batches(net))
        ids = job.run.stream[0].train.examples
    place = {e: i for i, e in enumerate(members[0]["example"].tolist())}
    spots = [place[ids[row]] for row in batch["row"].tolist()]
    torch.testing.assert_close(batch["teacher"], (members[0]["teacher"][spots] + members[1]["teacher"][spots]) / 2)
    assert found["teacher"]["name"] == f"{work / 'a'} + {work / 'b'}"
    assert found["teacher"]["parameters"] > found["student"]["parameters"]
    assert set(found["teacher"]["scores"]) >= {"accuracy"}


def test_stored_answers_are_averaged_too(work, tmp_path):
    run(recipe({**student(work, tmp_path / "first", "a"), "budget": {"steps": 1}}), QUIET)
    cache = str(tmp_path / "first/teacher")
    made = student(work, tmp_path / "second", "b")
    made["objective"]["teacher"].append(cache)
    assert run(recipe(made), QUIET)["steps"] == 6


@pytest.mark.parametrize(
    ("teachers", "more", "words"),
    [(("a", "a"), {}, "each once"), ((), {}, "each once"), (("a", "b"), {"states": {0: 0}}, "not averaged"), (("a", "missing"), {}, "missing")],
)
def test_teachers_that_cannot_teach_together(work, tmp_path, teachers, more, words):
    with pytest.raises(Refusal, match=words):
        made = recipe(student(work, tmp_path, *teachers, **more))
        agreed(made, read_data(made))


def test_pet_in_generations(work, tmp_path):
    """Members learn from the labels, then from each other on five times the rows, then the student from all of them on all texts."""
    members = [{"method": "full", "objective": "setfit"}, {"method": {"kind": "lora", "rank": 2}}, {"method": "bitfit"}]
    found = pet(recipe(few(work, tmp_path / "pet")), members, str(work / "texts.jsonl"), generations=1, reporter=QUIET)
    runs = {(g, i): json.loads((tmp_path / f"pet/generation-{g}/{i}/result.json").read_text()) for g in (0, 1) for i in range(3)}
    assert [r["train_rows"] for r in runs.values()] == [6, 6, 6, 36, 36, 36]
    assert found["train_rows"] == 66
    assert runs[1, 0]["recipe"]["objective"]["teacher"] == [str(tmp_path / f"pet/generation-0/{i}") for i in (1, 2)]
    assert found["recipe"]["objective"]["teacher"] == [str(tmp_path / f"pet/generation-1/{i}") for i in range(3)]
    assert found["recipe"]["objective"]["temperature"] == 2.0 and found["method"] == "full"
    assert runs[1, 1]["method"] == "lora" and found["after"]["loss"] < found["before"]["loss"]
    again = tunesmith.pet(few(work, tmp_path / "pet"), members, str(work / "texts.jsonl"), generations=1, reporter=QUIET)
    assert again.record == found.record  # finished runs are taken as they are


def test_pet_without_members_or_with_nobody_to_learn_from(work, tmp_path):
    for members, generations in (([], 0), ([{"method": "lora"}], 1)):
        with pytest.raises(Refusal, match="two at least"):
            pet(recipe(few(work, tmp_path)), members, str(work / "texts.jsonl"), generations=generations, reporter=QUIET)


def test_warmed_up_on_texts_without_labels(work, tmp_path):
    """SimCSE on the texts, exported, is the base that few labels are learnt on."""
    warm = shop.recipe(work, "embed", "full", out=str(tmp_path / "warm"), dropout=0.1, budget={"steps": 8}, evaluate={"samples": 0})
    run(recipe({**warm, "data": {"train": str(work / "texts.jsonl")}}), QUIET)
    export(tmp_path / "warm", tmp_path / "base")
    found = run(recipe({**few(work, tmp_path / "few", objective="setfit"), "model": str(tmp_path / "base")}), QUIET)
    assert found["steps"] == 6
    moved = load(tmp_path / "few").net.state_dict()
    assert any(not torch.equal(t, moved[n]) for n, t in load(work / "a").net.state_dict().items() if n in moved)
