"""What deployment asks of a distillation: parameters, bytes, time of a prediction and quality, of the student and of its teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..core import Batch
from ..dataset import Part
from ..evaluate.evaluate import Probe
from ..sources.answers import Answers
from ..sources.table import Table
from ..timing import latency

if TYPE_CHECKING:
    from ..job import Job
    from .ask import Question
    from .teacher import Teacher


def size(module: nn.Module, width: int) -> dict[str, int]:
    """bytes: of the parameters at `width` bytes a number, as both would be deployed in the dtype in which they compute."""
    parameters = sum(p.numel() for p in module.parameters())
    return {"parameters": parameters, "bytes": parameters * width}


def about(question: Question, teacher: Teacher) -> dict[str, Any]:
    """Of a teacher that is loaded."""
    from ..judging import references
    from .ask import eval_hash

    data, reader = question.data, question.who.reader
    rows, table = data.eval or data.train, lambda part: Table(own(part, question), data.task.name, device=next(teacher.parameters()).device)
    found = {"name": question.who.name, **size(teacher, teacher.compute.itemsize), "latency_ms": latency(saying(teacher, data.task.name), table(rows))}
    if data.eval:
        probe = Probe("teacher", table(data.eval).once, data.eval.task.kind, question.who.labels, references(data.eval, data.eval.task.kind))
        outcome = probe.ask(teacher)  # type: ignore[arg-type]
        found["scores"] = {"loss": outcome.loss, **{k: v for k, v in outcome.scores.values.items() if v is not None}}
    return {**found, "reads": reader.max_length, "eval": eval_hash(data)}


def own(part: Part, question: Question) -> Mapping[str, Any]:
    """The rows as the teacher reads them, labels in its order."""
    if question.data.task.name == "generate" and question.learn.align is None:
        return part.encoded.columns
    return question.who.reader.encode(list(part.examples), replace(part.task, labels=question.who.labels)).columns


def saying(net: Any, task: str) -> Callable[[Batch], Tensor]:
    return net.label_logp if task == "generate" else net.logits


def deployment(job: Job, scores: Mapping[str, Any]) -> dict[str, Any]:
    """`teacher` and `student` for the record of a run that had a teacher; nothing for others."""
    from .written import Written

    source = job.run.stream[0].train
    if not isinstance(source, Answers | Written):
        return {}
    source.fill(job.net)
    part, was = job.data.eval or job.data.train, job.net.training
    table = Table(part.encoded.columns, job.data.task.key, device=job.net.device)
    job.net.eval()
    student = {
        "name": job.recipe.model.name,
        **size(job.net, job.net.compute.itemsize),
        "latency_ms": latency(saying(job.net, job.data.task.name), table),
        "scores": scores,
    }
    job.net.train(was)
    hidden = ("eval", "reads")
    return {"teacher": {k: v for k, v in source.about.items() if k not in hidden}, "student": student}
