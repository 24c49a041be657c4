"""A run from end to end: continue or begin, train, measure, leave the artifact."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors.torch import load_file

from . import machine, parallel
from .artifact import save_artifact
from .card import card
from .checkpoint import Checkpoints, Lock, write_file
from .core import Listener
from .engine import fit
from .errors import Diverged, OutOfMemory
from .evaluate.evaluate import Outcome
from .fitted_head import beside
from .job import Job, agreed, assemble
from .listeners import Clock, Evaluate, Journal, Show, Signals, Skip
from .progress import Reporter
from .prompting.asking import written
from .recipe import Recipe
from .record import description, identity, predictions, record_of
from .shared import Shared
from .teaching.report import deployment


@dataclass(frozen=True)
class Result:
    """What result.json holds, and the folder it lies in."""

    folder: Path
    record: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.record[key]

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in self.record.items())
        return f"<table>{rows}</table>"


@dataclass(frozen=True)
class Company:
    """What a run among others shares with them and lets them know.

    listeners   hear its steps besides its own
    measures    are asked when it is trained, with its network at rest; what they say stands in its record
    """

    shared: Shared = field(default_factory=Shared)
    listeners: Sequence[Listener] = ()
    measures: Sequence[Callable[[Job], Mapping[str, Any]]] = ()


def run(recipe: Recipe, reporter: Reporter | None = None, *, fresh: bool = False, company: Company | None = None) -> Result:
    """Train by a recipe; an interrupted run continues, a finished one is returned as it is."""
    reporter = (reporter or Reporter()) if parallel.first() else Reporter(quiet=True)
    machine.keep_freed_memory()
    machine.reset_peak()
    torch.set_num_threads(recipe.threads or torch.get_num_threads())
    folder = recipe.folder
    parallel.join()
    lock = Lock(folder) if parallel.first() else None
    try:
        if fresh and parallel.first():
            start_anew(folder)
        recipe = parallel.told(lambda: as_begun(recipe, folder))
        done = parallel.told(lambda: finished(recipe, folder))
        if done and not added(recipe, done, company or Company()):
            reporter.say(f"{folder} is finished; --fresh trains anew")
            return done
        return train(recipe, folder, reporter, company or Company())
    except (MemoryError, RuntimeError) as e:
        raise translated(e, recipe) from e
    finally:
        if lock:
            lock.release()


def translated(error: Exception, recipe: Recipe) -> Exception:
    """Running out of memory is the user's to mend; everything else is ours."""
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate memory" in str(error):
        return OutOfMemory(
            "out of memory",
            why=str(error).splitlines()[0] if str(error) else "",
            fix=f"update.micro={recipe.update.micro // 4}, recompute=true, or a smaller data.max_length; none of them changes what is learnt but the last",
        )
    return error


def start_anew(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def as_begun(recipe: Recipe, folder: Path) -> Recipe:
    """What was decided by measurement when the run began stays decided."""
    try:
        begun = yaml.safe_load((folder / "recipe.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return recipe
    keys = {k: begun[k] for k in ("dtype", "kernel") if getattr(recipe, k) == "auto" and k in begun}
    return replace(recipe, **keys)


def finished(recipe: Recipe, folder: Path) -> Result | None:
    try:
        record = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    return Result(folder, record) if record.get("recipe") == identity(recipe) else None


def added(recipe: Recipe, done: Result, company: Company) -> bool:
    """Whether tasks have come to a sequence since it was over, without a word in its recipe: in its file."""
    return recipe.built_stream().grows and list(company.shared.data(recipe).parts) != done["stages"]


def train(recipe: Recipe, folder: Path, reporter: Reporter, company: Company) -> Result:
    data = company.shared.data(recipe)
    agreed(recipe, data)  # refused, if it must be, before a weight is loaded
    for one in data.each.values():
        rows = f"{len(one.train.examples)} rows to learn from" + (f", {len(one.eval.examples)} to judge by" if one.eval else "")
        reporter.say(f"data: {one.train.format.name}, {rows}")
    with company.shared.lent(recipe, data) as net:
        job = assemble(recipe, data, net, reporter, company.shared)
        if not company.shared.keeps:
            machine.hand_back()  # the weights as they were read, whose place training would leave between its own
        for note in job.notes:
            reporter.say(f"note: {note}")
        trained = sum(p.numel() for p in job.delta.parameters().values())
        reporter.say(f"{recipe.method['kind']}: {trained:,} parameters train; {job.choice.dtype}, {job.choice.kernel} attention ({job.choice.why})")
        if parallel.first():
            write_file(folder / "recipe.yaml", replace(recipe, dtype=job.choice.dtype, kernel=job.choice.kernel).text().encode())
        result = finish(job, folder, *follow(job, folder, reporter, company.listeners), reporter, company.measures)
        if company.shared.keeps:
            job.delta.detach()
    return result


def follow(job: Job, folder: Path, reporter: Reporter, guests: Sequence[Listener]) -> tuple[Evaluate | None, Clock]:
    """Listen, continue from what is there, and train to the end."""
    recipe, run_ = job.recipe, job.run
    period = run_.stream[0].period
    clock, journal = Clock(recipe.budget.minutes or 0.0), Journal(folder / "metrics.jsonl")
    often = every(recipe.evaluate.every or "epoch", period if recipe.built_stream().chooses else run_.total)
    watch = Evaluate(job.probe, often, recipe.evaluate.patience, best_keeper(recipe, folder)) if job.probe else None
    saving = Checkpoints(folder / "checkpoints", fingerprint(job), every(recipe.checkpoint.every, period), recipe.checkpoint.keep)
    signals = Signals(saving.save)
    with reporter.bar(recipe.method["kind"]) as bar, signals:
        run_.listeners = [
            *beside(job, often),
            *job.listeners,
            clock,
            journal,
            Show(bar.told),
            *([watch] if watch else []),
            *guests,
            saving,
            signals,
            Skip(clock),
        ]
        run_.update.prepare(run_)  # type: ignore[attr-defined]
        resumed = saving.resume(run_)
        for line in saving.said:
            reporter.say(line, "yellow")
        journal.rewind(run_.done)
        if resumed:
            reporter.say(f"continuing after step {run_.done} of {run_.total}")
        if watch and (not resumed or saving.grew):  # new tasks are asked before they are learnt
            watch.ask(run_)
        clock.skip()
        for stage in run_.stream:
            stage.train.fill(job.net)  # states of the frozen trunk are computed before the clock starts to count steps
        clock.fill()
        guarded(job, saving)
    return watch, clock


def guarded(job: Job, saving: Checkpoints) -> None:
    """A run that diverges keeps the weights it had before."""
    try:
        fit(job.run)
    except Diverged:
        saving.save(job.run)
        raise


def every(given: int | str, period: int) -> int:
    return period if given == "epoch" else int(given)


def best_keeper(recipe: Recipe, folder: Path):
    if not (recipe.keeps_best and parallel.first()):
        return None
    return lambda state: write_file(folder / "checkpoints" / "best.safetensors", state)


def fingerprint(job: Job) -> dict[str, Any]:
    """What must not change between the parts of one run. To a sequence, stages may be added."""
    rows = {name: one.fingerprint for name, one in job.data.each.items()}
    stages = [[stage.name, stage.steps, rows.get(stage.name, "")] for stage in job.run.stream]
    grows = job.recipe.built_stream().grows
    return {
        "recipe": {k: v for k, v in identity(job.recipe).items() if not (grows and k in ("data", "tasks"))},
        **({"stages": stages} if grows else {"data": rows}),
        "dtype": job.choice.dtype,
        "kernel": job.choice.kernel,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def finish(job: Job, folder: Path, watch: Evaluate | None, clock: Clock, reporter: Reporter, measures: Sequence[Callable[[Job], Mapping[str, Any]]]) -> Result:
    after = best_of(job, folder, watch, reporter)
    parallel.wait()  # all have read the best weights before the first clears the checkpoints away
    record = record_of(job, watch, after, clock)  # before more is asked: that memory is not training's
    record |= deployment(job, record["after"])
    if job.test:
        record["test"] = dict(job.test.ask(job.net).scores.values)
    for measure in measures:
        record |= measure(job)
    return Result(folder, parallel.told(lambda: left_behind(job, folder, record, after)))


def best_of(job: Job, folder: Path, watch: Evaluate | None, reporter: Reporter) -> Outcome | None:
    """How the run is judged, with its best weights where they were to be kept."""
    if not (watch and job.probe):
        return None
    best = folder / "checkpoints" / "best.safetensors"
    if job.recipe.keeps_best and watch.best.get("step", 0) not in (0, job.run.done) and best.exists():
        job.delta.load_state_dict(load_file(best))
        reporter.say(f"the best evaluation was at step {watch.best['step']}; its weights are kept")
        return job.probe.ask(job.net)
    return watch.fresh if watch.fresh and watch.history[-1]["step"] == job.run.done else job.probe.ask(job.net)


def left_behind(job: Job, folder: Path, record: dict[str, Any], after: Outcome | None) -> dict[str, Any]:
    """The artifact, the predictions, the card and the result, whose presence says that the run is finished."""
    size = save_artifact(folder / "artifact", job.net, job.delta, job.method, description(job), job.data.reader.tokenizer, job.run.objective.state_dict())
    for name, content in written(job).items():
        write_file(folder / "artifact" / name, content)
    record = {**record, "artifact_bytes": size}
    if after:
        lines = "".join(predictions(one.eval, after.parts.get(name, after), name if job.data.parts else "") for name, one in job.data.each.items() if one.eval)
        write_file(folder / "predictions.jsonl", lines.encode())
    write_file(folder / "README.md", card(job.recipe, job.data, record).encode())
    write_file(folder / "result.json", json.dumps(record, indent=1, ensure_ascii=False).encode())
    if not job.recipe.built_stream().grows:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder / "checkpoints")
    return record
