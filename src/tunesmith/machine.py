"""What is asked of the machine before anything heavy runs."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
NO_CACHES = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


def start_without_caches() -> None:
    """Start this process again, as what it is, where glibc is older than 2.39 and caches what a thread frees.

    An aligned block, as every tensor is, leaves slivers beside it when it is made. Those wait in the caches, and while they do the block, once freed, cannot be used for
    another of its own size (glibc's bug 30723): the heap grows by the largest tensors of every few steps. Only the environment of a new process can forbid the caches.
    """
    libc = glibc()
    if libc is None or "GLIBC_TUNABLES" in os.environ:
        return
    libc.gnu_get_libc_version.restype = ctypes.c_char_p
    if tuple(map(int, libc.gnu_get_libc_version().split(b".")[:2])) < (2, 39):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | NO_CACHES)  # noqa: S606 - it is this program itself


def keep_freed_memory() -> None:
    """glibc: hand freed activations to the next step instead of back to the kernel, which would fault every page in again."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", kernels_kept())  # both are read at their first use
    os.environ.setdefault("LRU_CACHE_CAPACITY", "8")  # torch's own list of what it asked oneDNN for, which keeps 1,024 kernels alive too
    libc = glibc()
    if libc is None or "MALLOC_MMAP_MAX_" in os.environ:
        return
    libc.mallopt(M_MMAP_MAX, 0)  # a threshold would not do: glibc caps it at 32 MB, less than an embedding's gradient
    libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.mallopt(M_TOP_PAD, 16 << 20)


def kernels_kept() -> str:
    """oneDNN keeps 1,024 kernels, one a shape, over a megabyte each. Without bf16 products it builds few. With them, those of one step are enough
    where a kernel is built in a third of a millisecond; where it takes ten times as long (AMX), those of some steps.
    """
    return "256" if "amx_bf16" in processor() else "32" if multiplies_bf16() else "4"


def multiplies_bf16() -> bool:
    """Whether the processor may have bf16 products of its own. Where it has none, they are emulated ten times slower than fp32."""
    return not processor() or bool({"avx512_bf16", "amx_bf16", "bf16"} & processor())


def processor() -> set[str]:
    """The words that Linux says of it, its flags among them; elsewhere none."""
    info = Path("/proc/cpuinfo")
    return set(info.read_text().split()) if info.exists() else set()


def glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if libc is not None and hasattr(libc, "gnu_get_libc_version") else None


def peak_memory(device: str = "cpu") -> int:
    """Bytes at most so far: of a process that computes on the CPU its largest resident set, else what CUDA allocated."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def settle() -> None:
    """What is imported so far is never garbage: a collection takes a quarter of a second less for not looking at it."""
    import gc

    gc.collect()
    gc.freeze()


def hand_back() -> None:
    """What was freed and kept goes back to the kernel, for what comes next is of another kind."""
    import gc

    gc.collect()
    if (libc := glibc()) is not None:
        libc.malloc_trim(0)


def reset_peak() -> None:
    """Start counting the peak anew, so that several runs in one process can be told apart."""
    import torch

    hand_back()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def resident_memory() -> int:
    """Bytes: the resident set of this process now."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_memory()
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmRSS"))
