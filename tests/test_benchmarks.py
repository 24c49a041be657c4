"""The benchmarks still fit the code: each imports and says what it does, and those that hold both sides of a comparison run."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


COMMANDS = [path for path in sorted(FOLDER.rglob("*.py")) if "argparse" in path.read_text()]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda p: p.stem)
def test_a_benchmark_says_what_it_does(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(str(path.parent))
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(path), run_name="__main__")
    assert left.value.code in (0, None)
    assert "usage" in capsys.readouterr().out


def ran(*words: str) -> str:
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # two beside another test's wait for each other
    done = subprocess.run([sys.executable, *words], cwd=FOLDER, capture_output=True, text=True, timeout=300, check=False, env=one_thread)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_both_sides_of_the_peers_compute_the_same():
    assert "lora" in ran("peers.py", "--equal", "--methods", "lora", "--steps", "2", "--threads", "1")


def test_the_gpu_s_benchmark_can_be_rehearsed():
    rehearsal = ("--device", "cpu", "--layers", "4", "--width", "64", "--vocabulary", "1200", "--tokens", "120", "--steps", "1")
    found = [json.loads(line) for line in ran("gpu.py", *rehearsal).splitlines() if line.startswith("{")]
    assert len(found) == 8
    for pair in found:
        assert "error" not in pair["ours"], pair
        assert "error" not in pair["peers"], pair


def test_contrast_beside_the_peer_runs():
    small = ("--pairs", "24", "--size", "8", "--repeat", "1", "--threads", "1", "--peers", "fp32 sdpa")
    assert "fp32 sdpa" in ran("peers_contrast.py", *small)
