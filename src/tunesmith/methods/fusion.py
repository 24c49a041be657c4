"""AdapterFusion: what adapters of finished runs know, put together for another task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core import Graft, Insert, Method, Network
from ..errors import Refusal
from .adapter import Adapter, Bottleneck
from .finished import Parts, agree, changes, given, made, options
from .linear import features


@dataclass(frozen=True)
class Fusion(Method):
    """Attention over the frozen adapters of finished runs, in every layer and for every token.

    y + V sum_n s_n z_n, s = softmax_n(q(y) . K z_n), where z_n is what adapter n would add to y (Pfeiffer et al. 2021, section 3.2).

    runs    folders of finished runs with `method: adapter` on this model, in one serial placement; widths may differ
    parts   how those adapters are made: written into the artifact, which holds their weights too and loads alone; not for recipes

    V starts as the identity. They pull it there by 0.01 |V - I|^2 in the loss; here V = I + C and `update.decay` pulls C to 0. The heads of those runs
    are not taken over. Keys have no bias, which a softmax would not see.
    """

    runs: tuple[str, ...] = ()
    parts: Parts = ()

    paper: ClassVar[str] = "Pfeiffer et al. 2021, https://arxiv.org/abs/2005.00247"
    neutral: ClassVar[bool] = False
    builds: ClassVar[bool] = True
    matrices: ClassVar[bool] = True
    rates: ClassVar[Mapping[str, float]] = {"encoder": 1e-3, "decoder": 2e-4, "seq2seq": 7.5e-4}  # theirs, a tenth, leaves a new head where it was

    def foreseen(self, model: Mapping[str, Any]) -> None:
        agree(self.runs, "adapter", model)

    def settled(self) -> Method:
        return replace(self, parts=made(self.runs, self.parts))

    def members(self) -> list[Adapter]:
        return [Adapter(**options(part)) for part in made(self.runs, self.parts)]

    def refuse(self, net: Network) -> None:
        placements = {member.placement for member in self.members()}
        if len(placements) != 1 or "parallel" in placements:
            raise Refusal(
                f"adapters in {' and '.join(sorted(placements))} cannot be fused",
                where="method.runs",
                why="each must write at the same places, behind the same layers",
                fix="runs with method: {kind: adapter, placement: pfeiffer}, or all with houlsby",
            )

    def inject(self, net: Network) -> list[Insert]:
        members, found = self.members(), [] if self.parts else [changes(run) for run in self.runs]
        roles = ("out", "down") if members[0].placement == "houlsby" else ("down",)
        return [self.one(net, path, members, found) for path in net.anatomy.projections(*roles)]

    def one(self, net: Network, path: str, members: Sequence[Adapter], found: Sequence[Mapping[str, Tensor]]) -> Insert:
        host = net.get_submodule(path)
        council = Council(features(host)[1], members, host.weight.device)  # type: ignore[arg-type]
        for member, state, run in zip(council.members, found, self.runs, strict=False):
            for name, p in member.named_parameters():
                p.data.copy_(given(state, f"{path}.adapter.{name}", p.shape, run))
        council.graft(host, "fusion")
        return council

    def trains(self, name: str, net: Network) -> bool:
        return ".fusion." in name and ".members." not in name


class Council(Graft):
    """Adapters side by side, and the attention over them. (..., D) -> (..., D)."""

    def __init__(self, dim: int, members: Sequence[Adapter], device: torch.device):
        super().__init__()
        self.members = nn.ModuleList(Bottleneck(dim, member, device) for member in members)
        for p in self.members.parameters():
            nn.init.normal_(p, std=dim**-0.5)  # until they are read from a run or an artifact
        self.query = nn.Linear(dim, dim, device=device)
        self.key, self.change = (nn.Linear(dim, dim, bias=False, device=device) for _ in range(2))
        for p in (self.query.weight, self.key.weight):
            nn.init.normal_(p, std=0.02)
        for p in (self.query.bias, self.change.weight):
            nn.init.zeros_(p)

    def forward(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        y = inner(x)
        z = torch.stack([member.through(y) for member in self.members], -2).to(self.query.weight.dtype)  # (..., K, D)  # type: ignore[operator]
        asked = self.query(y.to(z.dtype)) @ self.key.weight  # q . K z = (K^T q) . z: one product a token instead of one an adapter
        share = (z * asked[..., None, :]).sum(-1).softmax(-1)
        mixed = (share[..., None] * z).sum(-2)
        return y + (mixed + self.change(mixed)).to(y.dtype)
