"""What torchrun starts for test_contrast_laws.py: every loss once, trained by each process of a pair.

torchrun --nproc-per-node 2 tests/laws/pair_contrast.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from test_training import mounted
from torch import Tensor

from related import LOSSES, kind
from several import InTurn
from tunesmith import parallel
from tunesmith.core import Run, Stage
from tunesmith.engine import fit
from tunesmith.methods import Full
from tunesmith.objectives import Contrast
from tunesmith.sources.table import Table
from tunesmith.updates import UPDATES, Descend

CASES = {  # loss, examples a batch (1: a process is left without any), tokens a pass
    **{name: (name, 5, 10_000) for name in LOSSES if name != "simcse"},  # without dropout it sees nothing, and dropout differs between processes
    "lonely": ("infonce", 1, 10_000),
    "pieces": ("infonce", 6, 40),
}
SEVERAL = {f"{form}-{tokens}": ("infonce", form, tokens) for form in ("pcgrad", "famo") for tokens in (40, 10_000)}  # two tasks, each scored whole


def trained(case: str) -> dict[str, Tensor]:
    """Losses and gradient norms of four steps, and what was learnt."""
    if case in SEVERAL:
        return parted(*SEVERAL[case])
    name, size, tokens = CASES[case]
    which, options = LOSSES[name]
    net, delta = mounted("bert", Full())
    net.heads.clear()
    learn = Contrast(**options)
    if options.get("projection"):
        torch.manual_seed(7)
        learn.project = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Tanh())
    table = Table(dict(kind(which, 7 if size > 1 else 4).columns), "embed", size)
    update = Descend(rate=1e-3, micro=tokens, form=UPDATES["gradcache"]())
    run = fit(Run(net, delta, learn, [Stage("main", table, 4, table.period)], update))
    found = {n: t.detach().clone() for n, t in run.parameters().items()}
    return {**{key: torch.tensor([r[key] for r in run.log]) for key in ("loss", "norm")}, **found}


def parted(name: str, form: str, tokens: int) -> dict[str, Tensor]:
    """The same, of two tasks."""
    which, options = LOSSES[name]
    net, delta = mounted("bert", Full())
    net.heads.clear()
    tables = [Table(dict(kind(which, 7).columns), task, 4, seed=i) for i, task in enumerate("ab")]
    update = Descend(rate=1e-3, micro=tokens, form=UPDATES[form]())
    run = fit(Run(net, delta, Contrast(**options), [Stage("main", InTurn(tables), 4, 2, 2)], update))
    keys = [key for key in run.log[-1] if key in ("a", "b", "loss", "norm", "conflicts") or key.startswith("weight.")]
    return {**{key: torch.tensor([float(r[key]) for r in run.log]) for key in keys}, **{n: t.detach().clone() for n, t in run.parameters().items()}}


def main() -> None:
    torch.set_num_threads(1)
    parallel.join()
    for case in (*CASES, *SEVERAL):
        save_file(trained(case), Path(sys.argv[1]) / f"{case}-{os.environ.get('RANK', '0')}.safetensors")


if __name__ == "__main__":
    main()
