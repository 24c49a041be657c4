"""Parameters that old tasks lean on are held where they were: EWC, MAS and SI, which differ in how they tell which these are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from ..core import Batch, Delta, Network, Objective, Run, Stage
from ..errors import Refusal
from ..parallel import add_up
from ..updates import Form
from .around import Once, Then
from .examples import DRAWS, mean_of, sampled
from .strategy import Strategy

Weight = Annotated[float, Ge(0)]
Rows = Annotated[int, Ge(1)]


class Penalty(Once):
    """`penalty`: strength x sum of importance x (parameter - anchor)^2.

    importance, anchor  buffers by parameter name, so a checkpoint holds them. A parameter, or a row of a head, that no gradient has reached has importance 0.
    """

    def __init__(self, inner: Objective, strength: float, params: Mapping[str, nn.Parameter]):
        super().__init__(inner)
        self.strength, self.params = strength, dict(params)
        self.live: list[str] = []  # those that are held
        self.still: set[str] = set()  # of them, those that are where their anchor is
        for name, p in params.items():
            for what in ("importance", "anchor"):
                self.register_buffer(key_of(what, name), torch.zeros_like(p, dtype=torch.float32, requires_grad=False))

    def held(self, what: str, name: str) -> Tensor:
        return self.get_buffer(key_of(what, name))

    @property
    def holds(self) -> bool:
        return bool(self.live)

    def look(self) -> None:
        """Which parameters are held; until one is, there is no penalty."""
        self.live = [name for name in self.params if bool(self.held("importance", name).any())]
        self.still = set(self.live)

    @torch.no_grad()
    def take(self, importance: Mapping[str, Tensor], keep: float, each: bool) -> None:
        """A stage is over. Old importance counts `keep`; the anchor is where parameters are now, or, with `each`, the mean of all anchors by importance,
        which holds them as a penalty of its own for every stage does: sum_k F_k (x - a_k)^2 = F (x - a)^2 + constant."""
        for name, new in importance.items():
            old, anchor, now = self.held("importance", name), self.held("anchor", name), self.params[name].detach().float()
            old *= keep
            total = old + new
            share = old / total.clamp(min=torch.finfo(torch.float32).tiny)
            anchor.copy_(torch.lerp(now, anchor, share) if each else now)  # to the bit where `now` is the first anchor
            old.copy_(total)

    def penalty(self) -> Tensor:
        """Of what has moved. What no loss of this stage reaches, the heads of others, so has no gradient at all and rests; of a gradient of zero the optimiser
        would make steps, by decay and by its own scale, and the penalty's answer to them would fill the norm that gradients are clipped to."""
        self.still = {n for n in self.still if torch.equal(self.params[n].detach().float(), self.held("anchor", n))}
        far = [(self.params[n].float() - self.held("anchor", n)).square() * self.held("importance", n) for n in self.live if n not in self.still]
        return self.strength * torch.stack([f.sum() for f in far]).sum() if far else next(iter(self.params.values())).new_zeros((), dtype=torch.float32)

    def pull(self, name: str) -> Tensor:
        """The penalty's gradient."""
        return 2 * self.strength * self.held("importance", name) * (self.params[name].detach().float() - self.held("anchor", name))


def key_of(what: str, name: str) -> str:
    return f"{what}:{name.replace('.', ':')}"


@dataclass
class Anchors(Strategy):
    """What the three have in common. `factor`: of the strength in the penalty, as each paper has it; `keep`: what old importance counts when new comes."""

    strength: Weight = 1.0

    factor: ClassVar[float] = 1.0
    each: ClassVar[bool] = False
    anchors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.penalty: Penalty | None = None

    @property
    def keep(self) -> float:
        return 1.0

    def meet(self, net: Network, delta: Delta, kinds: Mapping[str, str]) -> None:
        self.params, self.kinds = delta.parameters(), kinds

    def objective(self, learn: Objective) -> Objective:
        if not self.strength:
            return learn
        self.penalty = Penalty(learn, self.factor * self.strength, self.params)
        return self.penalty

    def begin(self, run: Run, stage: Stage) -> None:
        if self.penalty:
            self.penalty.look()

    def end(self, run: Run, stage: Stage) -> None:
        if self.penalty:
            self.penalty.take(self.importance(run, stage), self.keep, self.each)

    def importance(self, run: Run, stage: Stage) -> Mapping[str, Tensor]:
        """By parameter, at the end of a stage: how much it matters there, at least 0."""
        raise NotImplementedError


@dataclass
class EWC(Anchors):
    """Parameters are held by the diagonal of the Fisher information (elastic weight consolidation, Kirkpatrick et al. 2017, equation 3).

    It is the mean over examples of squared gradients of the log-likelihood, a gradient an example.

    strength  lambda; the penalty is lambda / 2 x F (x - a)^2, beside losses that are means over rows. What suits is a matter of the model: on MiniLM with LoRA
              1000 keeps two thirds of what naive forgets, and 10 nothing (docs/proofs.md)
    fisher    `empirical`: of the labels that are given, as most implementations; `true`: of a label drawn from the model, as the definition has it
    gamma     None: an anchor a stage; else one, online: old importance counts gamma (Schwarz et al. 2018, section 3.2)
    examples  that it is estimated on, at most
    """

    strength: Weight = 1000.0
    fisher: Literal["empirical", "true"] = "empirical"
    gamma: Annotated[float, Gt(0), Le(1)] | None = None
    examples: Rows = 500

    paper: ClassVar[str] = "Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796"
    factor: ClassVar[float] = 0.5
    rows: ClassVar[bool] = True
    apart: ClassVar[bool] = True

    @property
    def each(self) -> bool:  # type: ignore[override]
        return self.gamma is None

    @property
    def keep(self) -> float:
        return self.gamma or 1.0

    def meet(self, net: Network, delta: Delta, kinds: Mapping[str, str]) -> None:
        super().meet(net, delta, kinds)
        odd = [kind for kind in kinds.values() if kind not in DRAWS or (kind == "generate" and net.anatomy.kind == "seq2seq")]
        if self.fisher == "true" and odd:
            raise Refusal(
                f"`fisher: true` draws answers from the model, and rows of kind {odd[0]} have none to draw", where="strategy.fisher", fix="fisher: empirical"
            )

    def importance(self, run: Run, stage: Stage) -> Mapping[str, Tensor]:
        learn = run.objective.inner  # type: ignore[union-attr]

        def unlikely(net: Network, batch: Batch) -> Tensor:
            asked = sampled(net, batch, self.kinds[batch.task]) if self.fisher == "true" else batch
            return torch.stack(list(learn(net, asked).values())).sum()  # type: ignore[operator]

        return mean_of(run, stage, self.examples, unlikely, torch.square)


@dataclass
class MAS(Anchors):
    """Parameters are held by how much the outputs depend on them (memory aware synapses, Aljundi et al. 2018, equations 2 to 4).

    A mean over examples of absolute gradients of the squared length of the outputs, which asks for no label. Outputs are logits; of embeddings, the pooled states.

    examples  that it is estimated on, at most
    """

    strength: Weight = 1.0
    examples: Rows = 500

    paper: ClassVar[str] = "Aljundi et al. 2018, https://arxiv.org/abs/1711.09601"
    rows: ClassVar[bool] = True
    hears: ClassVar[bool] = True

    def meet(self, net: Network, delta: Delta, kinds: Mapping[str, str]) -> None:
        super().meet(net, delta, kinds)
        if net.anatomy.kind == "seq2seq" and not len(net.heads):
            raise Refusal(
                "`strategy: mas` and an encoder-decoder that writes: it asks for outputs without a text to write", where="strategy", fix="strategy: ewc or si"
            )

    def importance(self, run: Run, stage: Stage) -> Mapping[str, Tensor]:
        kinds = self.kinds
        out = lambda net, batch: net.pooled(batch) if kinds[batch.task] in EMBEDDED else net.logits(batch)
        return mean_of(run, stage, self.examples, lambda net, batch: out(net, batch).float().square().sum(), torch.abs)


EMBEDDED = ("pairs", "similar", "grouped", "texts")


@dataclass
class SI(Anchors):
    """Parameters are held by what their way through a stage took off the loss (synaptic intelligence, Zenke et al. 2017, equations 3 to 5).

    -sum over steps of gradient x change, over (distance^2 + xi), at least 0. The gradient is of the loss without the penalty, before clipping.

    With Adam the change is no multiple of the gradient, and the estimate leans to parameters with small gradients (Benzing 2022, section 4).

    strength  c. The paper's 0.1 is of networks that learn from nothing; of LoRA on MiniLM it holds nothing, and 100 more than EWC does (docs/proofs.md)
    """

    strength: Weight = 100.0
    xi: Annotated[float, Gt(0)] = 1e-3

    paper: ClassVar[str] = "Zenke et al. 2017, https://arxiv.org/abs/1703.04200"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path: dict[str, Tensor] = {}
        self.start: dict[str, Tensor] = {}
        self.before: dict[str, tuple[Tensor, Tensor]] = {}

    def begin(self, run: Run, stage: Stage) -> None:
        super().begin(run, stage)
        if run.between:
            self.path = {n: torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for n, p in self.params.items()}
            self.start = {n: p.detach().clone() for n, p in self.params.items()}

    def form(self, form: Form) -> Form:
        return Then(form, self.look) if self.strength else form

    def look(self) -> None:
        """Where the step starts from, and which way its loss falls."""
        self.before = {n: (self.slope(n, p), p.detach().clone()) for n, p in self.params.items() if p.requires_grad}

    def slope(self, name: str, p: nn.Parameter) -> Tensor:
        """The gradient of the loss alone, over all processes."""
        grad = add_up(torch.zeros_like(p) if p.grad is None else p.grad.clone())
        return grad - self.penalty.pull(name) if self.penalty and name in self.penalty.live else grad

    @torch.no_grad()
    def step(self, run: Run, record: Mapping[str, float]) -> None:
        for name, (slope, was) in self.before.items():
            self.path[name] -= slope * (self.params[name].detach() - was)
        self.before = {}

    def importance(self, run: Run, stage: Stage) -> Mapping[str, Tensor]:
        far = lambda n: (self.params[n].detach() - self.start[n]).square() + self.xi
        return {n: path.clamp(min=0) / far(n) for n, path in self.path.items()}

    def tensors(self) -> Mapping[str, Tensor]:
        return {f"{what}/{n}": t for what, held in (("path", self.path), ("start", self.start)) for n, t in held.items()}

    def recall(self, tensors: Mapping[str, Tensor]) -> None:
        on = lambda what: {n: tensors[f"{what}/{n}"].to(p.device) for n, p in self.params.items() if f"{what}/{n}" in tensors}
        self.path, self.start = on("path"), on("start")
