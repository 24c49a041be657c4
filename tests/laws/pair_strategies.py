"""What torchrun starts for test_strategies.py: every strategy through its stages, what was learnt written by each process of the pair.

torchrun --nproc-per-node 2 tests/laws/pair_strategies.py SHOP FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from strategies import CASES, trained

from tunesmith import parallel


def main() -> None:
    torch.set_num_threads(1)
    parallel.join()
    for name in CASES:
        save_file(trained(Path(sys.argv[1]), name), Path(sys.argv[2]) / f"{name}-{os.environ.get('RANK', '0')}.safetensors")


if __name__ == "__main__":
    main()
