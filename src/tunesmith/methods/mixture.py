"""A mixture of the LoRAs of finished runs: how much of each, learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core import Graft, Insert, Method, Network
from ..errors import Refusal
from .finished import Parts, agree, changes, given, made, options
from .linear import as_stored, features, find, quantised, weight_of
from .lora import LoRA

Gate = Literal["layer", "network", "token", "task"]
REST = "rest"  # tasks without a head


@dataclass(frozen=True)
class Mixture(Method):
    """How much of each of several finished runs' frozen LoRAs, learnt.

    W x + sum_n w_n s_n B_n A_n x, w = 1 / K each at the start (after LoraHub, Huang et al. 2023, section 2.2).

    runs    folders of finished runs with `method: lora` on this model; rank, scale and targets may differ
    gate    what decides on w: one number a run for each `layer`, for the whole `network`, or for each layer and `task` of several (those without a head share theirs);
            or for each `token` softmax(G x) (as X-LoRA, Buehler & Buehler 2024)
    parts   how those LoRAs are made: written into the artifact, which holds their weights too and loads alone; not for recipes

    LoraHub mixes A and B each, which multiplies every B with every A, and searches w without gradients, decayed towards 0: here products are mixed, w is trained,
    and one run with w = 1 is that run. The heads of those runs are not taken over.
    """

    runs: tuple[str, ...] = ()
    gate: Gate = "layer"
    parts: Parts = ()

    paper: ClassVar[str] = "Huang et al. 2023, https://arxiv.org/abs/2307.13269; Buehler & Buehler 2024, https://arxiv.org/abs/2402.07148"
    neutral: ClassVar[bool] = False
    builds: ClassVar[bool] = True
    rates: ClassVar[Mapping[str, float]] = {"encoder": 2e-2, "decoder": 1e-2, "seq2seq": 2e-2}

    @property
    def merges(self) -> bool:  # type: ignore[override]
        return self.gate in ("layer", "network")

    def foreseen(self, model: Mapping[str, Any]) -> None:
        agree(self.runs, "lora", model)
        if any(member.dora for member in self.members()):
            raise Refusal("LoRAs with `dora` cannot be mixed: their change is no sum", where="method.runs", fix="runs with method: {kind: lora, dora: false}")

    def settled(self) -> Method:
        return replace(self, parts=made(self.runs, self.parts))

    def members(self) -> list[LoRA]:
        return [LoRA(**options(part)) for part in made(self.runs, self.parts)]

    def refuse(self, net: Network) -> None:
        self.members()
        if self.gate == "task" and not len(net.heads):
            raise Refusal("`gate: task`, and no task has a head to be known by", where="method.gate", fix="gate: layer")

    def inject(self, net: Network) -> list[Insert]:
        members, found = self.members(), [] if self.parts else [changes(run) for run in self.runs]
        targets = [set(find(net, member.targets)) for member in members]
        common = Weights(len(members), next(net.parameters()).device)
        tasks = (*net.heads, REST) if self.gate == "task" else ()
        inserts: list[Insert] = []
        for path in (path for path in net.anatomy.linears if any(path in own for own in targets)):
            here = [i for i, own in enumerate(targets) if path in own]
            blend = Blend(net.get_submodule(path), [members[i] for i in here], here, self.gate, common, tasks, net.room, owns=not inserts)  # type: ignore[attr-defined]
            for low, i in zip(blend.lows, here, strict=True):
                for name, p in low.named_parameters() if found else ():
                    p.data.copy_(given(found[i], f"{path}.lora.{name}", p.shape, self.runs[i]))
            blend.graft(net.get_submodule(path), "mixture")
            inserts.append(blend)
        return inserts

    def trains(self, name: str, net: Network) -> bool:
        return ".mixture." in name and ".lows." not in name


class Weights(nn.Module):
    """w (K), the mean at the start."""

    def __init__(self, size: int, device: torch.device):
        super().__init__()
        self.w = nn.Parameter(torch.full((size,), 1 / size, device=device))


class Low(nn.Module):
    """A (r, in), B (out, r) of one run."""

    def __init__(self, width: int, out: int, member: LoRA, device: torch.device):
        super().__init__()
        rank = member.rank * (2 if member.start == "pissa" else 1)  # as it is stored: beside what it learnt, what it started from
        self.A = nn.Parameter(torch.randn(rank, width, device=device) * width**-0.5)  # until they are read from a run or an artifact
        self.B = nn.Parameter(torch.randn(out, rank, device=device) * 0.02)


class Blend(Graft):
    """The low-rank changes of several runs to one layer, `here` those of all that change it, as one product of all their ranks."""

    def __init__(self, host: nn.Module, members: Sequence[LoRA], here: Sequence[int], gate: Gate, common: Weights, tasks: Sequence[str], room: Any, owns: bool):
        super().__init__()
        width, out = features(host)
        device: torch.device = host.weight.device  # type: ignore[assignment]
        self.here, self.gate = list(here), gate
        self.lows = nn.ModuleList(Low(width, out, member, device) for member in members)
        self.scales = [member.scale for member in members]
        self.shared = common, room  # a tuple, lest the weights be counted once a layer
        if gate == "task":
            self.weights = nn.ModuleDict({task: Weights(len(common.w), device) for task in tasks})
        elif gate == "layer":
            self.weights = Weights(len(common.w), device)
        elif gate == "network" and owns:
            self.weights = common
        elif gate == "token":
            self.choice = nn.Linear(width, len(members), bias=False, device=device)
            nn.init.zeros_(self.choice.weight)

    def forward(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        y, a, b = inner(x), torch.cat([low.A for low in self.lows]), torch.cat([low.B for low in self.lows], 1)  # type: ignore[misc]
        low = nn.functional.linear(x.to(a.dtype), a)
        return y + nn.functional.linear((low * self.spread(self.share(x))).to(b.dtype), b).to(y.dtype)

    def share(self, x: Tensor) -> Tensor:
        """(..., K): how much of each run."""
        if self.gate == "token":
            with torch.autocast(x.device.type, enabled=False):
                return self.choice(x.to(self.choice.weight.dtype)).softmax(-1)
        if self.gate == "task":
            return self.weights[self.shared[1].task or REST].w[self.here]  # type: ignore[union-attr,index]
        return self.fixed()

    def fixed(self) -> Tensor:
        return (self.weights if self.gate == "layer" else self.shared[0]).w[self.here]  # type: ignore[union-attr]

    def spread(self, share: Tensor) -> Tensor:
        """(..., K) -> (..., all ranks), each run's scale in it."""
        ranks = torch.tensor([len(low.A) for low in self.lows], device=share.device)  # type: ignore[arg-type]
        return (share * share.new_tensor(self.scales)).repeat_interleave(ranks, -1)

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        if quantised(self.host):
            raise Refusal("a quantised base cannot take the change in", where="export", fix="load the base unquantised")
        weight = weight_of(self.host)
        tuned = weight.float()
        for share, scale, low in zip(self.fixed().tolist(), self.scales, self.lows, strict=True):
            tuned = tuned + share * scale * (low.B.float() @ low.A.float())  # type: ignore[operator]
        return {"weight": as_stored(self.host, tuned.to(weight.dtype))}
