"""Prefix tuning: learned keys and values in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from ..core import Insert, Method, Network, Slot
from ..errors import Refusal
from .reparametrise import Reparametrised


@dataclass(frozen=True)
class Prefix(Method):
    """`length` keys and values before those of each row in every self-attention (Li & Liang 2021, section 4.2; P-tuning v2).

    start           text: what the tokens of `text` (default: random tokens) leave in each layer · random: normal, deviation 0.02
    reparametrise   none, or through an mlp, whose parameters are saved too
    Works in the attention function, so encoders, windowed attention and gradient checkpointing make no difference.
    """

    length: Annotated[int, Ge(1)] = 20
    start: Literal["text", "random"] = "text"
    text: str = ""
    reparametrise: Literal["none", "mlp"] = "none"
    hidden: Annotated[int, Ge(1)] = 512

    paper: ClassVar[str] = "Li & Liang 2021, https://arxiv.org/abs/2101.00190; Liu et al. 2022 (P-tuning v2), https://arxiv.org/abs/2110.07602"
    neutral: ClassVar[bool] = False
    rates: ClassVar[Mapping[str, float]] = {"encoder": 1e-2, "decoder": 2e-2, "seq2seq": 2e-2}

    @property
    def positions(self) -> int:
        return self.length

    def refuse(self, net: Network) -> None:
        if not net.takes_prefix:
            raise Refusal(
                "this architecture computes its own attention (disentangled, relative) and lets no keys and values be put before it",
                where="method",
                fix="method: prompt, lora or adapter",
            )
        limit = net.anatomy.positions
        if limit and self.length >= limit:
            raise Refusal(f"{self.length} prefix rows leave no room in {limit} positions", where="method.length", fix=f"well under {limit}")

    def inject(self, net: Network) -> list[Insert]:
        insert = PrefixRows(self.rows(net), self, net.anatomy.width)
        insert.place(net, "prefix")
        return [insert]

    def rows(self, net: Network) -> Tensor:
        """(2 layers, p, kv heads, d), fp32."""
        a, device = net.anatomy, net.get_submodule(net.anatomy.embedding).weight.device
        if self.start == "random" or a.kind == "seq2seq":
            return 0.02 * torch.randn(2 * len(a.attentions), self.length, a.kv_heads, a.head_dim, device=device)  # type: ignore[arg-type]
        vocabulary: int = len(net.get_submodule(a.embedding).weight)  # type: ignore[arg-type]
        ids = torch.tensor(list(islice(cycle(net.token_ids(self.text)), self.length))) if self.text else torch.randint(vocabulary, (self.length,))
        return net.keys_values(ids.to(device)).float()  # type: ignore[arg-type]

    def trains(self, name: str, net: Network) -> bool:
        return name.startswith("prefix.")


class PrefixRows(Slot):
    """() -> (2 layers, p, kv heads, d)."""

    def __init__(self, rows: Tensor, method: Prefix, width: int):
        super().__init__()
        self.rows = nn.Parameter(rows.clone())
        self.seed = self.detour = None
        if method.reparametrise != "none":
            self.seed = nn.Parameter(torch.randn(rows.shape[1], width, device=rows.device))
            self.detour = Reparametrised(width, rows[:, 0].numel(), method.reparametrise, method.hidden, rows.device)

    def forward(self) -> Tensor:
        if self.detour is None:
            return self.rows
        layers, _, heads, dim = self.rows.shape
        return self.rows + self.detour(self.seed).view(-1, layers, heads, dim).transpose(0, 1)
