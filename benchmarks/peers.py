"""Tunesmith beside PEFT + Hugging Face Trainer: the same examples, the same model, turn by turn, one process a measurement.

    python benchmarks/peers.py                            all methods against both peers
    python benchmarks/peers.py --methods lora --equal     are the losses the same, step by step?

See benchmarks/README.md for what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from sides import Spec  # noqa: E402
from tunesmith.machine import multiplies_bf16  # noqa: E402

METHODS = ("full", "head", "layers", "adapter", "prompt", "prefix", "lora", "bitfit")
EPOCHS = {"head": 10, "layers": 3}
DTYPES = ("bf16", "fp32") if multiplies_bf16() else ("fp32",)
VARIANTS = {
    "ours": [{"dtype": d, "kernel": k} for d in DTYPES for k in ("matmul", "sdpa")],
    "default": [{}],
    "tuned": [{"dtype": d, "attention": a} for d in DTYPES for a in ("sdpa", "eager")],
}
PROBE_STEPS = 6
CLOSE = 1e-4  # largest relative difference of a loss in --equal
console = Console(width=None if sys.stdout.isatty() else 150)


def asked(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--methods", type=names, default=list(METHODS), help="comma-separated")
    parser.add_argument("--peers", type=names, default=["default", "tuned"], help="default, tuned")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--dropout", default="published", help="published, or one probability for both sides, attention included")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--malloc", action="store_true", help="let glibc keep freed memory in the peers' processes too, as ours does")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of the processor; with --threads 1 only")
    parser.add_argument("--others", type=float, default=0.15, help="cores that other processes may take during a measurement")
    parser.add_argument("--equal", action="store_true", help="compare losses step by step instead of speed")
    parser.add_argument("--steps", type=int, default=20, help="of --equal")
    parser.add_argument("--json", type=Path, help="write every measurement here")
    args = parser.parse_args(argv)
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu adds up the time of all threads, waiting ones too: it needs --threads 1")
    return args


def spec_for(method: str, side: str, args: argparse.Namespace) -> Spec:
    """Both sides train at the rate that our methods' table gives."""
    from tunesmith.methods import METHODS as TABLE
    from tunesmith.networks.load import origin

    dropout = None if args.dropout == "published" else float(args.dropout)
    shared = {"threads": args.threads, "seed": args.seed, "dropout": dropout, "malloc": args.malloc, "clock": args.clock}
    shared |= {"examples": args.examples, "epochs": EPOCHS.get(method, 1)}
    return Spec(side, method, "minilm" if side == "ours" else origin("minilm").path, TABLE[method].rates["encoder"], **shared)


def measure(mode: str, spec: Spec, **more: object) -> dict:
    """Run sides.py in a process of its own and read the last line that it prints."""
    order = json.dumps({"mode": mode, "spec": asdict(spec), **more})
    path = os.pathsep.join(filter(None, [str(HERE.parent / "src"), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(spec.threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if spec.malloc and spec.side != "ours":
        env |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1)}
    busy, own, start = processor_time(), os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, str(HERE / "sides.py"), order], capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{spec.side} {spec.method} failed:\n{done.stderr[-3000:]}")
    ours = sum(os.times()[2:4]) - sum(own[2:4])
    others = max(0.0, processor_time() - busy - ours) / (time.perf_counter() - start)
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "others": others}


def processor_time() -> float:
    """Seconds that all cores together have worked since the machine started; 0 where the system does not say."""
    stat = Path("/proc/stat")
    ticks = [int(x) for x in stat.read_text().split("\n", 1)[0].split()[1:9]] if stat.exists() else [0] * 8
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def undisturbed(limit: float, mode: str, spec: Spec, **more: object) -> dict:
    """A measurement during which other processes took less than `limit` cores: wait for that, and measure again up to five times."""
    tries = []
    while len(tries) < 5:
        for _ in range(60):
            before = processor_time()
            time.sleep(2)
            if (processor_time() - before) / 2 < limit:
                break
        tries.append(measure(mode, spec, **more))
        if tries[-1]["others"] < limit:
            break
    return min(tries, key=lambda r: r["others"])


def fastest(spec: Spec, limit: float) -> dict[str, str]:
    """The dtype and attention that a short probe finds fastest on this machine."""
    variants = VARIANTS[spec.side]
    if len(variants) == 1:
        return variants[0]
    found = undisturbed(limit, "probe", replace(spec, steps=PROBE_STEPS), variants=variants)
    speeds = ", ".join(f"{' '.join(v.values())} {s:.0f}" for v, s in zip(variants, found["speeds"], strict=True))
    console.print(f"[dim]{spec.method} {spec.side}, tokens/s by a probe of {PROBE_STEPS} steps: {speeds}[/dim]")
    return variants[max(range(len(variants)), key=found["speeds"].__getitem__)]


# ------------------------------------------------------------------------------------------------ speed


def race(method: str, args: argparse.Namespace) -> dict:
    """Every side in turn, `repeat` times, every other time in the opposite order."""
    sides = ["ours", *args.peers]
    specs = {side: spec_for(method, side, args) for side in sides}
    specs = {side: replace(spec, variant=fastest(spec, args.others)) for side, spec in specs.items()}
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    for turn in range(args.repeat):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            runs[side].append(undisturbed(args.others, "run", specs[side]))
            took = runs[side][-1]
            figures = f"{took['steady']:.0f} tokens/s, {took['seconds']:.1f} s, others {took['others']:.2f}"
            console.print(f"[dim]{method} {side} {describe(specs[side])}: {figures}[/dim]")
    return {"method": method, "variants": {side: spec.variant for side, spec in specs.items()}, "runs": runs}


def describe(spec: Spec) -> str:
    return " ".join(spec.variant.values()) or "as published"


def ratios(mine: list[dict], other: list[dict], key: str, upside_down: bool = False) -> list[float]:
    """Ours over theirs, turn by turn; upside down where less is better. Above 1 we are ahead."""
    return [b[key] / a[key] if upside_down else a[key] / b[key] for a, b in zip(mine, other, strict=True)]


def spread(values: list[float], form: str = ".2f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def show_race(results: list[dict]) -> None:
    table = Table(title="ours over the peer, median (min-max); above 1 we are ahead")
    for name in ("method", "peer", "ours runs", "peer runs", "tokens/s", "steady", "whole run", "memory", "loss, ours - theirs"):
        table.add_column(name, justify="left" if name in ("method", "peer", "ours runs", "peer runs") else "right")
    for result in results:
        mine = result["runs"]["ours"]
        for peer, other in result["runs"].items():
            if peer == "ours":
                continue
            gap = statistics.median(a["loss"] - b["loss"] for a, b in zip(mine, other, strict=True))
            runs = [" ".join(result["variants"][side].values()) or "fp32 sdpa" for side in ("ours", peer)]
            figures = [spread(ratios(mine, other, key, upside_down=key == "peak")) for key in ("steady", "whole", "peak")]
            table.add_row(result["method"], peer, *runs, f"{statistics.median(r['steady'] for r in mine):.0f}", *figures, f"{gap:+.4f}")
    console.print(table)


# ------------------------------------------------------------------------------------------------ equality


def compare(method: str, args: argparse.Namespace) -> dict:
    spec = spec_for(method, "default", args)
    spec = replace(spec, dropout=0.0, in_order=True, steps=args.steps, examples=spec.size * args.steps)
    return {"method": method, **measure("equal", spec)}


def show_equal(results: list[dict]) -> bool:
    table = Table(title=f"relative difference of the loss per step, fp32, no dropout; at most {CLOSE:.0e}")
    for name in ("method", "first loss", "last loss", "first step", "median", "worst", ""):
        table.add_column(name, justify="right" if name != "method" else "left")
    for r in results:
        gaps = [f"{x:.1e}" for x in (r["gaps"][0], statistics.median(r["gaps"]), r["worst"])]
        table.add_row(r["method"], f"{r['ours'][0]:.5f}", f"{r['ours'][-1]:.5f}", *gaps, "equal" if r["worst"] <= CLOSE else "NOT EQUAL")
    console.print(table)
    for r in results:
        console.print(f"[dim]{r['method']}: {' '.join(f'{x:.0e}' for x in r['gaps'])}[/dim]")
    return all(r["worst"] <= CLOSE for r in results)


# ------------------------------------------------------------------------------------------------ the whole


def machine(threads: int) -> dict[str, object]:
    import peft
    import torch
    import transformers

    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    line = lambda key: next((x.split(":", 1)[1].strip() for x in text.splitlines() if x.startswith(key)), "")  # noqa: E731
    flags = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in line("flags").split()]
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft)}
    cpu = line("model name") or platform.processor()
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "flags": flags, **versions, "load": os.getloadavg()}


def main() -> None:
    args = asked()
    about = machine(args.threads)
    console.print(", ".join(f"{k} {' '.join(map(str, v)) if isinstance(v, list | tuple) else v}" for k, v in about.items()))
    results = []
    for method in args.methods:
        results.append(compare(method, args) if args.equal else race(method, args))
        if args.json:
            args.json.write_text(json.dumps({"machine": about, "arguments": vars(args), "results": results}, default=str, indent=1))
    if not args.equal:
        show_race(results)
    elif not show_equal(results):
        sys.exit(1)


if __name__ == "__main__":
    main()
