"""What costs no training: every comparison has these arms, so that a method is never better than nothing by not having asked.

All but the untuned model are linear heads on the frozen, pooled (for tags: token) states of the base, written into the network's own head, so that
they are judged through the same door as everything else:

majority           the bias alone: log frequencies of the labels, the mean of the scores
nearest centroid   Snell et al. 2017, eq. 8: logits 2 c_k x - |c_k|^2, c_k the mean state of class k
linear probe       logistic regression (scores: ridge), its penalty by cross-validation on the training rows (Alain & Bengio 2016)
untuned            for texts to embed and to write: the model as published, and, to write, with examples from the training rows before each prompt (Brown et al. 2020)
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ..checkpoint import write_file
from ..dataset import Dataset, Part
from ..errors import Refusal
from ..evaluate.evaluate import Outcome
from ..job import Job, assemble
from ..judging import probe_of
from ..objectives import OBJECTIVES
from ..progress import Reporter
from ..recipe import Recipe
from ..record import identity, of_task, predictions
from ..shared import Shared
from ..sources.table import Table
from ..sources.text.examples import Dialogue
from ..train import Result
from .logistic import chosen, fitted

UNITS = 20_000  # rows, or tokens with a tag, that a probe learns from at most
SHOTS = 4
OF_KIND = {  # kinds without a label a row
    "generate": ["untuned", f"untuned, {SHOTS} examples"],
    "reward": [],
    **{kind: ["untuned"] for kind in ("preferred", "judged", "pairs", "similar", "grouped", "texts")},
}
Fit = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # states (n, d), labels, classes -> weight (c, d), bias (c)


# ------------------------------------------------------------------------------------------------ linear heads


def majority(kind: str) -> Fit:
    def fit(x: np.ndarray, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
        if kind == "score":
            return np.zeros((1, x.shape[1])), np.array([y.mean()])
        if kind == "multi":
            share = np.clip(y.mean(0), 1e-6, 1 - 1e-6)
            return np.zeros((classes, x.shape[1])), np.log(share / (1 - share))
        return np.zeros((classes, x.shape[1])), np.log(np.maximum(np.bincount(y, minlength=classes), 0.5) / len(y))

    return fit


def centroid(x: np.ndarray, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A class without a row is infinitely far away."""
    means = np.stack([x[y == k].mean(0) if (y == k).any() else np.zeros(x.shape[1]) for k in range(classes)])
    empty = np.array([not (y == k).any() for k in range(classes)])
    return 2 * means, -(means**2).sum(1) - np.where(empty, 1e9, 0)


def probe(kind: str) -> Fit:
    return {"score": ridge, "multi": several}.get(kind, logistic)


def ridge(x: np.ndarray, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import RidgeCV

    found: Any = RidgeCV(alphas=np.logspace(-3, 3, 13)).fit(x, y)
    return np.reshape(found.coef_, (1, -1)), np.reshape(found.intercept_, 1)


def logistic(x: np.ndarray, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Softmax regression on standardised states; classes that never occur get a bias that no state outweighs."""
    centre, scale = x.mean(0), x.std(0) + 1e-6
    seen, codes = np.unique(y, return_inverse=True)
    if len(seen) == 1:
        return majority("single")(x, y, classes)
    z = (x - centre) / scale
    rows, offsets = fitted(z, codes, len(seen), chosen(z, codes, len(seen)))
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -1e9)
    weight[seen] = rows / scale
    bias[seen] = offsets - (rows / scale) @ centre
    return weight, bias


def several(x: np.ndarray, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """One regression a label, as of two classes."""
    fitted = [logistic(x, y[:, k].astype(int), 2) for k in range(classes)]
    return np.stack([w[1] - w[0] for w, _ in fitted]), np.array([b[1] - b[0] for _, b in fitted])


# ------------------------------------------------------------------------------------------------ arms


def baselines(recipe: Recipe, shared: Shared, reporter: Reporter) -> list[Result]:
    """All that make sense for the task; those that lie finished in the folder are taken from there."""
    data = shared.data(plain(recipe))
    if len({one.task.key for one in data.each.values()}) > 1:
        return []  # there is no head that all tasks share
    names = OF_KIND.get(data.task.kind, ["majority", "nearest centroid", "linear probe"])
    names = [name for name in names if not (name == "nearest centroid" and data.task.kind in ("score", "multi"))]
    wanted = wanted_of(recipe)
    found = {name: there for name in names if (there := finished(folder_for(recipe, name), wanted))}
    if missing := [name for name in names if name not in found]:
        reporter.say(f"baselines: {', '.join(missing)}")
        asked = texts_to_write if data.task.outputs == 0 else linear_heads
        for name, record, lines in asked(plain(recipe), data, shared, reporter, missing):
            found[name] = left(folder_for(recipe, name), {**record, "recipe": wanted}, lines)
    return [found[name] for name in names if name in found]


def plain(recipe: Recipe) -> Recipe:
    """Rows as they are, not asked about in words."""
    return replace(recipe, method={"kind": "head"}, objective={"kind": "supervised"}) if OBJECTIVES[recipe.objective["kind"]].rows else recipe


def folder_for(recipe: Recipe, name: str) -> Path:
    """A baseline has no seed but that of its rows."""
    folder = recipe.folder / "arms" / name.replace(", ", "-").replace(" ", "-")
    return folder / f"seed-{recipe.seed}" if recipe.built_stream().draws else folder


def wanted_of(recipe: Recipe) -> dict[str, Any]:
    """By what a baseline that lies in the folder is known to be the one that is asked for."""
    seed = recipe.seed if recipe.built_stream().draws else 0
    return identity(replace(recipe, method={"kind": "head"}, budget=type(recipe.budget)(), seed=seed))


def finished(folder: Path, wanted: Mapping[str, Any]) -> Result | None:
    try:
        record = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    return Result(folder, record) if record["recipe"] == wanted else None


def left(folder: Path, record: dict[str, Any], lines: str) -> Result:
    write_file(folder / "predictions.jsonl", lines.encode())
    write_file(folder / "result.json", json.dumps(record, indent=1, ensure_ascii=False).encode())
    return Result(folder, record)


Told = Iterator[tuple[str, dict[str, Any], str]]  # name, record, predictions


def linear_heads(recipe: Recipe, data: Dataset, shared: Shared, reporter: Reporter, names: list[str]) -> Told:
    at_once = replace(recipe, stream={"kind": "single"}, strategy={"kind": "naive"}) if data.parts else recipe
    bare = replace(at_once, method={"kind": "head"}, head=replace(recipe.head, kind="linear"), objective={"kind": "supervised"})
    parts, data = data.parts, replace(data, parts={})
    with shared.lent(bare, data) as net:
        job = assemble(bare, data, net, reporter, shared)
        began = time.perf_counter()
        x, y = states(job)
        reading = time.perf_counter() - began
        head: Any = net.heads[data.task.key]
        kind, outputs = data.task.kind, data.task.outputs
        fits: dict[str, Fit] = {"majority": majority(kind), "nearest centroid": centroid, "linear probe": probe(kind)}
        for name in names:
            began = time.perf_counter()
            head.say(*map(torch.from_numpy, fits[name](x, y, outputs)))
            seconds = time.perf_counter() - began + (0 if name == "majority" else reading)
            trained = 0 if name == "majority" else outputs * (x.shape[1] + 1)
            yield told(name, job, job.probe.ask(net), seconds, trained, parts)  # type: ignore[union-attr]
        if shared.keeps:
            job.delta.detach()


def states(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Frozen states and labels of the training rows (for tags: labelled tokens), at most `UNITS`, evenly chosen."""
    source: Any = job.run.stream[0].train
    xs, ys = [], []
    with torch.no_grad():
        for batch in source.once(job.net):
            rows = job.net.states(batch).values[batch.labelled()] if "at" in batch else job.net.pooled(batch)
            label = batch["label"]
            known = (
                ~label.isnan() if label.dim() == 1 and label.is_floating_point() else (label if label.dim() == 1 else label[:, 0]) >= 0
            )  # rows may be for a teacher to label
            xs.append(rows.float()[known].cpu())
            ys.append(label[known].cpu())
    x, y = torch.cat(xs), torch.cat(ys)
    chosen = torch.linspace(0, len(x) - 1, min(len(x), UNITS)).long()
    return x[chosen].double().numpy(), y[chosen].numpy()


def told(
    name: str, job: Job, outcome: Outcome, seconds: float, trained: int, parts: Mapping[str, Dataset] = MappingProxyType({})
) -> tuple[str, dict[str, Any], str]:
    """`parts`: of a task that comes in stages, whose rows follow each other."""
    record = {
        "task": job.recipe.task, "model": job.recipe.model.name, "method": name, "label": name, "baseline": True, "seed": job.recipe.seed,
        "metric": outcome.scores.main, "before": {}, "after": {"loss": outcome.loss, **outcome.scores.values}, "undefined": dict(outcome.scores.reasons),
        "history": [], "trainable_parameters": trained, "total_parameters": sum(p.numel() for p in job.net.parameters()),
        "artifact_bytes": 4 * trained, "peak_memory_bytes": None, "train_seconds": round(seconds, 3), "real_tokens_per_second": None, "steps": 0,
    }  # fmt: skip
    assert job.data.eval is not None
    lines, owners = predictions(job.data.eval, outcome).splitlines(), [task for task, part in parts.items() if part.eval for _ in part.eval.examples]
    named = [of_task(line, task, outcome.scores.main) for task, line in zip(owners, lines, strict=False)]
    return name, record, "".join(named or (f"{line}\n" for line in lines))


def texts_to_write(recipe: Recipe, data: Dataset, shared: Shared, reporter: Reporter, names: list[str]) -> Told:
    """Judged as every arm is."""
    assert data.eval is not None
    with shared.lent(recipe, data) as net:
        objective = {"kind": "supervised"} if OBJECTIVES[recipe.objective["kind"]].unlabelled else recipe.objective  # no teacher need be asked to judge
        job = assemble(replace(recipe, method={"kind": "bitfit"}, objective=objective), data, net, reporter, shared)  # neutral: the outputs are the model's own
        for name in names:
            part = data.eval if name == "untuned" else with_examples(data, SHOTS)
            if part is data.eval:
                yield told(name, job, job.probe.ask(net), 0.0, 0)  # type: ignore[union-attr]
                continue
            if part is None:
                reporter.say(f"{name}: left out, plain text has no prompts to stand before, or they do not fit", "yellow")
                continue
            table = Table(part.encoded.columns, data.task.key, device=net.device)
            yield told(name, job, probe_of(part, table, data.reader, recipe).ask(net), 0.0, 0)
        if shared.keeps:
            job.delta.detach()


def with_examples(data: Dataset, shots: int) -> Part | None:
    """The eval rows, each behind the same few training dialogues, on which no loss is taken. None where they do not fit all."""
    assert data.eval is not None
    train = [e for e in data.train.examples if isinstance(e, Dialogue)]
    rows = [e for e in data.eval.examples if isinstance(e, Dialogue)]
    if len(rows) < len(data.eval.examples) or len(train) < shots:
        return None
    short = sorted(train, key=lambda e: sum(len(t.content) for t in e.turns))[: len(train) // 2 + shots]
    before = [replace(t, learn=False) for e in random.Random(0).sample(short, shots) for t in e.turns]
    try:
        encoded = data.reader.encode([Dialogue((*before, *e.turns), e.row) for e in rows], data.task)
    except Refusal:
        return None
    fits = max(encoded.lengths) <= data.reader.max_length
    return Part(data.eval.name, data.eval.format, replace(encoded, kept=data.eval.encoded.kept), data.eval.task) if fits else None
