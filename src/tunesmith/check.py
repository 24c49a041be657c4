"""Everything that can be known about a run before it begins: the data, the tokens, what trains, and the memory it will take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from . import machine
from .advice import foresee
from .advice.rehearsal import rehearse
from .core import Ragged
from .curriculum import read_all
from .dataset import Dataset, Part, renderings, row_hash
from .job import assemble
from .progress import Reporter
from .recipe import Recipe
from .shared import Shared


@dataclass(frozen=True)
class Report:
    """`facts` for machines, `warnings` for the user: nothing here stops a run."""

    facts: dict[str, Any]
    warnings: list[str]


def check(recipe: Recipe, reporter: Reporter) -> Report:
    """Reads the data, loads the model, attaches the method; trains nothing. Raises Refusal where `run` would."""
    data = read_all(recipe)
    resident = machine.resident_memory()
    parts = {named(name, part, data): (part, one) for name, one in data.each.items() for part in (one.train, one.eval, one.test) if part}
    needed = foresee.memory(rehearse(recipe, data), resident)
    job = assemble(
        replace(recipe, dtype="fp32" if recipe.dtype == "auto" else recipe.dtype, kernel="matmul"), data, Shared().dressed(recipe, data), Reporter(quiet=True)
    )
    facts = {
        "format": data.train.format.name,
        "rows": {name: len(part.examples) for name, (part, _) in parts.items()},
        "first_rows": [line for one in data.each.values() for line in renderings(one)],
        "labels": {name: labels(part) for name, (part, one) in parts.items() if one.task.labels},
        "tokens": {name: tokens(part, one) for name, (part, one) in parts.items()},
        "overlap": {named(name, k, data): n for name, one in data.each.items() for k, n in overlap(one).items()},
        "steps": job.run.total,
        "learning_rate": job.run.update.rate,  # type: ignore[attr-defined]
        "trainable_parameters": sum(p.numel() for p in job.delta.parameters().values()),
        "total_parameters": sum(p.numel() for p in job.net.parameters()),
        "frozen_blocks": f"{job.delta.lowest} of {job.net.anatomy.depth}",
        "packed": job.net.packs,
        "predicted_peak_memory_bytes": needed,
        "notes": job.notes,
    }
    return Report(facts, warnings(facts, recipe))


def named(task: str, part: Part | str, data: Dataset) -> str:
    """Of several tasks, with the task before it."""
    return (f"{task} " if data.parts else "") + (part if isinstance(part, str) else part.name)


def labels(part: Part) -> dict[str, int]:
    """How often each label occurs; for tags, each kind of entity."""
    found: Counter[str] = Counter()
    for example in part.examples:
        own = getattr(example, "label", None)
        names = getattr(example, "labels", None) or ([own] if own else None) or [t[2:] for t in getattr(example, "tags", ()) if t.startswith("B-")]
        found.update(names)
    return dict(found.most_common())


def tokens(part: Part, data: Dataset) -> dict[str, Any]:
    lengths = sorted(part.encoded.lengths)
    cut = [n for n in lengths if n > data.reader.max_length]
    quantile = lambda q: lengths[min(len(lengths) - 1, int(q * len(lengths)))]
    return {
        "per_epoch": sum(lengths_of(part)),
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


def lengths_of(part: Part) -> tuple[int, ...]:
    ids = part.encoded.columns["ids"]
    assert isinstance(ids, Ragged)
    return ids.lengths


def warnings(facts: dict[str, Any], recipe: Recipe) -> list[str]:
    found = []
    for name, count in facts["overlap"].items():
        if count:
            found.append(
                f"{count} rows of {name.removesuffix('_in_train')} also stand in train"
                if not name.endswith("repeated_in_train")
                else f"{name.removesuffix('repeated_in_train')}{count} rows stand in train more than once"
            )
    for name, t in facts["tokens"].items():
        if t["rows_cut"]:
            found.append(f"{name}: {t['rows_cut']} rows are longer than max_length {t['max_length']}; {t['tokens_cut']} tokens are cut off")
    for name, balance in facts["labels"].items():
        if not name.endswith("train") or recipe.task != "classify":
            continue
        common, rare = max(balance.values()), min(balance.values())
        if common >= 10 * rare:
            found.append(f"labels are uneven: {common} rows of one, {rare} of another; look at macro_f1, not accuracy")
        if len(balance) == 1:
            found.append("every training row has the same label: there is nothing to learn")
    if not any(one.data.eval for one in recipe.each().values()):
        found.append("no data.eval: the result cannot be judged; data.eval=0.1 holds out a tenth")
    return found
