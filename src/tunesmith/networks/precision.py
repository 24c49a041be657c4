"""Which dtype and which attention kernel are fastest here: measured on this machine at this model's sizes, never believed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..machine import multiplies_bf16
from .kernels import KERNELS, Rules

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WORTH = 1.15  # a lower precision must be this much faster to be taken


@dataclass(frozen=True)
class Choice:
    dtype: str
    kernel: str
    why: str


@dataclass(frozen=True)
class Sizes:
    """What the probe times: `tokens` a batch, rows of `length`, and the model's width, heads and head size."""

    tokens: int
    length: int
    width: int
    heads: int
    head_dim: int


def choose(sizes: Sizes, device: torch.device, dtype: str = "auto", kernel: str = "auto") -> Choice:
    """Dtype and kernel, `auto` ones by the probe. Its result is kept per machine, torch and sizes."""
    if device.type == "cuda":
        fast = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
        return Choice(fast if dtype == "auto" else dtype, ("varlen" if has_varlen() else "sdpa") if kernel == "auto" else kernel, "CUDA")
    if dtype != "auto" and kernel != "auto":
        return Choice(dtype, kernel, "as the recipe says")
    if dtype == "bf16" and not multiplies_bf16():
        return Choice(dtype, "matmul" if kernel == "auto" else kernel, "as the recipe says; this processor only emulates bf16, fp32 is faster")
    times = remembered(sizes)
    open_kernels = [kernel] if kernel != "auto" else list(KERNELS)
    open_dtypes = [dtype] if dtype != "auto" else [d for d in DTYPES if f"{d} {open_kernels[0]}" in times]
    best = {d: min((times[f"{d} {k}"], k) for k in open_kernels) for d in open_dtypes}
    pick = "bf16" if "bf16" in best and ("fp32" not in best or best["bf16"][0] * WORTH < best["fp32"][0]) else open_dtypes[0]
    return Choice(pick, best[pick][1], "; ".join(f"{d} with {k}: {ms:.1f} ms" for d, (ms, k) in best.items()) + " a block, measured here")


def has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return callable(varlen_attn)


def remembered(sizes: Sizes) -> dict[str, float]:
    """Milliseconds by `dtype kernel`. Kept in the user's cache folder; a cache that cannot be written costs only time."""
    rounded = Sizes(*(1 << max(0, (v - 1).bit_length()) for v in asdict(replace(sizes, tokens=min(sizes.tokens, 1024))).values()))
    identity = json.dumps([platform.processor(), cpu_name(), torch.__version__, torch.get_num_threads(), asdict(rounded)])
    path = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tunesmith" / f"probe-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        times = measure(rounded)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(times))
    except OSError:
        pass
    return times


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.machine()


def measure(sizes: Sizes) -> dict[str, float]:
    """One feed-forward and one attention, forward and backward, in each dtype and kernel; emulated bf16 is not waited for."""
    state = torch.get_rng_state()
    times = {}
    for name, dtype in DTYPES.items() if multiplies_bf16() else [("fp32", torch.float32)]:
        dense = best_of(linear_step(sizes, dtype))
        for kernel in KERNELS:
            times[f"{name} {kernel}"] = dense + best_of(attention_step(sizes, dtype, kernel))
    torch.set_rng_state(state)
    return times


def best_of(step: Callable[[], None], repeats: int = 3) -> float:
    """Milliseconds of the fastest of a few runs after one to warm up."""
    step()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return 1000 * min(found)


def linear_step(sizes: Sizes, dtype: torch.dtype) -> Callable[[], None]:
    net = nn.Sequential(nn.Linear(sizes.width, 4 * sizes.width), nn.GELU(), nn.Linear(4 * sizes.width, sizes.width)).to(dtype)
    x = torch.randn(sizes.tokens, sizes.width).to(dtype).requires_grad_()
    return lambda: net(x).sum().backward()


def attention_step(sizes: Sizes, dtype: torch.dtype, kernel: str) -> Callable[[], None]:
    rows = max(1, sizes.tokens // sizes.length)
    q, k, v = (torch.randn(rows, sizes.heads, sizes.length, sizes.head_dim).to(dtype).requires_grad_() for _ in range(3))
    mask: Tensor = torch.zeros(rows, 1, 1, sizes.length, dtype=dtype)
    rules = Rules(sizes.head_dim**-0.5, False, 0, None, 0.0)
    return lambda: KERNELS[kernel](q, k, v, mask, rules).sum().backward()
