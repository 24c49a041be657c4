"""What only a comparison asks of a trained network: how long one prediction takes, and what it forgot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core import Batch, Ragged
from ..job import Job
from ..networks.transformer import Transformer
from ..sources.table import Table
from ..timing import TURNS, lone_rows, timed

TEMPERATURE = 0.05  # of the contrast between halves, as sentence encoders are trained with


@dataclass
class Measures:
    """Asked by `train.run` when an arm is trained. What does not differ between arms is measured once: the base's loss on the general text, and
    how long a prediction takes of arms that differ in their training alone.
    """

    general: Sequence[str]
    base: dict[str, tuple[str, float]] = field(default_factory=dict)
    times: dict[str, tuple[float, float]] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, job: Job) -> Mapping[str, Any]:
        was = job.net.training
        job.net.eval()
        shape = str((job.recipe.model, job.recipe.head.pool, job.choice.dtype, job.choice.kernel))
        arm = shape + str((job.method, job.recipe.head))
        if shape not in self.base:
            with job.delta.absent():
                self.base[shape] = self.asked(job)
        if arm not in self.times:
            self.times[arm] = latency(job)
        (kind, before), (base, tuned) = self.base[shape], self.times[arm]
        after = before if rests(job) else self.asked(job)[1]
        job.net.train(was)
        return {
            "latency_ms": tuned,
            "base_latency_ms": base,
            "general": {"kind": kind, "before": before, "after": after},
            "merges": job.method.merges,
        }

    def asked(self, job: Job) -> tuple[str, float]:
        return general_loss(job.net, job.data.reader.tokenizer, self.general)


def rests(job: Job) -> bool:
    """Whether the trunk is the base's, and with it all that a general text is asked about."""
    return job.delta.lowest == job.net.anatomy.depth and job.data.task.name != "generate"


def latency(job: Job) -> tuple[float, float]:
    """Milliseconds of one prediction, one row at a time, of the base and of the tuned network: medians over rows of all lengths.

    The two take turns, and a row counts with its faster turn: what else the machine does in between slows single turns.
    """
    part = job.data.eval or job.data.train
    table = Table(part.encoded.columns, job.data.task.key, device=job.net.device)
    batches = lone_rows(table)
    say = {"generate": job.net.label_logp, "embed": job.net.pooled}.get(job.data.task.name, job.net.logits)
    turns: dict[bool, list[list[float]]] = {True: [], False: []}
    for _ in range(TURNS):
        for base, took in turns.items():
            with job.delta.absent() if base else nullcontext():
                took.append([timed(say, batch, job.net.device.type == "cuda") for batch in batches])
    base, tuned = (1000 * statistics.median(map(min, zip(*took[1:], strict=True))) for took in turns.values())
    return base, tuned


def general_loss(net: Transformer, tokenizer: Any, passages: Sequence[str]) -> tuple[str, float]:
    """The loss on texts that have nothing to do with the task.

    A network that writes: negative log-likelihood a token, in nats. One that only reads has no such loss; it is asked which second half of
    a passage belongs to which first half, by the cosine of pooled states over `TEMPERATURE`, cross-entropy both ways (InfoNCE, in nats).
    """
    if net.anatomy.vocabulary is not None or writes(net):
        return "next token", next_token(net, tokenizer, passages)
    first, second = zip(*(split(p) for p in passages), strict=True)
    a, b = (torch.nn.functional.normalize(pooled(net, tokenizer, side), dim=-1) for side in (first, second))
    scores = a @ b.T / TEMPERATURE
    target = torch.arange(len(a), device=a.device)
    loss = torch.nn.functional.cross_entropy(scores, target) + torch.nn.functional.cross_entropy(scores.T, target)
    return "halves of a passage", float(loss) / 2


def writes(net: Transformer) -> bool:
    """Whether the network was built with its vocabulary."""
    return net.model.get_output_embeddings() is not None


def split(passage: str) -> tuple[str, str]:
    """At the end of the sentence nearest the middle, else at the middle."""
    ends = [i + 1 for i, c in enumerate(passage[:-1]) if c in ".!?。！？"]
    middle = min(ends, key=lambda i: abs(i - len(passage) / 2)) if ends else len(passage) // 2
    return passage[:middle].strip(), passage[middle:].strip()


def encoded(tokenizer: Any, texts: Sequence[str], limit: int) -> Ragged:
    rows = tokenizer(list(texts), truncation=True, max_length=limit, verbose=False)["input_ids"]
    return Ragged(torch.tensor([i for row in rows for i in row]), tuple(len(row) for row in rows))


def room(net: Transformer) -> int:
    """Tokens of a passage, with the positions that a method takes left free."""
    taken = 0 if net.prompt_rows() is None else len(net.prompt_rows())  # type: ignore[arg-type]
    return min(128, (net.anatomy.positions or 1 << 20) - taken)


def pooled(net: Transformer, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    ids = encoded(tokenizer, texts, room(net))
    return net.pooled(Batch({"ids": ids}).to(net.device))


def next_token(net: Transformer, tokenizer: Any, passages: Sequence[str]) -> float:
    if net.anatomy.kind == "seq2seq":
        first, second = zip(*(split(p) for p in passages), strict=True)
        target = encoded(tokenizer, second, room(net))
        batch = Batch({"ids": encoded(tokenizer, first, room(net)), "target": target, "label": target})
    else:
        ids = encoded(tokenizer, passages, room(net))
        at = Ragged(torch.cat([torch.arange(n - 1) for n in ids.lengths]), tuple(n - 1 for n in ids.lengths))
        label = Ragged(torch.cat([row[1:] for row in ids.rows()]), at.lengths)
        batch = Batch({"ids": ids, "at": at, "label": label})
    logp = net.label_logp(batch.to(net.device))
    return -float(logp.double().mean())
