"""A-GEM: no step that, to first order, makes old rows' loss larger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core import Batch, Objective, Run
from ..parallel import rank, sum_gradients
from ..updates import Form, Formed
from ..updates.descend import units
from .around import AroundForm
from .replay import Remembering, Replaying


@dataclass
class AGEM(Remembering):
    """The gradient g of new rows is projected where it points against that of old ones, r: g - (g.r / r.r) r if g.r < 0 (Chaudhry et al. 2019, equation 11).

    g and r are whole gradients: of all that moves, of all pieces and processes, before clipping. Old rows are drawn from the whole memory at every step.
    """

    paper: ClassVar[str] = "Chaudhry et al. 2019, https://arxiv.org/abs/1812.00420"

    @property
    def draws(self) -> tuple[bool, ...]:
        return (False,)

    def objective(self, learn: Objective) -> Objective:
        return Replaying(learn, 1.0, 0.0, several=len(self.keys) > 1)

    def form(self, form: Form) -> Form:
        return Projected(form)


@dataclass
class Projected(AroundForm):
    """`inner`, asked for old and for new rows apart."""

    def __call__(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> Formed:
        old = [batch for batch in batches if "replayed" in batch]
        if not old:
            return self.inner(run, batches, tokens, seed)
        params = run.parameters()
        told = whole(run, params, self.inner(run, old, tokens, seed ^ 1).losses, old)
        reference = {n: p.grad for n, p in params.items() if p.grad is not None}
        clear(params)
        new = [batch for batch in batches if "replayed" not in batch]
        told |= whole(run, params, self.inner(run, new, tokens, seed).losses, new)
        project(params, reference)
        if rank():  # the first process' gradients are those of all
            clear(params)
            return Formed({})
        return Formed(told)


def whole(run: Run, params: Mapping[str, nn.Parameter], sums: Mapping[str, Tensor], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Gradients and sums over all processes."""
    return sum_gradients(list(params.values()), sums, sorted(units(run, batches)))


def clear(params: Mapping[str, nn.Parameter]) -> None:
    for p in params.values():
        p.grad = None


@torch.no_grad()
def project(params: Mapping[str, nn.Parameter], reference: Mapping[str, Tensor]) -> None:
    """In place. What the reference does not reach stays."""
    both = {n: (p.grad, reference[n]) for n, p in params.items() if p.grad is not None and n in reference}
    if not both:
        return
    against = torch.stack([(g * r).sum() for g, r in both.values()]).sum()
    length = torch.stack([r.square().sum() for r in reference.values()]).sum()
    step = torch.where(against < 0, against / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
    for n, r in reference.items():
        p = params[n]
        if p.grad is not None:
            p.grad -= step * r
        elif bool(step):
            p.grad = -step * r
