"""Contrastive learning beside sentence-transformers' trainer: the same pairs, loss (InfoNCE in-batch), batch and steps, turn by turn, one process a measurement.

    python benchmarks/peers_contrast.py                                  all sides, three turns
    python benchmarks/peers_contrast.py --threads 1 --clock cpu          where no quiet machine is to be had: processor time of one thread
    python benchmarks/peers_contrast.py --cached                         large batches by a cached gradient on both sides

MiniLM, mean pooling, published dropout, AdamW, linear schedule; texts are random whole words, lengths log-normal with mean about 25 and at most 64 tokens.
`fp32` is the peer as it comes, `bf16` with autocast; each with SDPA and with eager attention. Ours takes dtype and kernel by its own probe. Ratios are ours over the peer's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WARM = 2  # steps that the steady state leaves out
PEERS = ("fp32 sdpa", "fp32 eager", "bf16 sdpa", "bf16 eager")


@dataclass(frozen=True)
class Spec:
    side: str
    pairs: int
    size: int
    threads: int
    clock: str
    cached: bool
    micro: int = 32  # texts a mini-batch of the peer's cache
    rate: float = 1e-4

    @property
    def steps(self) -> int:
        return self.pairs // self.size


def texts(spec: Spec, tokenizer: Any) -> list[tuple[str, str]]:
    """Pairs whose halves share a third of their words."""
    g = torch.Generator().manual_seed(0)
    words = sorted(w for w in tokenizer.get_vocab() if w.isalpha() and w.isascii() and len(w) > 2)
    lengths = (torch.randn(spec.pairs, 2, generator=g) * 0.6 + 3.0).exp().clamp(4, 62).int().tolist()
    draw = lambda n: [words[i] for i in torch.randint(len(words), (n,), generator=g).tolist()]
    made = []
    for a, b in lengths:
        shared = draw(min(a, b) // 3)
        made.append((" ".join(shared + draw(a - len(shared))), " ".join(shared + draw(b - len(shared)))))
    return made


def ours(spec: Spec) -> tuple[list[float], list[float], str]:
    from sides import Clock
    from tunesmith.core import Run, Stage
    from tunesmith.engine import fit
    from tunesmith.job import sizes
    from tunesmith.machine import keep_freed_memory
    from tunesmith.methods import Full
    from tunesmith.networks.load import load_network, load_tokenizer, origin
    from tunesmith.networks.precision import DTYPES, choose
    from tunesmith.objectives import Contrast
    from tunesmith.sources.table import Table as Rows
    from tunesmith.sources.text.encode import Reader
    from tunesmith.sources.text.examples import Related
    from tunesmith.sources.text.task import Task
    from tunesmith.updates import UPDATES, Descend

    keep_freed_memory()
    source = origin("minilm")
    tokenizer = load_tokenizer(source)
    net = load_network(source, generates=False, tokenizer=tokenizer)
    made = texts(spec, tokenizer)
    delta, clock = Full().attach(net, keep=False), Clock(spec.clock)
    began = CLOCKS[spec.clock]()  # as the peer's: tokenising is part of the run
    rows = Rows(Reader(tokenizer, 64).encode([Related(pair, i) for i, pair in enumerate(made)], Task("embed", "pairs")).columns, "embed", spec.size)
    choice = choose(sizes(net, [rows]), net.device, "auto", "auto")
    net.compute, net.room.kernel = DTYPES[choice.dtype], choice.kernel
    delta.cast(net.compute)
    update = Descend(spec.rate, warmup=0.0, micro=2048 if spec.cached else 10**6, form=UPDATES["gradcache"]())
    run = fit(Run(net, delta, Contrast("pairs"), [Stage("train", rows, spec.steps, rows.period)], update, (clock,)))
    return [began, *clock.ends], [r["loss"] for r in run.log], f"{choice.dtype} {choice.kernel}"


def theirs(spec: Spec) -> tuple[list[float], list[float], str]:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer import losses
    from transformers import TrainerCallback

    from tunesmith.networks.load import origin

    dtype, attention = spec.side.split()
    model = SentenceTransformer(origin("minilm").path, device="cpu", model_kwargs={"attn_implementation": attention, "dtype": torch.float32})
    model.max_seq_length = 64
    data = Dataset.from_list([{"anchor": a, "positive": b} for a, b in texts(spec, model.tokenizer)])
    loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=spec.micro) if spec.cached else losses.MultipleNegativesRankingLoss(model)
    ends: list[float] = []
    now = CLOCKS[spec.clock]

    class Ends(TrainerCallback):
        def on_train_begin(self, *args: Any, **more: Any) -> None:
            ends.append(now())

        def on_step_end(self, *args: Any, **more: Any) -> None:
            ends.append(now())

    with tempfile.TemporaryDirectory() as folder:
        args = SentenceTransformerTrainingArguments(
            output_dir=folder, per_device_train_batch_size=spec.size, max_steps=spec.steps, learning_rate=spec.rate, bf16=dtype == "bf16", use_cpu=True,
            report_to=[], save_strategy="no", logging_steps=1, logging_strategy="steps", disable_tqdm=True, weight_decay=0.01, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=data, loss=loss, callbacks=[Ends()])
        trainer.train()
    return ends, [float(e["loss"]) for e in trainer.state.log_history if "loss" in e], spec.side


def peak_memory() -> int:
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def measured(spec: Spec) -> dict[str, Any]:
    torch.set_num_threads(spec.threads)
    ends, found, what = (ours if spec.side == "ours" else theirs)(spec)
    steady = (spec.steps - WARM) * spec.size / (ends[-1] - ends[WARM])
    return {
        "side": spec.side,
        "what": what,
        "whole": spec.steps * spec.size / (ends[-1] - ends[0]),
        "steady": steady,
        "peak": peak_memory(),
        "loss": statistics.fmean(found),
    }


def alone(spec: Spec) -> dict[str, Any]:
    """In a process of its own."""
    path = os.pathsep.join(filter(None, [str(HERE.parent / "src"), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(spec.threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(HERE / "peers_contrast.py"), "--one", json.dumps(asdict(spec))], capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{spec.side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def show(runs: dict[str, list[dict[str, Any]]]) -> None:
    table = Table(title="InfoNCE, pairs a second: ours over sentence-transformers, median (min-max); above 1 we are ahead")
    for name in ("peer", "ours runs", "pairs/s, ours", "steady", "whole run", "memory", "loss, ours - theirs"):
        table.add_column(name)
    mine = runs["ours"]
    spread = lambda values: f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
    for side, other in runs.items():
        if side != "ours":
            both = list(zip(mine, other, strict=True))
            figures = [spread([a[k] / b[k] for a, b in both]) for k in ("steady", "whole")] + [spread([b["peak"] / a["peak"] for a, b in both])]
            gap = statistics.median(a["loss"] - b["loss"] for a, b in both)
            table.add_row(side, mine[0]["what"], f"{statistics.median(r['steady'] for r in mine):.1f}", *figures, f"{gap:+.4f}")
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--size", type=int, default=32, help="pairs a batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: of the processor; with --threads 1 only")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS), help=", ".join(PEERS))
    parser.add_argument("--json", type=Path, help="write every measurement here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(Spec(**json.loads(args.one)))))
        return
    if args.pairs // args.size <= WARM:
        parser.error(f"--pairs has to be more than {WARM} batches of --size")
    spec = Spec("ours", args.pairs, args.size, args.threads, args.clock, args.cached)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in ("ours", *args.peers)}
    for turn in range(args.repeat):
        for side in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
            runs[side].append(alone(replace(spec, side=side)))
            print(json.dumps(runs[side][-1]), file=sys.stderr, flush=True)
        if args.json:
            args.json.write_text(json.dumps({"arguments": {k: str(v) for k, v in vars(args).items()}, "runs": runs}, indent=1))
    show(runs)


if __name__ == "__main__":
    main()
