"""Every method a few steps on a random-weight Qwen3-0.6B shape, beside PEFT + HF Trainer: tokens a second, model FLOP utilisation, peak memory.

    python benchmarks/gpu.py                     needs a CUDA device; peers need peft and accelerate
    python benchmarks/gpu.py --device cpu --layers 4 --width 128 --vocabulary 5000 --tokens 512 --steps 2      a rehearsal anywhere

Exits 1 where one of our methods failed.

FLOPs a token: 6 N for full, 4 N + 6 T for what trains T parameters on a frozen base of N matrix weights, attention not counted.
Random tokens, lengths log-normal with mean near 180; one row printed a method and side, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import transformers as hf

from tunesmith.core import Batch, Listener, Ragged, Run, Stage
from tunesmith.engine import fit
from tunesmith.methods import METHODS
from tunesmith.networks import attention
from tunesmith.networks.load import look_over
from tunesmith.networks.precision import Sizes, choose
from tunesmith.objectives.supervised import Supervised
from tunesmith.sources.table import Table
from tunesmith.updates.descend import Descend

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bf16, datasheets
EIGHT = ("full", "head", "layers", "adapter", "prompt", "prefix", "lora", "bitfit")
OPTIONS = {"layers": {"last": 4}}


def config(options: argparse.Namespace, tied: bool) -> hf.Qwen3Config:
    """Qwen3-0.6B: 28 layers of 1,024, 16 heads of 128 with 8 for keys, a feed-forward of 3,072, 151,936 tokens."""
    return hf.Qwen3Config(
        vocab_size=options.vocabulary, hidden_size=options.width, intermediate_size=3 * options.width, num_hidden_layers=options.layers, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        max_position_embeddings=4096, tie_word_embeddings=tied,
    )  # fmt: skip


def rows(total: int, vocabulary: int, seed: int = 0) -> Table:
    """Rows until `total` tokens are reached; every token but the first of a row is learnt."""
    dice = torch.Generator().manual_seed(seed)
    lengths: list[int] = []
    while sum(lengths) < total:
        lengths.append(int((torch.randn((), generator=dice) * 0.6 + 5.0).exp().clamp(16, 1024)))
    ids = torch.randint(1000, vocabulary, (sum(lengths),), generator=dice)
    at = torch.cat([torch.arange(n - 1) for n in lengths])
    label = torch.cat([row[1:] for row in ids.split(lengths)])
    short = tuple(n - 1 for n in lengths)
    return Table({"ids": Ragged(ids, tuple(lengths)), "at": Ragged(at, short), "label": Ragged(label, short)}, size=len(lengths))


def model(options: argparse.Namespace, tied: bool, device: torch.device, implementation: str) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        return hf.AutoModelForCausalLM.from_config(config(options, tied), dtype=dtype, attn_implementation=implementation)


def ours(name: str, options: argparse.Namespace, device: torch.device) -> dict:
    attention.register()
    net = look_over(model(options, name != "head", device, attention.NAME), True)
    delta = METHODS[name](**OPTIONS.get(name, {})).attach(net, keep=False)
    table = rows(options.tokens, options.vocabulary)
    table = Table(table.columns, size=table.size, device=device)
    choice = choose(Sizes(options.tokens, 180, options.width, 16, 128), device)
    net.compute, net.room.kernel = {"bf16": torch.bfloat16, "fp32": torch.float32}[choice.dtype], choice.kernel
    delta.cast(net.compute)
    clock = Clock(device)
    fit(Run(net, delta, Supervised("generate"), [Stage("a", table, options.steps + 3, 1)], Descend(1e-5, micro=options.tokens + 1024), listeners=[clock]))
    trains = sum(p.numel() for p in delta.parameters().values())
    return figures(name, clock.seconds(), sum(table.lengths), net, trains, device) | {"kernel": choice.kernel, "packs": net.packs}


class Clock(Listener):
    """Seconds a step, the device waited for; the first three are not counted."""

    def __init__(self, device: torch.device):
        self.device, self.times = device, []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def step(self, run: object, record: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def seconds(self) -> float:
        return (self.times[-1] - self.times[2]) / (len(self.times) - 3)


def peers(name: str, options: argparse.Namespace, device: torch.device) -> dict:
    """HF Trainer in bf16 with padded batches sorted by length, SDPA, fused AdamW; PEFT for lora, prompt and prefix."""
    import peft

    net = model(options, name != "head", device, "sdpa")
    net.config.use_cache = name == "prefix"
    kinds = {
        "lora": lambda: peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM"),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM"),
    }
    if name in kinds:
        net = peft.get_peft_model(net, kinds[name]())
    elif name == "adapter":
        return {"method": name, "note": "PEFT has no bottleneck adapter"}
    else:
        last = [f"layers.{options.layers - i - 1}." for i in range(4)]
        moves = {
            "full": lambda n: True,
            "head": lambda n: "lm_head" in n,
            "layers": lambda n: any(p in n for p in last),
            "bitfit": lambda n: n.endswith("bias"),
        }
        for n, p in net.named_parameters():
            p.requires_grad_(moves[name](n))
        if not any(p.requires_grad for p in net.parameters()):
            return {"method": name, "note": "nothing to train in HF Trainer: the model has no biases"}
    return padded_steps(name, net, options, device)


def padded_steps(name: str, net: torch.nn.Module, options: argparse.Namespace, device: torch.device) -> dict:
    """The Trainer's own step: padded micro-batches of like length, mean loss, fused AdamW, autocast bf16."""
    table = rows(options.tokens, options.vocabulary)
    batch = table.batch(range(len(table)))
    parts = split(batch, 8)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-5, fused=device.type == "cuda")
    net.train()
    clock = Clock(device)
    for _ in range(options.steps + 3):
        for ids, mask, label in parts:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                net(input_ids=ids.to(device), attention_mask=mask.to(device), labels=label.to(device)).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step(None, None)
    trains = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return figures(name, clock.seconds(), sum(table.lengths), net, trains, device)


def split(batch: Batch, size: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    found = []
    ids = batch.ragged("ids").rows()
    pad = torch.nn.utils.rnn.pad_sequence
    for start in range(0, len(ids), size):
        part = list(ids[start : start + size])
        found.append((pad(part, True), pad([torch.ones_like(x) for x in part], True), pad(part, True, -100)))
    return found


def figures(name: str, seconds: float, tokens: int, net: torch.nn.Module, trains: int, device: torch.device) -> dict:
    named = dict(net.named_parameters())
    matrices = sum(p.numel() for n, p in named.items() if p.dim() == 2 and "embed" not in n)
    matrices += 0 if "lm_head.weight" in named else sum(p.numel() for n, p in named.items() if "embed_tokens" in n)  # tied
    flops = 6 * matrices if trains > matrices / 2 else 4 * matrices + 6 * trains
    peak = next((v for k, v in PEAK.items() if device.type == "cuda" and k in torch.cuda.get_device_name()), None)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return {
        "method": name, "tokens_per_second": round(tokens / seconds), "mfu": round(flops * tokens / seconds / peak, 4) if peak else None,
        "peak_gb": round(memory / 1e9, 2), "trains": trains,
    }  # fmt: skip


def guarded(side, name: str, options: argparse.Namespace, device: torch.device) -> dict:
    """One row; a method that fails is a row too, so that the others are still measured."""
    try:
        return side(name, options, device)
    except Exception as e:
        return {"method": name, "error": f"{type(e).__name__}: {str(e).splitlines()[0][:200] if str(e) else ''}"}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--device", default="cuda")
    args.add_argument("--layers", type=int, default=28)
    args.add_argument("--width", type=int, default=1024)
    args.add_argument("--vocabulary", type=int, default=151936)
    args.add_argument("--tokens", type=int, default=16384)
    args.add_argument("--steps", type=int, default=8)
    args.add_argument("--methods", default=",".join(EIGHT))
    args.add_argument("--json", type=Path)
    options = args.parse_args()
    device = torch.device(options.device)
    found = []
    for name in options.methods.split(","):
        a, b = guarded(ours, name, options, device), guarded(peers, name, options, device)
        ratio = a.get("tokens_per_second", 0) / b["tokens_per_second"] if b.get("tokens_per_second") else None
        found.append({"ours": a, "peers": b, "ratio": ratio})
        print(json.dumps(found[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    raise SystemExit(any("error" in pair["ours"] for pair in found))


if __name__ == "__main__":
    main()
