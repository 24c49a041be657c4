"""A detour for learned rows: an MLP or an LSTM that moves them together (P-tuning, prefix-tuning)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Detour = Literal["none", "mlp", "lstm"]


class Reparametrised(nn.Module):
    """rows + f(rows), (p, D) -> (p, out). f ends in zeros, so the rows start where they were put.

    mlp   Li & Liang 2021, section 4.3: one tanh layer of width `hidden`
    lstm  Liu et al. 2021 (P-tuning), section 3.3: a bidirectional LSTM of two layers, then an MLP
    Both papers replace the rows by f's output; the residual keeps a start from text (Razdaibiedina et al. 2023).
    """

    def __init__(self, width: int, out: int, kind: Detour, hidden: int, device: torch.device):
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True, device=device) if kind == "lstm" else None
        self.mlp = nn.Sequential(nn.Linear(2 * hidden if self.lstm else width, hidden, device=device), nn.Tanh(), nn.Linear(hidden, out, device=device))
        nn.init.zeros_(self.mlp[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.mlp[2].bias)  # type: ignore[arg-type]

    def forward(self, rows: Tensor) -> Tensor:
        return self.mlp(rows if self.lstm is None else self.lstm(rows[None])[0][0])
