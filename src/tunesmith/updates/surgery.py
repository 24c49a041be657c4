"""Gradient surgery: how the gradients of several tasks become one. Each method is a pure function of their inner products.

The gradient of a task is first added up over all its batches, pieces and processes of the step; then one weight a task is found from the (K, K) Gramian and the
weighted gradients are added. It concerns what the tasks share: a head keeps the gradient of its own task. Clipping comes after. PCGrad's sum is the paper's; CAGrad, MGDA
and UPGrad are published as means and are taken K times, so that tasks which agree get what plain descent gives them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from ..core import Batch, Run
from ..errors import Refusal, not_installed
from ..parallel import rank
from .apart import by_task, each, formed, shared, taken
from .descend import Form, Formed, Losses, by_term

Weigh = Callable[[Tensor, int], Tensor]  # (Gramian (K, K) in float64, seed) -> weights (K)
Gradients = list[Tensor | None]  # of the shared parameters, in their order


def operated(run: Run, batches: Sequence[Batch], tokens: int, seed: int, weigh: Weigh) -> Formed:
    """A step's gradient by surgery; a step with one task, or with nothing shared, is plain descent. Holds K gradients of what is shared."""
    params = list(shared(run).values())
    if len(by_task(batches)) == 1 or not params:
        return Formed(by_term(formed(run, batches, tokens, seed)), {"conflicts": 0})
    losses, rows = Losses(), list[Gradients]()
    for _, found in each(run, batches, tokens, seed):
        losses |= found
        rows.append(taken(params))
    products = gramian(rows)
    for p, grad in zip(params, combined(rows, weigh(products, seed)), strict=True):
        p.grad = grad if rank() == 0 else None  # summed already: the others add nothing
    return Formed(by_term(losses), {"conflicts": int((products.triu(1) < 0).sum())})


def gramian(rows: Sequence[Gradients]) -> Tensor:
    """(K, K) in float64: inner products of the tasks' gradients."""
    products = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i, a in enumerate(rows):
        for j, b in enumerate(rows[: i + 1]):
            dots = [torch.dot(x.flatten(), y.flatten()).double() for x, y in zip(a, b, strict=True) if x is not None and y is not None]
            products[i, j] = products[j, i] = torch.stack(dots).sum().cpu() if dots else 0.0
    return products


def combined(rows: Sequence[Gradients], weights: Tensor) -> Gradients:
    """The weighted sum, in the place of the first that has one."""
    sums: Gradients = [None] * len(rows[0])
    for row, weight in zip(rows, weights.tolist(), strict=True):
        for i, grad in enumerate(row):
            if grad is not None:
                sums[i] = grad.mul_(weight) if (held := sums[i]) is None else held.add_(grad, alpha=weight)
    return sums


# ------------------------------------------------------------------------------------------------ Gramian (K, K) -> weights (K)


def pcgrad(products: Tensor, seed: int) -> Tensor:
    """Each gradient loses, for every other in random order, what points against the other's *original* (Yu et al. 2020, algorithm 1); then their sum."""
    dice, size = torch.Generator().manual_seed(seed), len(products)
    mixed = torch.eye(size, dtype=products.dtype)  # row i: the i-th gradient in terms of the originals
    for i in range(size):
        for j in torch.randperm(size, generator=dice).tolist():
            against = mixed[i] @ products[j]
            if j != i and against < 0:
                mixed[i, j] -= against / products[j, j]
    return mixed.sum(0)


def mgda(products: Tensor, seed: int = 0) -> Tensor:
    """K times the shortest vector in the convex hull (Desideri 2012; Sener & Koltun 2018, eq. 3), exactly; they approach it by Frank and Wolfe's steps."""
    return len(products) * torch.from_numpy(shortest(products.numpy()))


def cagrad(products: Tensor, seed: int = 0, *, c: float = 0.5) -> Tensor:
    """K times g0 + c |g0| / |gw| gw, where w on the simplex minimises gw . g0 + c |g0| |gw|, g0 the mean (Liu et al. 2021, eq. 4); c = 0 is plain descent.

    Their numeric solver is replaced: with t for |gw|, w is the shortest point of the hull of g_k + t g0 / (c |g0|), and |gw| = t is one equation in one
    unknown. Where the hull's best is 0, no direction serves all tasks, and nothing moves.
    """
    g, size = products.numpy(), len(products)
    unit = float(np.trace(g)) or 1.0
    g = g / unit
    with_mean, mean = g.mean(0), g.mean() ** 0.5 if g.mean() > 0 else 0.0
    if c * mean < 1e-9:
        return torch.ones(size, dtype=torch.float64)

    def weights(t: float) -> np.ndarray:
        shift = t / (c * mean)
        return shortest(g + shift * (with_mean[:, None] + with_mean) + shift * shift * mean * mean)

    length = lambda t: float(max(0.0, (w := weights(t)) @ g @ w)) ** 0.5
    t = root(lambda t: length(t) - t, 1e-6, 1.0)
    return torch.from_numpy(np.zeros(size) if t is None else 1 + size * c * mean / length(t) * weights(t))


def upgrad(products: Tensor, seed: int = 0) -> Tensor:
    """The sum of all gradients, each moved the least that makes it hurt no task (Quinton & Rey 2024, eq. 5): min |J v|^2 over v >= e_k, whose excess over e_k is
    a least-squares problem without negative unknowns."""
    from scipy.optimize import nnls

    factor = factored(products.numpy())
    return torch.from_numpy(sum(e + nnls(factor, -factor @ e)[0] for e in np.eye(len(products))))


def shortest(g: np.ndarray) -> np.ndarray:
    """Weights on the simplex of the shortest vector: by Lawson & Hanson's least squares without negative unknowns, |J u|^2 + (1 - sum u)^2, brought to sum 1."""
    from scipy.optimize import nnls

    size = len(g)
    if not (scale := float(np.trace(g))) > 0:
        return np.full(size, 1 / size)
    u = nnls(np.vstack([factored(g / scale), np.ones(size)]), np.append(np.zeros(size), 1.0))[0]
    return u / u.sum()


def factored(g: np.ndarray) -> np.ndarray:
    """F with F^T F = g."""
    values, vectors = np.linalg.eigh(g)
    return np.sqrt(values.clip(min=0))[:, None] * vectors.T


def root(f: Callable[[float], float], low: float, high: float) -> float | None:
    """Where a falling function crosses 0; None where it has done so before `low`."""
    from scipy.optimize import brentq

    return None if f(low) <= 0 else float(brentq(f, low, high, xtol=1e-13, rtol=1e-13))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ rows of UPDATES


class Surgery(Form):
    """What the rows have in common: all but how tasks are weighed."""

    several: ClassVar[bool] = True
    at_once: ClassVar[bool] = True
    shared: ClassVar[bool] = True

    def __call__(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> Formed:
        return operated(run, batches, tokens, seed, self.weigh)

    def holds(self, tasks: int) -> int:
        return tasks - 1

    @abstractmethod
    def weigh(self, products: Tensor, seed: int) -> Tensor:
        """Gramian (K, K) in float64 -> weights (K)."""


@dataclass(frozen=True)
class PCGrad(Surgery):
    """Gradient surgery by projection (Yu et al. 2020, https://arxiv.org/abs/2001.06782). The order in which tasks meet is drawn anew each step."""

    def weigh(self, products: Tensor, seed: int) -> Tensor:
        return pcgrad(products, seed)


@dataclass(frozen=True)
class CAGrad(Surgery):
    """Conflict-averse descent (Liu et al. 2021, https://arxiv.org/abs/2110.14048): near the mean gradient, the one that serves the worst-served task best.

    c   how far it may be from the mean, in lengths of the mean; 0 is plain descent
    """

    c: Annotated[float, Ge(0)] = 0.5

    def weigh(self, products: Tensor, seed: int) -> Tensor:
        return cagrad(products, seed, c=self.c)


@dataclass(frozen=True)
class MGDA(Surgery):
    """The shortest combination of the gradients (Sener & Koltun 2018, https://arxiv.org/abs/1810.04650); zero where no step serves all."""

    def weigh(self, products: Tensor, seed: int) -> Tensor:
        return mgda(products)


@dataclass(frozen=True)
class UPGrad(Surgery):
    """Projections on what hurts no task (Quinton & Rey 2024, https://arxiv.org/abs/2406.16232)."""

    def weigh(self, products: Tensor, seed: int) -> Tensor:
        return upgrad(products)


@dataclass(frozen=True)
class TorchJD(Surgery):
    """An aggregator of torchjd (extra `multitask`), with its own `arguments`, on the scale that it was published in.

    Those that look at inner products alone and remember nothing: others need all gradients side by side, or a state that torchjd does not store.
    """

    aggregator: Literal["AlignedMTL", "CAGrad", "DualProj", "FairGrad", "IMTLG", "MGDA", "PCGrad", "UPGrad"] = "UPGrad"
    arguments: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weighting()  # refused here rather than at the first step

    def weigh(self, products: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return self.weighting()(products)

    def weighting(self) -> Callable[[Tensor], Tensor]:
        try:
            from torchjd import aggregation

            return getattr(aggregation, f"{self.aggregator}Weighting")(**self.arguments)
        except ImportError as e:
            raise not_installed(f"`update: torchjd` with {self.aggregator}: {e}", "multitask", where="update.kind") from e
        except (TypeError, ValueError) as e:
            raise Refusal(f"torchjd's {self.aggregator} does not take {dict(self.arguments)}", where="update.arguments", why=str(e)) from e
