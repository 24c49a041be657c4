"""Gradient descent: AdamW around a way of forming the gradient of a step. The ordinary way: every loss is a sum, divided once by the step's units."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..core import Batch, Run, under
from ..errors import Diverged
from ..parallel import rank, sum_gradients, world

Schedule = Literal["linear", "cosine", "constant"]
Losses = dict[tuple[str, str], Tensor]  # (task, term) -> loss over the units of the step, of this process


class Formed(NamedTuple):
    """What is known once a step's gradient stands: its losses by term, and what else its record should tell."""

    losses: dict[str, Tensor]
    said: Mapping[str, float] = {}


class Form(ABC):
    """How the gradient of a step is formed: a row of UPDATES, whose fields are the recipe's options.

    `state_dict` and `load_state_dict` carry what it must remember over an interruption.

    several  it weighs tasks against each other, and says nothing of one
    at_once  a step must hold them all
    shared   it looks at the gradients of what they share
    """

    several: ClassVar[bool] = False
    at_once: ClassVar[bool] = False
    shared: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> Formed:
        """Leave this process' gradients in `.grad`, in passes of at most so many tokens. What is told is never weighted."""

    def holds(self, tasks: int) -> int:
        """How many gradients wait, at most, beside the one that descends; what they weigh is foreseen by it."""
        return 0

    def after(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> None:
        """Once the optimiser has moved, with all gradients gone."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""


@dataclass(frozen=True)
class Summed(Form):
    """The sum of all losses. For objectives that look at a group of rows at a time."""

    def __call__(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> Formed:
        return Formed(by_term(summed(run, batches, tokens, seed)))


@dataclass
class Descend:
    """AdamW (Loshchilov & Hutter 2019) with warm-up, decay and clipping.

    rate     peak learning rate; each parameter's is this times the method's pace
    warmup   share of a stage's steps over which the rate rises from 0
    decay    weight decay, on matrices only
    clip     largest norm of the whole gradient; 0: no clipping
    micro    tokens a forward pass at most; a larger batch is cut in pieces, which changes nothing but memory
    form     how the gradient is formed: a row of UPDATES
    """

    rate: float
    schedule: Schedule = "linear"
    warmup: float = 0.06
    decay: float = 0.01
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    micro: int = 16384
    form: Form = field(default_factory=Summed, repr=False)
    optimizer: torch.optim.Optimizer | None = field(default=None, repr=False)
    names: list[str] = field(default_factory=list, repr=False)

    def step(self, run: Run, micro: Sequence[Batch]) -> Mapping[str, float]:
        optimizer = self.optimizer or self.prepare(run)
        run.net.rest_below(run.delta.floor)
        seed = (run.seed * 1_000_003 + run.done + rank() * 0x9E37_79B1) & 0x7FFF_FFFF  # dropout is a function of (seed, step): nothing to store
        sums, said = self.form(run, micro, self.micro, seed)
        params = [p for group in optimizer.param_groups for p in group["params"]]
        record = sum_gradients(params, sums, sorted(units(run, micro)))
        norm = nn.utils.clip_grad_norm_(params, self.clip or math.inf)
        values = {k: float(v) for k, v in record.items()} | {"norm": float(norm)}
        rate = self.rate * self.factor(*run.within)
        self.guard(run, values, rate, micro)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["pace"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.form.after(run, micro, self.micro, seed)
        counted = {"rate": rate, "tokens": sum(len(b["ids"]) for b in micro), "rows": sum(len(b) for b in micro)}
        return {"loss": sum(values[k] for k in record), **values, **counted, **said}

    def factor(self, progress: float, step: float) -> float:
        """Of the peak rate, at this share of the stage; `step` is what one more step adds to it."""
        if progress < self.warmup:
            return min(1.0, (progress + step) / self.warmup)
        left = (1 - progress) / max(step, 1 - self.warmup)
        return {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[self.schedule]

    def guard(self, run: Run, values: Mapping[str, float], rate: float, micro: Sequence[Batch]) -> None:
        """A loss or gradient that is no number stops the run before the update, with the weights still good."""
        if all(math.isfinite(v) for v in values.values()):
            return
        rows = [i for b in micro if "row" in b for i in b["row"].tolist()]
        what = ", ".join(f"{k} is {v}" for k, v in values.items() if not math.isfinite(v))
        worst = [n for n, p in run.parameters().items() if p.grad is not None and not p.grad.isfinite().all()]
        for p in run.parameters().values():
            p.grad = None
        raise Diverged(
            f"step {run.done + 1}: {what}",
            why=f"learning rate {rate:.2e}; rows {rows[:16]}{' ...' if len(rows) > 16 else ''}" + (f"; first in {worst[0]}" if worst else ""),
            fix=f"a lower learning rate, such as update.rate={self.rate / 10:.0e}; the last checkpoint is from before this step",
        )

    def prepare(self, run: Run) -> torch.optim.Optimizer:
        """One group a (pace, decay). The fused kernel updates all tensors of a group in one pass."""
        groups: dict[tuple[float, float], list[str]] = defaultdict(list)
        params = run.parameters()
        for name, p in params.items():
            groups[run.delta.pace.get(name, 1.0), self.decay if p.dim() > 1 else 0.0].append(name)
        self.names = [n for group in groups.values() for n in group]
        spec = [{"params": [params[n] for n in names], "pace": pace, "weight_decay": decay} for (pace, decay), names in groups.items()]
        self.optimizer = torch.optim.AdamW(spec, lr=self.rate, betas=self.betas, fused=True)
        return self.optimizer

    def state_dict(self) -> dict[str, Tensor]:
        """`moment.parameter` -> tensor, and `form.` what the form remembers; ready for safetensors."""
        if self.optimizer is None:
            return {}
        stored = self.optimizer.state_dict()["state"]
        moments = {f"{key}.{self.names[i]}": value for i, entry in stored.items() for key, value in entry.items()}
        return moments | {f"form.{key}": value for key, value in self.form.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        assert self.optimizer is not None, "prepare(run) first"
        entries: dict[int, dict[str, Tensor]] = defaultdict(dict)
        index = {n: i for i, n in enumerate(self.names)}
        for key, value in state.items():
            moment, name = key.split(".", 1)
            if moment != "form":
                entries[index[name]][moment] = value
        self.form.load_state_dict(under(state, "form."))
        self.optimizer.load_state_dict({"state": dict(entries), "param_groups": self.optimizer.state_dict()["param_groups"]})


EVEN: Mapping[str, float] = {}  # each task's loss as it is


def summed(run: Run, batches: Sequence[Batch], tokens: int, seed: int, total: Mapping[str, float] | None = None, weights: Mapping[str, float] = EVEN) -> Losses:
    """Backward of every piece's sums over the units of the whole step: cutting changes nothing.

    total    units of the step, where these batches are a part of it
    weights  of tasks, beside the objective's own, on the gradient alone; 1 where a task is not named
    Without gradients (`torch.no_grad`) it only says the losses, of the same dropout.
    """
    torch.manual_seed(seed)
    total, sums = units(run, batches) if total is None else total, Losses()
    for piece in (piece for batch in batches for piece in pieces(share(batch), tokens)):
        losses = {k: v / (total[k] or 1) for k, v in run.objective(run.net, piece).items()}
        if torch.is_grad_enabled():
            (torch.stack(list(losses.values())).sum() * run.objective.of(piece.task).weight * weights.get(piece.task, 1.0)).backward()
        for k, v in losses.items():
            key = piece.task, k
            sums[key] = sums[key] + v.detach() if key in sums else v.detach()
    return sums


def by_term(losses: Losses) -> dict[str, Tensor]:
    """Added up over the tasks that have a term of this name."""
    sums: dict[str, Tensor] = {}
    for (_, term), loss in losses.items():
        sums[term] = sums[term] + loss if term in sums else loss
    return sums


def units(run: Run, batches: Sequence[Batch]) -> Counter:
    """Units a term over the whole step, known before any backward pass: what makes accumulation exact."""
    total: Counter = Counter()
    for batch in batches:
        total.update(run.objective.count(batch))
    return total


def share(batch: Batch) -> Batch:
    """The rows of this process: every so-manieth group, so that all have rows of like length."""
    return batch if world() == 1 else batch.pick(own_rows(batch))


def own_rows(batch: Batch) -> list[int]:
    """Which rows of the batch are this process' to compute."""
    return [i for group in batch.groups()[rank() :: world()] for i in group]


def pieces(batch: Batch, tokens: int) -> Iterator[Batch]:
    """The batch in pieces of at most `tokens` tokens (a longer group stays whole); none where it has no rows."""
    lengths, start, held = batch.ragged("ids").lengths, 0, 0
    for group in batch.groups():
        n = sum(lengths[i] for i in group)
        if held and held + n > tokens:
            yield batch.take(start, group.start)
            start, held = group.start, 0
        held += n
    if held:
        yield batch if start == 0 else batch.take(start, len(lengths))
