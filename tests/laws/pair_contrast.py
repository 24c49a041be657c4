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


def trained(case: str) -> dict[str, Tensor]:
    """Losses and gradient norms of four steps, and what was learnt."""
    name, size, tokens = CASES[case]
    which, options = LOSSES[name]
    net, delta = mounted("bert", Full())
    net.heads.clear()
    learn = Contrast(**options)
    if options.get("projection"):
        torch.manual_seed(7)
        learn.project = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Tanh())
    table = Table(dict(kind(which, 7 if size > 1 else 4).columns), "embed", size)
    update = Descend(rate=1e-3, micro=tokens, form=UPDATES["gradcache"])
    run = fit(Run(net, delta, learn, [Stage("main", table, 4, table.period)], update))
    found = {n: t.detach().clone() for n, t in run.parameters().items()}
    return {**{key: torch.tensor([r[key] for r in run.log]) for key in ("loss", "norm")}, **found}


def main() -> None:
    torch.set_num_threads(1)
    parallel.join()
    for case in CASES:
        save_file(trained(case), Path(sys.argv[1]) / f"{case}-{os.environ.get('RANK', '0')}.safetensors")


if __name__ == "__main__":
    main()
