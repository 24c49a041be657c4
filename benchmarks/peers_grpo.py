"""GRPO side by side with trl: the same model, prompts, group, lengths, steps and reward; completions trained a second, turn by turn.

    python benchmarks/peers_grpo.py                                            LoRA and full, three turns
    python benchmarks/peers_grpo.py --clock cpu --threads 1                    the processor's seconds, where the machine is not quiet

Each measurement is a process of its own; the first two steps are left out. Prompts are the desk's messages, in the model's chat template where it has one.
Both sides: 64 completions a step, 8 a prompt, at most 96 tokens, temperature 1 with the whole vocabulary, beta 0.04, fp32, AdamW, one update a rollout,
no evaluation, no logging. Needs `trl` (and `peft` for its LoRA).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

WARM = 2
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def worth(completion: str) -> float:
    return float("order" in completion or "单" in completion)


def prompts() -> list[str]:
    from tunesmith.data import desk

    return [row["prompt"] for row in desk.rows("generate", "train")[:128]]


def ours(spec: dict, work: Path) -> list[float]:
    """When each step ended."""
    from tunesmith.core import Listener
    from tunesmith.progress import Reporter
    from tunesmith.recipe import recipe
    from tunesmith.train import Company, run

    (work / "rewards.py").write_text("def worth(sample): return float('order' in sample.completion or '单' in sample.completion)\n")
    (work / "rows.jsonl").write_text("".join(json.dumps({"prompt": p, "completion": "."}) + "\n" for p in prompts()))
    ends: list[float] = []

    class Clock(Listener):
        def step(self, run, record) -> None:
            ends.append(CLOCKS[spec["clock"]]())

    made = {
        "model": spec["model"], "task": "generate", "data": str(work / "rows.jsonl"), "method": spec["method"],
        "objective": {"kind": "reinforce", "algorithm": "grpo", "reward": f"{work}/rewards.py:worth", "length": spec["length"], "group": 8, "beta": 0.04},
        "update": {"batch": spec["batch"], "rate": 1e-5}, "budget": {"steps": spec["steps"]}, "checkpoint": {"every": 10_000}, "out": str(work / "run"),
        "dtype": "fp32", "kernel": "matmul", "threads": spec["threads"],
    }  # fmt: skip
    run(recipe(made), Reporter(quiet=True), company=Company(listeners=[Clock()]))
    return ends


def theirs(spec: dict, work: Path) -> list[float]:
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **_) -> None:
            ends.append(CLOCKS[spec["clock"]]())

    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    peft = None
    if spec["method"] == "lora":
        from peft import LoraConfig

        peft = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    args = trl.GRPOConfig(
        output_dir=str(work), per_device_train_batch_size=spec["batch"], num_generations=8, max_completion_length=spec["length"], beta=0.04, loss_type="grpo",
        learning_rate=1e-5, max_steps=spec["steps"], temperature=1.0, top_p=1.0, top_k=0, bf16=False, use_cpu=True, report_to=[], save_strategy="no",
        logging_steps=10_000, disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    reward = lambda completions, **_: [worth(c if isinstance(c, str) else c[0]["content"]) for c in completions]
    chat = tokenizer.chat_template is not None
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": p}] if chat else p + "\n"} for p in prompts()])
    trainer = trl.GRPOTrainer(
        model=spec["model"], reward_funcs=reward, args=args, train_dataset=data, processing_class=tokenizer, peft_config=peft, callbacks=[Clock()]
    )
    trainer.train()
    return ends


def measured(spec: dict) -> float:
    """Completions trained a second, of one side in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--side", json.dumps(spec)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(done.stdout.strip().splitlines()[-1])


def side(spec: dict) -> float:
    torch.set_num_threads(spec["threads"])
    with tempfile.TemporaryDirectory() as work:
        ends = {"ours": ours, "trl": theirs}[spec["side"]](spec, Path(work))
    return spec["batch"] * (len(ends) - WARM) / (ends[-1] - ends[WARM - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="desk-lm")
    parser.add_argument("--methods", default="lora,full")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(side(json.loads(args.side)))
        return
    from tunesmith.networks.load import origin

    args.model = origin(args.model).path  # the peer knows no embedded model by its name
    print("| method | ours, completions / s | trl | ratio (median, min-max) |\n|---|---|---|---|")
    for method in args.methods.split(","):
        found: dict[str, list[float]] = {"ours": [], "trl": []}
        for _ in range(args.turns):
            for name in found:
                spec = {k: getattr(args, k) for k in ("model", "steps", "batch", "length", "threads", "clock")}
                found[name].append(measured({**spec, "side": name, "method": method}))
        ratios = [a / b for a, b in zip(found["ours"], found["trl"], strict=True)]
        mid = statistics.median
        print(f"| {method} | {mid(found['ours']):.1f} | {mid(found['trl']):.1f} | {mid(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |", flush=True)


if __name__ == "__main__":
    main()
