"""A run that was stopped, anywhere and in any way, ends in the same bits as one that was not; what is damaged is named and passed over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import shop
from tunesmith import checkpoint
from tunesmith import train as training
from tunesmith.checkpoint import Checkpoints, Lock, damage, write_folder
from tunesmith.core import Run
from tunesmith.errors import DIVERGED, INTERRUPTED, Diverged, Refusal, Storage
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe

METHODS = [
    "full",
    "head",
    {"kind": "layers", "last": 1, "unfreeze": 1},
    "lora",
    {"kind": "prefix", "length": 3, "reparametrise": "mlp"},
    {"kind": "prompt", "length": 3, "reparametrise": "lstm"},
]


class Stop(BaseException):
    """What stands for a kill: nothing of ours catches it."""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    shop.encoder(folder / "model")
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{p.name}:{k}": v for p in sorted((folder / "artifact").glob("*.safetensors")) for k, v in load_file(p).items()}


def same(a: Path, b: Path) -> bool:
    one, two = tensors(a), tensors(b)
    records = [json.loads((f / "result.json").read_text()) for f in (a, b)]
    losses = [[json.loads(line)["loss"] for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (a, b)]
    return (
        one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one) and records[0]["history"] == records[1]["history"] and losses[0] == losses[1]
    )


def train(made: dict) -> Path:
    return training.run(recipe(made), Reporter(quiet=True)).folder


def train_with_stops(made: dict, monkeypatch, stops: list[int]) -> Path:
    """Stopped right after each of these steps, before anything is saved for it; then to the end."""
    step = Checkpoints.step
    for at in stops:

        def stopping(self, run: Run, record, at=at):
            if run.done == at:
                raise Stop
            step(self, run, record)

        monkeypatch.setattr(Checkpoints, "step", stopping)
        with pytest.raises(Stop):
            train(made)
    monkeypatch.setattr(Checkpoints, "step", step)
    return train(made)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_stopped_twice_in_an_epoch_ends_in_the_same_bits(work, method, tmp_path, monkeypatch):
    made = shop.recipe(work, "classify", method, budget={"steps": 12}, evaluate={"every": 4}, checkpoint={"every": 2})
    straight = train({**made, "out": str(tmp_path / "straight")})
    broken = train_with_stops({**made, "out": str(tmp_path / "broken")}, monkeypatch, [3, 4, 9])
    assert same(straight, broken)


@pytest.mark.parametrize("shape", ["tag", "score"])
def test_every_task_continues(work, shape, tmp_path, monkeypatch):
    made = shop.recipe(work, shape, "lora", budget={"steps": 8}, checkpoint={"every": 1})
    assert same(train({**made, "out": str(tmp_path / "a")}), train_with_stops({**made, "out": str(tmp_path / "b")}, monkeypatch, [5]))


def stopped(work: Path, out: Path, monkeypatch) -> dict:
    made = shop.recipe(work, "classify", "lora", budget={"steps": 8}, out=str(out), checkpoint={"every": 1, "keep": 2})
    step = Checkpoints.step
    monkeypatch.setattr(Checkpoints, "step", lambda self, run, record: (_ for _ in ()).throw(Stop) if run.done == 6 else step(self, run, record))
    with pytest.raises(Stop):
        train(made)
    monkeypatch.setattr(Checkpoints, "step", step)
    return made


@pytest.mark.parametrize("name", ["delta.safetensors", "update.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over(work, name, how, tmp_path, monkeypatch):
    made = stopped(work, tmp_path / "run", monkeypatch)
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    file = newest / name
    data = bytearray(file.read_bytes())
    if how == "remove":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data if how == "flip" else data[: len(data) // 2])
    assert damage(newest)
    straight = train(shop.recipe(work, "classify", "lora", budget={"steps": 8}, out=str(tmp_path / "straight"), checkpoint={"every": 1, "keep": 2}))
    assert same(straight, train(made))


@given(st.integers(0, 10_000), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_noticed(place, bit):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "step-1"
        write_folder(target, {"a": os.urandom(300), "b": b"{}"})
        assert not damage(target)
        files = sorted(target.iterdir())
        file = files[place % len(files)]
        data = bytearray(file.read_bytes())
        data[place % len(data)] ^= 1 << bit
        file.write_bytes(data)
        assert damage(target)


def test_a_changed_recipe_is_refused_with_the_difference(work, tmp_path, monkeypatch):
    made = stopped(work, tmp_path / "run", monkeypatch)
    with pytest.raises(Refusal, match="another recipe"):
        train({**made, "update": {"batch": 4}})
    rows = (work / "classify.jsonl").read_text()
    other = tmp_path / "other.jsonl"
    other.write_text(rows.replace("w1 ", "w2 "))
    with pytest.raises(Refusal):
        train({**made, "data": {"train": str(other), "eval": str(other)}})


def test_two_runs_on_one_folder_are_refused(tmp_path):
    held = Lock(tmp_path)
    with pytest.raises(Refusal, match="in use by process"):
        Lock(tmp_path)
    held.release()
    Lock(tmp_path).release()


def test_a_disk_that_refuses_leaves_the_earlier_checkpoint(work, tmp_path, monkeypatch):
    made = shop.recipe(work, "classify", "lora", budget={"steps": 8}, out=str(tmp_path / "run"))
    write, count = checkpoint.write_synced, []

    def full(path: Path, data: bytes) -> None:
        count.append(path)
        if len(count) > 30:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_synced", full)
    with pytest.raises(Storage, match="cannot write"):
        train(made)
    left = list((tmp_path / "run" / "checkpoints").iterdir())
    assert [p for p in left if p.name.startswith("step-")]
    assert all(not damage(p) for p in left if p.name.startswith("step-"))
    monkeypatch.setattr(checkpoint, "write_synced", write)
    assert same(train(made), train({**made, "out": str(tmp_path / "straight")}))


def test_a_run_that_diverges_stops_before_the_update(work, tmp_path):
    made = shop.recipe(work, "classify", "full", budget={"steps": 8}, update={"batch": 8, "rate": 1e30, "clip": 0, "warmup": 0}, out=str(tmp_path / "run"))
    with pytest.raises(Diverged) as caught:
        train(made)
    assert caught.value.code == DIVERGED
    text = str(caught.value)
    assert "learning rate" in text
    assert "rows" in text
    assert "step" in text


def command(folder: Path, made: dict) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(made))
    return [sys.executable, "-m", "tunesmith.cli", "run", str(path)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_costs_nothing(work, number, tmp_path):
    made = shop.recipe(work, "classify", "lora", budget={"steps": 400}, evaluate={"every": 400}, checkpoint={"every": 5})
    line = command(tmp_path, {**made, "out": str(tmp_path / "run")})
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    journal = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_text().count("\n") > 12) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else INTERRUPTED)
    assert number == signal.SIGKILL or b"the same command continues" in said
    assert subprocess.run(line, capture_output=True).returncode == 0
    assert same(tmp_path / "run", train({**made, "out": str(tmp_path / "straight")}))
