"""O-LoRA: each stage has directions of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from ..core import Delta, Method, Network, Objective, Run, Source, Stage
from ..errors import Refusal
from ..methods import LoRA
from ..updates import Form
from .around import Once, Then
from .strategy import Strategy, number


class Orthogonal(Once):
    """`penalty`: strength x sum over layers and past stages k of |A_k A_t^T|, entry by entry, t the present stage."""

    def __init__(self, inner: Objective, strength: float, downs: Mapping[str, nn.Parameter]):
        super().__init__(inner)
        self.strength, self.downs, self.now = strength, dict(downs), slice(0, 0)

    @property
    def holds(self) -> bool:
        return self.now.start > 0

    def penalty(self) -> Tensor:
        parts = [(a[: self.now.start].detach() @ a[self.now].T).abs().sum() for a in self.downs.values()]
        return self.strength * torch.stack(parts).sum()


@dataclass
class OLoRA(Strategy):
    """Each stage moves a block of the LoRA's rank that is kept orthogonal to those of past stages (O-LoRA, Wang et al. 2023, equations 7 and 8).

    Where one head has all labels, new ones are told apart among themselves (see InTurn, `among`), or the head would forget what the blocks keep.
    Past blocks are frozen to the bit. All add up, so the artifact is one plain LoRA.

    strength  lambda_1 of the sum over layers, which grows with their number and with the square of a block's rank
    room      stages that the rank is cut for; None: as many as the sequence has when it begins, so none can be added later. `method.rank` / room is the rank
              of a stage, and alpha / rank its scale
    """

    strength: Annotated[float, Ge(0)] = 0.5
    room: Annotated[int, Ge(2)] | None = None

    paper: ClassVar[str] = "Wang et al. 2023, https://arxiv.org/abs/2310.14152"
    methods: ClassVar[tuple[str, ...]] = ("lora",)
    anchors: ClassVar[bool] = True
    among: ClassVar[str] = "stage"

    def __post_init__(self) -> None:
        self.stages = self.width = 0
        self.now = slice(0, 0)
        self.rest: dict[str, Tensor] = {}

    def foreseen(self, method: Method, stages: int) -> None:
        assert isinstance(method, LoRA)
        if method.dora or method.start == "pissa":
            which = "dora" if method.dora else "start: pissa"
            raise Refusal(f"`strategy: olora` and `{which}`, whose change is no sum over the rank", where="method", fix="plain lora")
        if self.room and stages > self.room:
            raise Refusal(f"room for {self.room} stages, and there are {stages}", where="strategy.room", fix="leave `room` out, or a larger one")
        if (room := self.room or stages) > method.rank:
            raise Refusal(f"a LoRA of rank {method.rank} for {room} stages", where="method.rank", fix=f"rank: {8 * room}")

    def meet(self, net: Network, delta: Delta, kinds: Mapping[str, str]) -> None:
        self.params = {n: p for n, p in delta.parameters().items() if n.endswith((".lora.A", ".lora.B"))}
        self.rank = min(len(p) for n, p in self.params.items() if n.endswith("A"))

    def source(self, source: Any, stage: int) -> tuple[Source, int]:
        self.stages = stage + 1
        return source, 1

    def objective(self, learn: Objective) -> Objective:
        self.learn = Orthogonal(learn, self.strength, {n: p for n, p in self.params.items() if n.endswith("A")})
        return self.learn if self.strength else learn

    def begin(self, run: Run, stage: Stage) -> None:
        self.width = self.width or self.rank // (self.room or self.stages)
        self.now = self.learn.now = slice(number(run, stage) * self.width, (number(run, stage) + 1) * self.width)
        self.rest = {n: p.detach().clone() for n, p in self.params.items()}

    def form(self, form: Form) -> Form:
        return Then(form, self.rest_others)

    def rest_others(self) -> None:
        for n, p in self.params.items():
            for other in self.others(n, p.grad):
                other.zero_()

    def others(self, name: str, x: Tensor | None) -> tuple[Tensor, ...]:
        """Views of the blocks of other stages: rows of A, columns of B."""
        if x is None:
            return ()
        rows = x if name.endswith("A") else x.T
        return rows[: self.now.start], rows[self.now.stop :]

    @torch.no_grad()
    def step(self, run: Run, record: Mapping[str, float]) -> None:
        """What rests is not decayed either."""
        for n, p in self.params.items():
            for here, was in zip(self.others(n, p.data), self.others(n, self.rest[n]), strict=True):
                here.copy_(was)

    def state(self) -> Mapping[str, Any]:
        return {"width": self.width}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.width = state["width"]
        if self.stages * self.width > self.rank:
            why = f"its rank of {self.rank} was cut for {self.rank // self.width} stages"
            raise Refusal(f"no room for stage {self.stages}", where="strategy.room", why=why, fix="`room` for stages to come, from the first run on")
