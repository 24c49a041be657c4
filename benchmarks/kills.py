"""Kill a run with SIGKILL at random moments, a save after every step, and continue: is every kill survived, and is the end the same bits?

    python benchmarks/kills.py --kills 40

A tiny random BERT on forty rows, so that most of the time is spent saving. Prints kills, resumable, and bit-identical ends.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from tunesmith.checkpoint import damage
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.train import run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import shop  # noqa: E402


def spec(work: Path, out: str, method: str) -> dict:
    return shop.recipe(work, "classify", method, budget={"steps": 30}, evaluate={"every": 7}, out=str(work / out))


def child(work: Path, out: str, method: str) -> int:
    """Fork, train, leave. Returns the child's process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(recipe(spec(work, out, method)), Reporter(quiet=True))
            code = 0
        finally:
            os._exit(code)
    return pid


def result(folder: Path) -> str:
    """Hash of all tensors that the run left, and of its history."""
    data = b"".join(p.read_bytes() for p in sorted((folder / "artifact").glob("*.safetensors")))
    record = json.loads((folder / "result.json").read_text())
    return hashlib.sha256(data + json.dumps([record["history"], record["after"]]).encode()).hexdigest()


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--kills", type=int, default=40)
    args.add_argument("--method", default="lora")
    args.add_argument("--seed", type=int, default=0)
    options = args.parse_args()
    torch.set_num_threads(1)
    dice, work = random.Random(options.seed), Path(tempfile.mkdtemp())
    shop.encoder(work / "model")
    os.waitpid(child(work, "warm", options.method), 0)
    began = time.perf_counter()
    os.waitpid(child(work, "straight", options.method), 0)
    span = time.perf_counter() - began
    wanted = result(work / "straight")
    kills = resumable = same = ends = turn = 0
    while kills < options.kills:
        turn += 1
        folder, stopped = work / f"run{turn}", 0
        while True:
            pid = child(work, folder.name, options.method)
            time.sleep(dice.uniform(0, span))
            done, status = os.waitpid(pid, os.WNOHANG)
            if done and status == 0:
                break
            if not done:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
            if os.WIFSIGNALED(status):
                kills, stopped = kills + 1, stopped + 1
                checks = list((folder / "checkpoints").glob("step-*")) if (folder / "checkpoints").exists() else []
                resumable += not checks or any(not damage(c) for c in checks)
            elif not os.WIFEXITED(status) or os.WEXITSTATUS(status):
                raise SystemExit(f"a continued run failed after {stopped} kills")
            if stopped >= 12:
                os.waitpid(child(work, folder.name, options.method), 0)
                break
        ends += 1
        same += result(folder) == wanted
    print(f"{options.method}: {kills} kills, {resumable} resumable; {ends} runs came to their end, {same} bit-identical to the undisturbed one ({span:.1f} s)")


if __name__ == "__main__":
    main()
