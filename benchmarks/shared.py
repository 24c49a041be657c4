"""What does one comparison save against the same runs made one by one?

    TUNESMITH_DATA=... python benchmarks/shared.py --only methods     # eight methods x three seeds on SST-2
    TUNESMITH_DATA=... python benchmarks/shared.py --only heads       # eight heads
    python benchmarks/shared.py --only kills --kills 5                # a killed comparison ends with the same table

SST-2, 1,000 training rows, two epochs, judged on the dev rows. `together` is one `tunesmith compare`, with its baselines and all that it
measures besides; `apart` is one `tunesmith run` after another. Each command is a process of its own; seconds are from its start to its end, and
memory is the largest that the kernel ever counted for it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from rates import sets
from tunesmith.comparison.arms import EIGHT

COMMAND = [sys.executable, "-m", "tunesmith"]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--only", choices=["methods", "heads", "kills"], default="methods")
    args.add_argument("--methods", default=",".join(EIGHT))
    args.add_argument("--seeds", type=int, default=3)
    args.add_argument("--limit", type=int, default=1000)
    args.add_argument("--kills", type=int, default=5)
    options = args.parse_args()
    with tempfile.TemporaryDirectory() as work:
        {"methods": methods, "heads": heads, "kills": kills}[options.only](Path(work), options)


def methods(work: Path, options: argparse.Namespace) -> None:
    names = options.methods.split(",")
    alone = [(f"{m}-{s}", {"method": m, "seed": s}) for m in names for s in range(options.seeds)]
    together = ["--methods", options.methods, "--seeds", str(options.seeds)]
    told(work, options, alone, together, {})


def heads(work: Path, options: argparse.Namespace) -> None:
    kinds, rates = ("linear", "mlp"), (0.01, 0.03, 0.1, 0.3)
    alone = [(f"{k}-{r}", {"method": "head", "head": {"kind": k}, "update": {"rate": r}}) for k in kinds for r in rates]
    axes = [f"head.kind={','.join(kinds)}", f"update.rate={','.join(map(str, rates))}"]
    together = ["--methods", "head", "--seeds", "1", *(part for a in axes for part in ("--vary", a))]
    told(work, options, alone, together, {})


def told(work: Path, options: argparse.Namespace, alone: list[tuple[str, dict]], together: list[str], rest: dict) -> None:
    """Both sides, and their ratio; the runs one by one come first and second by halves, so that a slow spell meets both."""
    half = len(alone) // 2
    apart = [command(["run", written(work, name, options, changes)]) for name, changes in alone[:half]]
    one = command(["compare", written(work, "together", options, rest), *together])
    apart += [command(["run", written(work, name, options, changes)]) for name, changes in alone[half:]]
    seconds, most = sum(s for s, _ in apart), max(m for _, m in apart)
    print(f"{len(alone)} runs one by one: {seconds:.1f} s, the largest {most / 2**20:.0f} MB")
    print(f"one comparison: {one[0]:.1f} s, {one[1] / 2**20:.0f} MB")
    print(f"ratio of seconds {one[0] / seconds:.3f}, of memory {one[1] / most:.3f}")


def written(work: Path, name: str, options: argparse.Namespace, changes: dict) -> str:
    """The recipe as a file."""
    sst2 = dict(sets(os.environ["TUNESMITH_DATA"])["sst2"])
    data = {**sst2.pop("data"), "limit": options.limit}
    data["eval"] = data.pop("test")
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**sst2, "data": data, "method": "lora", "budget": {"epochs": 2}, "out": str(work / name), **changes}))
    return str(path)


def command(words: list[str]) -> tuple[float, int]:
    """Seconds and bytes of one command."""
    began = time.perf_counter()
    child = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {child.returncode}")
    return time.perf_counter() - began, used.ru_maxrss * 1024


def kills(work: Path, options: argparse.Namespace) -> None:
    """SIGKILL at random moments of what a comparison takes, then to the end; all that does not tell the time must be the same.

    dtype and kernel are given: where they are `auto` a stopwatch chooses, and two comparisons may choose differently.
    """
    dice, rest, fixed = random.Random(0), ["--methods", options.methods, "--seeds", str(options.seeds)], {"dtype": "fp32", "kernel": "matmul"}
    span, _ = command(["compare", written(work, "straight", options, fixed), *rest])
    recipe, killed = written(work, "killed", options, fixed), 0
    while killed < options.kills:
        child = subprocess.Popen([*COMMAND, "compare", recipe, *rest], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            child.wait(dice.uniform(0.05, 0.25) * span)  # what is done stays done, so a longer wait would see the end first
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            killed += 1
        else:
            break
    command(["compare", recipe, *rest])
    same = measured(work / "straight") == measured(work / "killed")
    print(f"{killed} kills of a comparison of {span:.0f} s; the table is {'the same' if same else 'NOT the same'}")
    sys.exit(not same)


def measured(folder: Path) -> list[dict]:
    """The table without what tells seconds, speed or memory."""
    timed = {"train_seconds", "peak_memory_bytes", "real_tokens_per_second", "latency_ms", "base_latency_ms"}
    record = json.loads((folder / "compare.json").read_text())
    return [{k: v for k, v in row.items() if k not in timed} for row in record["table"]]


if __name__ == "__main__":
    main()
