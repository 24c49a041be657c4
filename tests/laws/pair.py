"""What torchrun starts for test_parallel.py: every case once, its losses and weights written by each process of the pair.

torchrun --nproc-per-node 2 tests/laws/pair.py FOLDER          without torchrun: the same cases in one process
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import test_distil
import test_preferences
import torch
from safetensors.torch import save_file
from test_training import columns, learner, run_of
from torch import Tensor

import several
from test_rollouts import source_of, tuned
from tiny import stir
from tunesmith import parallel
from tunesmith.core import Batch, Delta, Run, Stage
from tunesmith.engine import fit
from tunesmith.methods import METHODS, Adapter, BitFit, Full, Head, Layers, LoRA, Prefix, Prompt
from tunesmith.objectives import Prefer
from tunesmith.sources.features import Features
from tunesmith.sources.table import Table
from tunesmith.updates import Descend

EIGHT = {
    "full": Full(), "head": Head(), "layers": Layers(last=1, unfreeze=1), "adapter": Adapter(), "prompt": Prompt(length=3), "prefix": Prefix(length=3),
    "lora": LoRA(), "bitfit": BitFit(),
}  # fmt: skip
assert EIGHT.keys() == METHODS.keys() - {"peft", "fusion", "mixture", "hard_prompt"}
CASES = {  # kind of task, method, rows a batch (1: a process is left without any), tokens a piece, over stored states
    **{f"single-{name}": ("single", name, 5, 10_000, False) for name in EIGHT},
    **{f"{kind}-lora": (kind, "lora", 5, 10_000, False) for kind in ("multi", "score", "tag", "generate", "generate-seq2seq")},
    "one-row": ("single", "full", 1, 10_000, False),
    "pieces": ("tag", "full", 7, 12, False),
    "features": ("single", "layers", 5, 10_000, True),
}


PLAYED = ("ppo", "grpo")
SEVERAL = {  # how the gradients or losses of three tasks are put together, rows a batch (1: a process is left without any of a task), tokens a piece
    **{f"several-{kind}": (kind, 4, 10_000) for kind in ("pcgrad", "cagrad", "uncertainty", "dwa", "gradnorm", "famo")},
    "several-row": ("pcgrad", 1, 10_000),
    "several-pieces": ("famo", 4, 12),
}


DISTILLED = {"distil-single": ("single", 10_000), "distil-tag-pieces": ("tag", 12), "distil-generate": ("generate", 10_000)}  # kind, tokens a piece


def trained(case: str) -> dict[str, Tensor]:
    """Losses and gradient norms of five steps, and what was learnt."""
    if case in DISTILLED:
        return distilled(*DISTILLED[case])
    if case in PREFERRED:
        return preferred(*PREFERRED[case])
    if case in SEVERAL:
        kind, size, tokens = SEVERAL[case]
        run = fit(several.Setting(several.form(kind), steps=5, size=size, micro=tokens, rate=1e-3).run())
        keys = [key for key in run.log[-1] if key in (*several.NAMES, "conflicts", "loss", "norm") or key.startswith("weight.")]
        return {**{key: torch.tensor([float(r[key]) for r in run.log]) for key in keys}, **learnt(run)}
    if case in PLAYED:
        net, delta, objective = tuned("llama", "lora", case, group=4)
        run = fit(Run(net, delta, objective, [Stage("main", source_of(objective, delta.absent), 5, 5)], Descend(rate=1e-3)))
        return {**{key: torch.tensor([r[key] for r in run.log]) for key in ("loss", "norm", "tokens", "rows", "reward", "kl")}, **learnt(run)}
    kind, name, size, tokens, stored = CASES[case]
    net, delta = learner(kind, EIGHT[name])
    table = Table(columns(kind), size=size)
    source = Features(table, delta.lowest) if stored else table
    return told(fit(run_of(net, delta, kind, source, 5, Descend(rate=1e-3, micro=tokens))), delta)


def preferred(loss: str, tokens: int) -> dict[str, Tensor]:
    """Pairs of answers, three a batch or what is left of them: a process may get one, or none."""
    net, delta = test_preferences.mounted("llama:lm", LoRA())
    learn = Prefer("preferred", loss)  # type: ignore[arg-type]
    source = test_preferences.source_of(delta, learn, Table(test_preferences.columns(), size=5))
    return told(fit(test_preferences.run_of(net, delta, learn, source, 5, Descend(rate=1e-2, micro=tokens))), delta)


def distilled(kind: str, tokens: int) -> dict[str, Tensor]:
    """From a teacher that is the student stirred, and the labels, half and half."""
    teacher, _ = learner(kind)
    stir(dict(teacher.named_parameters()), 0.1)
    learn = test_distil.distil(kind, alpha=0.5, top=7)
    batch = test_distil.taught(kind, teacher, learn, Batch(columns(kind)))
    net, delta = learner(kind, LoRA())
    stage = Stage("main", Table(batch.columns, size=5), 5, 3)
    return told(fit(Run(net, delta, learn, [stage], Descend(rate=1e-3, micro=tokens))), delta)


PREFERRED = {"prefer-dpo": ("dpo", 10_000), "prefer-simpo": ("simpo", 20), "prefer-kto": ("kto", 10_000), "prefer-kto-pieces": ("kto", 20)}


def told(run: Run, delta: Delta) -> dict[str, Tensor]:
    return {
        **{key: torch.tensor([r[key] for r in run.log]) for key in ("loss", "norm", "tokens", "rows")},
        **{n: t.clone() for n, t in delta.state_dict().items()},
    }


def learnt(run: Run) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in (run.delta.state_dict() | run.objective.state_dict()).items()}


def main() -> None:
    torch.set_num_threads(1)
    parallel.join()
    for case in (*CASES, *PREFERRED, *PLAYED, *SEVERAL, *DISTILLED):
        save_file(trained(case), Path(sys.argv[1]) / f"{case}-{os.environ.get('RANK', '0')}.safetensors")


if __name__ == "__main__":
    main()
