"""Two processes are one: the same losses, the same weights, and a run that either can take up where the other was killed."""

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
from pair import CASES, DISTILLED, PLAYED, PREFERRED, SEVERAL, trained
from safetensors.torch import load_file

import shop
from tunesmith.parallel import any_of, buckets, sum_gradients, told
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.train import run

HERE = Path(__file__).parent
PAIR = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """The folder in which both processes of a pair left what they learnt, case by case."""
    folder = tmp_path_factory.mktemp("pair")
    subprocess.run([*PAIR, str(HERE / "pair.py"), str(folder)], env=ENV, check=True, capture_output=True, timeout=600)
    return folder


@pytest.mark.parametrize("case", [*CASES, *PREFERRED, *PLAYED, *SEVERAL, *DISTILLED])
def test_two_processes_are_one(pair, case):
    """Sums are taken in another order, hence not to the bit. A key's bias has no gradient but rounding, of which AdamW makes whole steps."""
    alone = trained(case)
    a, b = (load_file(pair / f"{case}-{rank}.safetensors") for rank in (0, 1))
    assert alone.keys() == a.keys() == b.keys()
    for name, value in alone.items():
        assert torch.equal(a[name], b[name]), name
        loose = "norm" not in name and ("key" in name or "k_proj" in name or "attn" in name or "k_lin" in name) and name.endswith("bias")
        torch.testing.assert_close(a[name], value, rtol=1e-4, atol=5e-3 if loose else 2e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_one_process_needs_no_other():
    p = torch.nn.Parameter(torch.ones(2))
    assert sum_gradients([p], {"a": torch.tensor(1.0)}, ["a"]) == {"a": torch.tensor(1.0)} and p.grad is None
    assert told(lambda: 7) == 7 and any_of(True) and not any_of(False)


def test_buckets_keep_order_and_dtype(monkeypatch):
    monkeypatch.setattr("tunesmith.parallel.BUCKET", 10)
    tensors = [torch.zeros(n) for n in (4, 5, 2, 30, 1)] + [torch.zeros(3, dtype=torch.bfloat16)]
    assert [[t.numel() for t in bucket] for bucket in buckets(tensors)] == [[4, 5], [2], [30], [1], [3]]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_pair_that_was_stopped_is_taken_up_by_one(tmp_path, number):
    shop.encoder(tmp_path / "model")
    made = shop.recipe(tmp_path, "classify", "lora", budget={"steps": 80}, dropout=0.0, head={"dropout": 0.0})
    file, out = tmp_path / "recipe.yaml", tmp_path / "pair"
    file.write_text(yaml.safe_dump({**made, "out": str(out)}))
    launched = subprocess.Popen([*PAIR, "-m", "tunesmith", "run", str(file)], env=ENV, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not any(out.glob("checkpoints/step-*")) and launched.poll() is None:
        time.sleep(0.01)
    worker = int((out / ".lock").read_text().split()[1])  # the launcher gives its processes a session of their own
    for pid in (launched.pid, worker) if number == signal.SIGKILL else (launched.pid,):
        os.kill(pid, number)
    said = launched.communicate(timeout=120)[1]
    assert not (out / "result.json").exists()
    assert number == signal.SIGKILL or "the same command continues" in said
    again = run(recipe({**made, "out": str(out)}), Reporter(quiet=True))
    alone = run(recipe({**made, "out": str(tmp_path / "alone")}), Reporter(quiet=True))
    assert losses(out) == pytest.approx(losses(alone.folder), abs=1e-4)
    assert again["after"]["loss"] == pytest.approx(alone["after"]["loss"], abs=1e-4)


def test_a_teacher_is_asked_by_one_of_a_pair(tmp_path):
    shop.encoder(tmp_path / "model")
    teacher = {**shop.recipe(tmp_path, "classify", "full"), "out": str(tmp_path / "teacher")}
    run(recipe(teacher), Reporter(quiet=True))
    learn = {"objective": {"kind": "distil", "teacher": str(tmp_path / "teacher")}, "dropout": 0.0, "head": {"dropout": 0.0}}
    made, file, out = shop.recipe(tmp_path, "classify", "lora", **learn), tmp_path / "recipe.yaml", tmp_path / "pair"
    file.write_text(yaml.safe_dump({**made, "out": str(out)}))
    subprocess.run([*PAIR, "-m", "tunesmith", "run", str(file)], env=ENV, capture_output=True, timeout=300, check=True)
    alone = run(recipe({**made, "out": str(tmp_path / "alone")}), Reporter(quiet=True))
    assert losses(out) == pytest.approx(losses(alone.folder), abs=1e-4)
    assert (out / "teacher" / "teacher.safetensors").read_bytes() == (alone.folder / "teacher" / "teacher.safetensors").read_bytes()


def test_a_refusal_is_said_once(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("model: minilm\ntask: classify\ndata: {train: nowhere.jsonl}\nmethod: lora\n")
    done = subprocess.run([*PAIR, "-m", "tunesmith", "run", str(file)], env=ENV, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode and done.stderr.count("tunesmith: ") == 1 and "nowhere.jsonl" in done.stderr
