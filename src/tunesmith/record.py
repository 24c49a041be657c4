"""What is written down of a run: its record, what it predicted, what its artifact needs to be rebuilt, and what makes it this run and no other."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

from . import machine
from .artifact import Description
from .dataset import Part, asked
from .evaluate.evaluate import Outcome
from .job import Job, references
from .listeners import Clock, Evaluate
from .prompting.asking import final
from .recipe import Recipe
from .shared import head_spec

SHOWN = 400  # characters of a row in predictions.jsonl


def identity(recipe: Recipe) -> dict[str, Any]:
    """The keys that decide what is trained; where it lies and how often it is saved do not."""
    return {k: v for k, v in recipe.plain().items() if k not in ("out", "checkpoint", "threads", "dtype", "kernel")}


def predictions(part: Part, after: Outcome) -> str:
    """One line a row that was judged: what it asked, what was expected and predicted, and its shares of the main metric."""
    expected = references(part, part.task.kind)
    lines = []
    for i, example in enumerate(part.examples):
        line = {"row": i, "asked": asked(example)[:SHOWN], "expected": expected[i], "predicted": after.predictions[i] if i < len(after.predictions) else None}
        lines.append(json.dumps({**line, "shares": after.shares[i] if after.shares else None}, ensure_ascii=False) + "\n")
    return "".join(lines)


def description(job: Job) -> Description:
    r, reader = job.recipe, final(job)
    texts = {k: getattr(reader, k) for k in ("max_length", "types", "seq2seq", "template", "learn_prompt", "prompts")}
    texts |= {"masked": reader.masked, "wording": reader.wording.plain()} if reader.wording else {}
    head = {k: v for k, v in asdict(head_spec(r, job.data)).items() if k != "classes"}
    method = {**asdict(job.method), "kind": r.method["kind"]}  # type: ignore[call-overload]
    return Description(
        asdict(r.model),
        asdict(job.data.task),
        method,
        head,
        job.net.pool,
        texts,
        job.choice.dtype,
        job.choice.kernel,
        objective=dict(r.objective) if reader.wording else {},
    )


def record_of(job: Job, watch: Evaluate | None, after: Outcome | None, clock: Clock) -> dict[str, Any]:
    r, trains = job.recipe, job.delta.parameters()
    before = {k: v for k, v in watch.history[0].items() if k != "step"} if watch else {}
    return {
        "task": r.task,
        "model": r.model.name,
        "method": r.method["kind"],
        "objective": r.objective["kind"],
        "stream": r.stream["kind"],
        "seed": r.seed,
        "metric": after.scores.main if after else None,
        "before": before,
        "after": {"loss": after.loss, **after.scores.values} if after else {},
        "undefined": dict(after.scores.reasons) if after else {},
        "history": watch.history if watch else [],
        "trainable_parameters": sum(p.numel() for p in trains.values()),
        "total_parameters": sum(p.numel() for p in job.net.parameters()),
        "peak_memory_bytes": machine.peak_memory(),
        "train_seconds": round(clock.seconds, 3),
        "fill_seconds": round(clock.filling, 3),
        "real_tokens_per_second": round(clock.tokens / clock.seconds, 1) if clock.seconds else None,
        "steps": job.run.done,
        "last_step": dict(job.run.log[-1]) if job.run.log else {},
        "stopped": job.run.halt or "the budget is used up",
        "learning_rate": job.run.update.rate,  # type: ignore[attr-defined]
        "dtype": job.choice.dtype,
        "kernel": job.choice.kernel,
        "train_rows": len(job.data.train.examples),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "recipe": identity(r),
    }
