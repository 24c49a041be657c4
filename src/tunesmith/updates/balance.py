"""Balancing: how much each task's loss counts. The gradient is of sum_k w_k L_k, heads included; what is logged is never weighted. Fixed weights
are the tasks' own (`tasks.<name>.weight`), and multiply these.

L_k is the loss of task k over its own units of the step, over all pieces and processes. Weights of K tasks are near 1 each, so that equal ones are plain
descent. What is learnt here (log-variances, weights) has an Adam of its own: one number a task, no decay but FAMO's, neither clipped nor scheduled, and no part
of the logged norm. Tasks are known by name from the first step in which they come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from ..core import Batch, Run, under
from ..errors import Refusal
from ..parallel import add_up
from .apart import by_task, each, formed, last_block, shared, told
from .descend import Form, Formed, Losses, by_term

Positive = Annotated[float, Gt(0)]
SMALL = 1e-8


@dataclass
class Numbers:
    """One number a task, moved by Adam (Kingma & Ba 2015) with L2 `decay` in the gradient; first and second moment and count beside it."""

    speed: float
    start: float = 0.0
    decay: float = 0.0
    held: dict[str, list[float]] = field(default_factory=dict)

    def __getitem__(self, task: str) -> float:
        return self.held.setdefault(task, [self.start, 0.0, 0.0, 0.0])[0]

    def __setitem__(self, task: str, value: float) -> None:
        self.held[task][0] = value

    def move(self, task: str, gradient: float) -> None:
        value, first, second, count = self.held[task]
        g, n = gradient + self.decay * value, count + 1
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        value -= self.speed * first / (1 - 0.9**n) / (math.sqrt(second / (1 - 0.999**n)) + 1e-8)
        self.held[task] = [value, first, second, n]

    def state_dict(self) -> dict[str, Tensor]:
        return kept(self.held)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.held = restored(state)


def kept(numbers: Mapping[str, Sequence[float]], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + task: torch.tensor(values, dtype=torch.float64) for task, values in numbers.items()}


def restored(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, list[float]]:
    return {task: value.tolist() for task, value in under(state, prefix).items()}


def weighted(run: Run, batches: Sequence[Batch], tokens: int, seed: int, weights: Mapping[str, float]) -> tuple[Formed, dict[str, float]]:
    """A step whose weights are known before it: one pass, as plain descent makes it. And each task's loss."""
    losses = formed(run, batches, tokens, seed, weights=weights)
    return Formed(by_term(losses), shown(weights)), told(losses, list(by_task(batches)), batches[0]["ids"].device)


def shown(weights: Mapping[str, float]) -> dict[str, float]:
    return {f"weight.{task}": weight for task, weight in weights.items()}


@dataclass
class UW(Form):
    """Uncertainty weighting: sum_k e^{-s_k} L_k + s_k, s learnt (Kendall, Gal & Cipolla 2018, https://arxiv.org/abs/1705.07115, eq. 7 with s = log sigma^2).

    Twice the published sum, so that s = 0 is plain descent; s comes to rest at log L. Their factor for cross-entropy is twice the one for squares; one form is
    used for both, as torchjd does. The sum may be negative, so it is never shown.
    speed   learning rate of s, which moves by about as much a step: where losses differ by a factor of hundreds, log L / steps is the least that gets there
    """

    several: ClassVar[bool] = True

    speed: Positive = 0.01
    s: Numbers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.s = Numbers(self.speed)

    def __call__(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> Formed:
        weights = {task: math.exp(-self.s[task]) for task in by_task(batches)}
        found, losses = weighted(run, batches, tokens, seed, weights)
        for task, loss in losses.items():
            self.s.move(task, 1 - weights[task] * loss)
        return found

    def state_dict(self) -> dict[str, Tensor]:
        return self.s.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.s.load_state_dict(state)


@dataclass
class DWA(Form):
    """Dynamic weight average: K softmax(r_k / T), r_k = L_k(t-1) / L_k(t-2), each the mean over an epoch (Liu, Johns & Davison 2019,
    https://arxiv.org/abs/1803.10704, eq. 7); 1 in the first two epochs."""

    several: ClassVar[bool] = True

    temperature: Positive = 2.0
    epoch: int = field(default=0, init=False)
    now: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)  # sum of this epoch's losses, and of how many steps
    past: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)  # means of the last two epochs, the older first

    def __call__(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> Formed:
        if run.delta.epoch != self.epoch:
            self.turn(run.delta.epoch)
        found, losses = weighted(run, batches, tokens, seed, self.weights(list(by_task(batches))))
        for task, loss in losses.items():
            total, steps = self.now.get(task, (0.0, 0.0))
            self.now[task] = [total + loss, steps + 1]
        return found

    def turn(self, epoch: int) -> None:
        """Another epoch begins."""
        means = {task: total / steps for task, (total, steps) in self.now.items()}
        self.past = {task: [*self.past.get(task, [])[-1:], mean] for task, mean in means.items()}
        self.epoch, self.now = epoch, {}

    def weights(self, tasks: Sequence[str]) -> dict[str, float]:
        if any(len(self.past.get(task, ())) < 2 for task in tasks):
            return dict.fromkeys(tasks, 1.0)
        rates = torch.tensor([self.past[task][1] / max(self.past[task][0], SMALL) for task in tasks], dtype=torch.float64)
        return dict(zip(tasks, (len(tasks) * (rates / self.temperature).softmax(0)).tolist(), strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        return {"epoch": torch.tensor(self.epoch)} | kept(self.now, "now.") | kept(self.past, "past.")

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.epoch, self.now, self.past = int(state.get("epoch", 0)), restored(state, "now."), restored(state, "past.")


@dataclass
class GradNorm(Form):
    """Weights that bring the tasks' gradients to norms which let all learn at one pace (Chen et al. 2018, https://arxiv.org/abs/1711.02257, algorithm 1).

    w descends sum_k |G_k - mean(G) r_k^alpha|, G_k = |grad of w_k L_k|, r_k = (L_k / L_k(0)) / their mean, the target held constant; then they are brought to sum K.
    L_k(0) is the loss of the first step in which the task comes. We keep weights above 0, which they leave open.
    alpha   how strongly slow tasks are pulled along
    over    the last block that they share, or `all` that they share
    speed   learning rate of w
    """

    several: ClassVar[bool] = True
    at_once: ClassVar[bool] = True
    shared: ClassVar[bool] = True

    alpha: Annotated[float, Ge(0)] = 1.5
    over: Literal["last", "all"] = "last"
    speed: Positive = 0.025
    w: Numbers = field(init=False, repr=False)
    first: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.w = Numbers(self.speed, start=1.0)

    def __call__(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> Formed:
        tasks = list(by_task(batches))
        params = list((last_block if self.over == "last" else shared)(run).values())
        if len(tasks) == 1 or not params:
            return weighted(run, batches, tokens, seed, {task: self.w[task] for task in tasks})[0]
        weights, losses, norms = {task: self.w[task] for task in tasks}, Losses(), dict[str, float]()
        before = [p.grad for p in params]
        for task, found in each(run, batches, tokens, seed, weights):
            losses |= found
            norms[task], before = parted(params, before)
        self.turn(told(losses, tasks, batches[0]["ids"].device), norms)
        return Formed(by_term(losses), shown(weights))

    def holds(self, tasks: int) -> int:
        return 2 if self.over == "all" else 0

    def turn(self, losses: Mapping[str, float], norms: Mapping[str, float]) -> None:
        """Move the weights by one step."""
        for task, loss in losses.items():
            self.first.setdefault(task, [loss])
        ratios = {task: loss / max(self.first[task][0], SMALL) for task, loss in losses.items()}
        pace, norm = sum(ratios.values()) / len(ratios), sum(norms.values()) / len(norms)
        for task, found in norms.items():
            gap = found - norm * (max(ratios[task], 0.0) / max(pace, SMALL)) ** self.alpha
            self.w.move(task, math.copysign(1.0, gap) * found / self.w[task] if gap else 0.0)
        values = {task: max(held[0], 1e-3) for task, held in self.w.held.items()}
        for task, value in values.items():
            self.w[task] = value * len(values) / sum(values.values())

    def state_dict(self) -> dict[str, Tensor]:
        return {f"w.{k}": t for k, t in self.w.state_dict().items()} | kept(self.first, "first.")

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.w.held, self.first = restored(state, "w."), restored(state, "first.")


def parted(params: Sequence[nn.Parameter], before: Sequence[Tensor | None]) -> tuple[float, list[Tensor | None]]:
    """The norm, over all processes, of what these parameters' gradients have gained since they were `before`; and what they are now."""
    now = [None if p.grad is None else p.grad.clone() for p in params]
    gains = [torch.zeros_like(p) if b is None else b - (0 if a is None else a) for p, a, b in zip(params, before, now, strict=True)]
    return float(add_up(torch.cat([gain.flatten() for gain in gains])).norm()), now


@dataclass
class FAMO(Form):
    """All losses fall at one rate, by their logarithms: w_k proportional to z_k / L_k, z = softmax of what is learnt from how far each log-loss fell in the step
    (Liu et al. 2023, https://arxiv.org/abs/2306.03792, algorithm 2). A second forward pass after each step says how far, under the same dropout.

    Weights are brought to sum K (theirs: 1). Losses must be above `least`.
    speed, decay   of the Adam that moves what is learnt
    least          the lowest value that a loss can take
    """

    several: ClassVar[bool] = True
    at_once: ClassVar[bool] = True

    speed: Positive = 0.025
    decay: Annotated[float, Ge(0)] = 1e-3
    least: float = 0.0
    xi: Numbers = field(init=False, repr=False)
    seen: dict[str, float] = field(default_factory=dict, init=False, repr=False)  # this step's losses, between its two passes

    def __post_init__(self) -> None:
        self.xi = Numbers(self.speed, decay=self.decay)

    def __call__(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> Formed:
        """The weights follow from this step's own losses, so each task's gradient is weighted once it stands: two gradients are held at a time."""
        tasks, losses = list(by_task(batches)), Losses()
        params, share = list(run.parameters().values()), self.shares(tasks)
        if len(tasks) == 1:
            return Formed(by_term(formed(run, batches, tokens, seed)), {f"weight.{tasks[0]}": 1.0})
        held: list[Tensor | None] = [None] * len(params)
        self.seen, pulls = {}, dict[str, float]()
        for task, found in each(run, batches, tokens, seed):
            losses |= found
            self.seen |= self.above(told(found, [task], batches[0]["ids"].device))
            pulls[task] = share[task] / self.seen[task]
            held = [added(p, h, pulls[task]) for p, h in zip(params, held, strict=True)]
        scale = len(tasks) / sum(pulls.values())
        for p, grad in zip(params, held, strict=True):
            p.grad = None if grad is None else grad.mul_(scale)
        return Formed(by_term(losses), shown({task: pull * scale for task, pull in pulls.items()}))

    def holds(self, tasks: int) -> int:
        return 1

    @torch.no_grad()
    def after(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> None:
        tasks = list(by_task(batches))
        if len(tasks) == 1:
            return
        now = {task: self.above(told(found, [task], batches[0]["ids"].device))[task] for task, found in each(run, batches, tokens, seed)}
        share, fell = self.shares(tasks), {task: math.log(self.seen[task]) - math.log(now[task]) for task in tasks}
        mean = sum(share[task] * fell[task] for task in tasks)
        for task in tasks:
            self.xi.move(task, share[task] * (fell[task] - mean))

    def shares(self, tasks: Sequence[str]) -> dict[str, float]:
        z = torch.tensor([self.xi[task] for task in tasks], dtype=torch.float64).softmax(0).tolist()
        return dict(zip(tasks, z, strict=True))

    def above(self, losses: Mapping[str, float]) -> dict[str, float]:
        """How far losses are above the least, which is what their logarithms are of."""
        for task, loss in losses.items():
            if loss < self.least:
                raise Refusal(
                    f"`update: famo` takes logarithms of losses, and that of {task!r} is {loss:.4g}",
                    where="update.kind",
                    fix="update: uncertainty, dwa or gradnorm; or update.least below all that the loss can become",
                )
        return {task: loss - self.least + SMALL for task, loss in losses.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return self.xi.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.xi.load_state_dict(state)


def added(p: nn.Parameter, held: Tensor | None, weight: float) -> Tensor | None:
    """What is held plus the parameter's gradient, weighted, which is taken from it."""
    grad, p.grad = p.grad, None
    if grad is None:
        return held
    return grad.mul_(weight) if held is None else held.add_(grad, alpha=weight)
