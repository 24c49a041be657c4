"""Everything that can be known about a run before it begins: the data, the tokens, what trains, and the memory it will take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from .core import Ragged
from .dataset import Dataset, Part, read_data, renderings, row_hash
from .job import Job, assemble, load_base
from .progress import Reporter
from .recipe import Recipe


@dataclass(frozen=True)
class Report:
    """`facts` for machines, `warnings` for the user: nothing here stops a run."""

    facts: dict[str, Any]
    warnings: list[str]


def check(recipe: Recipe, reporter: Reporter) -> Report:
    """Reads the data, loads the model, attaches the method; trains nothing. Raises Refusal where `run` would."""
    data = read_data(recipe)
    parts = [part for part in (data.train, data.eval, data.test) if part]
    job = assemble(
        replace(recipe, dtype="fp32" if recipe.dtype == "auto" else recipe.dtype, kernel="matmul"), data, load_base(recipe, data), Reporter(quiet=True)
    )
    facts = {
        "format": data.train.format.name,
        "rows": {part.name: len(part.examples) for part in parts},
        "first_rows": renderings(data),
        "labels": {part.name: labels(part) for part in parts} if data.task.labels else {},
        "tokens": {part.name: tokens(part, data) for part in parts},
        "overlap": overlap(data),
        "steps": job.run.total,
        "learning_rate": job.run.update.rate,  # type: ignore[attr-defined]
        "trainable_parameters": sum(p.numel() for p in job.delta.parameters().values()),
        "total_parameters": sum(p.numel() for p in job.net.parameters()),
        "frozen_blocks": f"{job.delta.lowest} of {job.net.anatomy.depth}",
        "packed": job.net.packs,
        "predicted_peak_memory_bytes": predicted_memory(job),
        "notes": job.notes,
    }
    return Report(facts, warnings(facts, recipe))


def labels(part: Part) -> dict[str, int]:
    """How often each label occurs; for tags, each kind of entity."""
    found: Counter[str] = Counter()
    for example in part.examples:
        names = getattr(example, "labels", None) or [t[2:] for t in getattr(example, "tags", ()) if t.startswith("B-")]
        found.update(names)
    return dict(found.most_common())


def tokens(part: Part, data: Dataset) -> dict[str, Any]:
    lengths = sorted(part.encoded.lengths)
    cut = [n for n in lengths if n > data.reader.max_length]
    ids = part.encoded.columns["ids"]
    assert isinstance(ids, Ragged)
    quantile = lambda q: lengths[min(len(lengths) - 1, int(q * len(lengths)))]
    return {
        "per_epoch": sum(ids.lengths),
        "median": quantile(0.5),
        "p95": quantile(0.95),
        "longest": lengths[-1],
        "max_length": data.reader.max_length,
        "rows_cut": len(cut),
        "tokens_cut": sum(n - data.reader.max_length for n in cut),
    }


def overlap(data: Dataset) -> dict[str, int]:
    """Rows of eval and test that also stand in train, and rows that stand in train more than once."""
    seen = Counter(row_hash(e) for e in data.train.examples)
    found = {"repeated_in_train": sum(n - 1 for n in seen.values())}
    for part in (data.eval, data.test):
        if part:
            found[f"{part.name}_in_train"] = sum(row_hash(e) in seen for e in part.examples)
    return found


def predicted_memory(job: Job) -> int:
    """Bytes. What is resident now, gradients and AdamW's two moments of what trains, and the activations of the largest step.

    Activations a token: 34 values of the model's width and 3 of the feed-forward's a block above the floor (measured on MiniLM, docs/LOG.md).
    """
    from .machine import resident_memory

    net, delta, recipe = job.net, job.delta, job.recipe
    trains = sum(p.numel() for p in delta.parameters().values())
    ids = job.data.train.encoded.columns["ids"]
    assert isinstance(ids, Ragged)
    heaviest = min(recipe.update.micro, sum(sorted(ids.lengths)[-recipe.update.batch :]))
    blocks = 1 if recipe.recompute else net.anatomy.depth - delta.lowest
    value = 2 if job.choice.dtype == "bf16" else 4
    return round(resident_memory() + 12 * trains + heaviest * blocks * net.anatomy.width * 46 * value)


def warnings(facts: dict[str, Any], recipe: Recipe) -> list[str]:
    found = []
    for name, count in facts["overlap"].items():
        if count:
            found.append(
                f"{count} rows of {name.split('_')[0]} also stand in train" if name != "repeated_in_train" else f"{count} rows stand in train more than once"
            )
    for name, t in facts["tokens"].items():
        if t["rows_cut"]:
            found.append(f"{name}: {t['rows_cut']} rows are longer than max_length {t['max_length']}; {t['tokens_cut']} tokens are cut off")
    balance = facts["labels"].get("train", {})
    if balance and recipe.task == "classify":
        common, rare = max(balance.values()), min(balance.values())
        if common >= 10 * rare:
            found.append(f"labels are uneven: {common} rows of one, {rare} of another; look at macro_f1, not accuracy")
        if len(balance) == 1:
            found.append("every training row has the same label: there is nothing to learn")
    if not recipe.data.eval:
        found.append("no data.eval: the result cannot be judged; data.eval=0.1 holds out a tenth")
    return found
