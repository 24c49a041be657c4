"""What is written down of a run: its record, what it predicted, what its artifact needs to be rebuilt, and what makes it this run and no other."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

from . import machine
from .artifact import Description
from .dataset import Dataset, Part, asked
from .evaluate.evaluate import Outcome
from .evaluate.several import matrix_of, remembered
from .job import Job
from .judging import references
from .listeners import Clock, Conflicts, Evaluate
from .networks.transformer import Transformer
from .prompting.asking import final
from .recipe import Recipe
from .sources.streams import InTurn
from .sources.text.encode import Reader
from .sources.text.task import Task

READS = ("max_length", "types", "seq2seq", "template", "learn_prompt", "prompts")  # of a Reader, besides its tokenizer
SHOWN = 400  # characters of a row in predictions.jsonl


def identity(recipe: Recipe) -> dict[str, Any]:
    """The keys that decide what is trained; where it lies and how often it is saved do not."""
    return {k: v for k, v in recipe.plain().items() if k not in ("out", "checkpoint", "threads", "dtype", "kernel")}


def predictions(part: Part, after: Outcome, task: str = "") -> str:
    """One line a row that was judged: of several tasks, which, and what it is judged by; what it asked, what was expected and predicted, and its shares of the main metric."""
    expected = references(part, part.task.kind)
    lines = []
    for i, example in enumerate(part.examples):
        line = {
            **({"task": task, "metric": after.scores.main} if task else {}),
            "row": i,
            "asked": asked(example)[:SHOWN],
            "expected": expected[i],
            "predicted": after.predictions[i] if i < len(after.predictions) else None,
        }
        lines.append(json.dumps({**line, "shares": after.shares[i] if after.shares else None}, ensure_ascii=False) + "\n")
    return "".join(lines)


def description(job: Job) -> Description:
    r, reader = job.recipe, final(job)
    method = {**asdict(job.method.settled()), "kind": r.method["kind"]}  # type: ignore[call-overload]
    several = len({one.task.key for one in job.data.each.values()}) > 1
    return Description(
        asdict(r.model),
        asdict(job.data.task),
        method,
        head_of(job.net, job.data.task),
        job.net.pool,
        read_by(reader),
        job.choice.dtype,
        job.choice.kernel,
        tasks={name: asked_of(job.net, r.each().get(name, r), one) for name, one in job.data.each.items()} if several else {},
        objective=dict(r.objective) if reader.wording and not several else {},
    )


def of_task(line: str, task: str, metric: str) -> str:
    """A line of predictions.jsonl as it stands among those of several tasks."""
    return json.dumps({"task": task, "metric": metric, **json.loads(line)}, ensure_ascii=False) + "\n"


def read_by(reader: Reader) -> dict[str, Any]:
    """How texts are read, as the artifact names it."""
    texts = {k: getattr(reader, k) for k in READS}
    return texts | ({"masked": reader.masked, "wording": reader.wording.plain()} if reader.wording else {})


def head_of(net: Transformer, task: Task) -> dict[str, Any]:
    """What a head was made by, as the artifact names it; how many classes it has is known from its task."""
    if task.key not in net.heads:
        return {}
    spec: Any = net.heads[task.key].spec
    return {k: v for k, v in asdict(spec).items() if k != "classes"}


def asked_of(net: Transformer, recipe: Recipe, data: Dataset) -> dict[str, Any]:
    """One of several tasks, as the artifact names it: what is asked, its head, how its texts are read, and by what it is answered in words."""
    words = {"objective": dict(recipe.objective)} if data.reader.wording else {}
    return {"task": asdict(data.task), "head": head_of(net, data.task), "reader": read_by(data.reader), **words}


def sequence(job: Job, watch: Evaluate | None, after: Outcome | None) -> dict[str, Any]:
    """Of tasks that came one after the other: the matrix stage x task of the main metric, and what it says (several.remembered)."""
    if not (watch and after and isinstance(job.recipe.built_stream(), InTurn)):
        return {}
    names = list(job.data.parts)
    matrix, before = matrix_of(watch.history, job.run.ends, names)
    whole = {} if len(matrix) < len(names) else remembered(matrix, before)
    return {"sequence": {"tasks": names, "metric": after.scores.main, "matrix": matrix, "before": before, **whole}}


def conflicts(job: Job) -> dict[str, float]:
    """Of a run by surgery: pairs of tasks that pulled against each other, a step."""
    found = [heard.pairs / heard.steps for heard in job.listeners if isinstance(heard, Conflicts) and heard.steps]
    return {"conflicts_per_step": round(found[0], 3)} if found else {}


def record_of(job: Job, watch: Evaluate | None, after: Outcome | None, clock: Clock) -> dict[str, Any]:
    r, trains = job.recipe, job.delta.parameters()
    before = {k: v for k, v in watch.history[0].items() if k != "step"} if watch else {}
    return {
        "task": r.task,
        "model": r.model.name,
        "method": r.method["kind"],
        "objective": r.objective["kind"],
        "stream": r.stream["kind"],
        "strategy": r.strategy["kind"],
        "seed": r.seed,
        "metric": after.scores.main if after else None,
        "before": before,
        "after": {"loss": after.loss, **after.scores.values} if after else {},
        "undefined": dict(after.scores.reasons) if after else {},
        "history": watch.history if watch else [],
        "trainable_parameters": sum(p.numel() for p in trains.values()),
        "total_parameters": sum(p.numel() for p in job.net.parameters()),
        "peak_memory_bytes": machine.peak_memory(job.net.device.type),
        "train_seconds": round(clock.seconds, 3),
        "fill_seconds": round(clock.filling, 3),
        "real_tokens_per_second": round(clock.tokens / clock.seconds, 1) if clock.seconds else None,
        "steps": job.run.done,
        "last_step": dict(job.run.log[-1]) if job.run.log else {},
        "stopped": job.run.halt or "the budget is used up",
        "learning_rate": job.run.update.rate,  # type: ignore[attr-defined]
        "dtype": job.choice.dtype,
        "kernel": job.choice.kernel,
        "train_rows": sum(len(one.train.examples) for one in job.data.each.values()),
        "stages": list(job.data.parts),
        **sequence(job, watch, after),
        **conflicts(job),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "recipe": identity(r),
    }
