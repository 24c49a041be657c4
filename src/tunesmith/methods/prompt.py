"""Soft prompts: learned vectors before the first token."""

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
from .reparametrise import Detour, Reparametrised


@dataclass(frozen=True)
class Prompt(Method):
    """`length` vectors before each row, in the space of the token embeddings (Lester et al. 2021, section 2).

    start           vocabulary: rows of random tokens · text: the tokens of `text`, repeated or cut to length ·
                    labels: the tokens of the label words · random: normal, with the embeddings' own deviation
    reparametrise   none, or through an mlp or an lstm (P-tuning, Liu et al. 2021), whose parameters are saved too
    """

    length: Annotated[int, Ge(1)] = 20
    start: Literal["vocabulary", "text", "labels", "random"] = "vocabulary"
    text: str = ""
    reparametrise: Detour = "none"
    hidden: Annotated[int, Ge(1)] = 128

    paper: ClassVar[str] = "Lester, Al-Rfou, Constant 2021, https://arxiv.org/abs/2104.08691"
    neutral: ClassVar[bool] = False
    rates: ClassVar[Mapping[str, float]] = {"encoder": 1e-2, "decoder": 3e-2, "seq2seq": 1e-1}

    @property
    def positions(self) -> int:
        return self.length

    def refuse(self, net: Network) -> None:
        limit = net.anatomy.positions
        if limit and self.length >= limit:
            raise Refusal(f"{self.length} prompt rows leave no room in {limit} positions", where="method.length", fix=f"well under {limit}")
        if self.start == "text" and not self.text:
            raise Refusal("start: text needs a text", where="method.text", fix="text: Classify the message of a customer.")
        if self.start == "labels" and not net.labels:
            raise Refusal("start: labels needs a task with label names", where="method.start", fix="start: vocabulary")

    def inject(self, net: Network) -> list[Insert]:
        table: nn.Embedding = net.get_submodule(net.anatomy.embedding)  # type: ignore[assignment]
        insert = PromptRows(self.rows(net, table), self)
        insert.place(net, "prompt")
        return [insert]

    @torch.no_grad()
    def rows(self, net: Network, table: nn.Embedding) -> Tensor:
        """(length, D), fp32, as the embedding module itself would give them (Gemma scales; ELECTRA's are narrower than its states)."""
        rows = table(self.token_ids(net, table).to(table.weight.device)).float()
        return torch.randn_like(rows) * rows.std() if self.start == "random" else rows

    def token_ids(self, net: Network, table: nn.Embedding) -> Tensor:
        """(length,)."""
        if self.start in ("vocabulary", "random"):
            return torch.randint(len(table.weight), (self.length,))
        words = [net.token_ids(word) for word in (net.labels if self.start == "labels" else (self.text,))]
        return torch.tensor(list(islice(cycle([i for ids in words for i in ids]), self.length)))

    def trains(self, name: str, net: Network) -> bool:
        return name.startswith("prompt.")


class PromptRows(Slot):
    """() -> (p, D)."""

    def __init__(self, rows: Tensor, method: Prompt):
        super().__init__()
        self.rows = nn.Parameter(rows.clone())
        width = rows.shape[1]
        self.detour = None if method.reparametrise == "none" else Reparametrised(width, width, method.reparametrise, method.hidden, rows.device)

    def forward(self) -> Tensor:
        return self.rows if self.detour is None else self.rows + self.detour(self.rows)
