"""The guide's table as a command: arms that take turns on one loaded base, judged on the same rows, and what can be said of them."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import transformers

from .. import __version__, machine
from ..checkpoint import write_file
from ..errors import Refusal
from ..evaluate.metrics import better
from ..progress import Reporter
from ..recipe import Recipe
from ..train import Company, Result, identity, run
from .apart import apart, train_apart, transfer
from .arms import Arm, arms
from .baselines import baselines
from .board import Board, Herald, Left, left, over
from .crew import Crew, Worker, crew
from .in_context import in_context
from .report import write_report
from .search import Found, search, searched
from .table import label_of, leads, notes, rows_of, tabled
from .words import words


@dataclass(frozen=True)
class Comparison:
    """What compare.json holds, the arms behind it, and where the page about it lies."""

    report: Path
    record: Mapping[str, Any]
    results: Sequence[Result]

    @property
    def table(self) -> list[dict[str, Any]]:
        return self.record["table"]

    def _repr_html_(self) -> str:
        keys = ("label", "mean", "low", "high", "gain", "trainable_parameters", "artifact_bytes", "peak_memory_bytes", "train_seconds")
        head = "".join(f"<th>{key}</th>" for key in keys)
        return f"<table><tr>{head}</tr>" + "".join("<tr>" + "".join(f"<td>{row[k]}</td>" for k in keys) + "</tr>" for row in self.table) + "</table>"


def compare(
    recipe: Recipe,
    methods: Sequence[str],
    *,
    seeds: int | None = None,
    vary: Sequence[str] = (),
    tune: int = 0,
    jobs: int = 1,
    on: str | None = None,
    general: str | None = None,
    fresh: bool = False,
    lang: str = "en",
    reporter: Reporter | None = None,
) -> Comparison:
    """Train every arm, or take it finished from an earlier command, and write compare.json and report.html.

    `seeds`: runs of each arm, by default as many as the stream asks for (3; of few rows 10 draws).
    `tune`: how many learning rates are tried for each label before its runs, on a part of the training rows; 0: the method's measured default.
    `jobs`: arms trained at a time, each by a process of its own; `on`: "ray", on the machines of its cluster.
    An arm equals the run that its recipe would be alone. A method that refuses this model is said and left out.
    Raises Refusal where there is nothing to judge by, before anything is loaded.
    """
    reporter = reporter or Reporter()
    machine.keep_freed_memory()
    machine.settle()
    seeds = seeds or recipe.built_stream().splits
    made, passages, _ = arms(recipe, methods, seeds, vary), general_texts(general), words(lang)
    if any(one.data.eval is None for one in recipe.each().values()):
        raise Refusal("a comparison needs rows to judge by", where="data.eval", fix="data.eval=dev.jsonl, or a share of the training rows, data.eval=0.1")
    if fresh:
        for part in ("arms", "search"):
            shutil.rmtree(recipe.folder / part, ignore_errors=True)
    torch.set_num_threads(recipe.threads or torch.get_num_threads())
    beside = apart if recipe.stream["kind"] == "mix" else lambda arms: []
    began, board = time.perf_counter(), Board(expected([*made, *beside(made)], tune), reporter)
    with crew(jobs, on, passages, board.hear, reporter, recipe.threads) as hands:
        splits = range(recipe.seed, recipe.seed + (seeds if recipe.built_stream().draws else 1))  # a baseline has no seed but that of its rows
        rows = [replace(recipe, seed=s) for s in splits]
        results = [baseline for asked in (untrained, shown) for _, found in hands.each(asked, rows) for baseline in found]
        with board:
            chosen = tuned(made, tune, hands)
            results += trained([*chosen, *beside(chosen)], hands)
    del hands  # and the base with it: what draws the report comes into the room that it leaves
    machine.hand_back()
    if not any(not r.record.get("baseline") for r in results):
        raise Refusal("no method was left to compare", where="--methods", fix="tunesmith explain METHOD says what each needs")
    again = command(methods, seeds, vary, tune, general)
    record = {**joined(results), "command": again, "seconds": round(time.perf_counter() - began, 1), "recipe": identity(recipe)}
    return written(recipe.folder, record, results, lang)


def command(methods: Sequence[str], seeds: int, vary: Sequence[str], tune: int, general: str | None) -> str:
    """What to type for the same arms."""
    options = ["--methods", ",".join(methods), "--seeds", str(seeds), *(word for axis in vary for word in ("--vary", axis))]
    options += ["--tune", "--trials", str(tune)] if tune else []
    return shlex.join(["tunesmith", "compare", "recipe.yaml", *options, *(["--general", general] if general else [])])


def expected(made: Sequence[Arm], tune: int) -> dict[str, int]:
    """How many runs the board will hear of, by label."""
    counts = Counter(arm.label for arm in made)
    return ({searched(label): tune for label in counts} if tune else {}) | counts


# ------------------------------------------------------------------------------------------------ what each worker does


def untrained(worker: Worker, base: Recipe) -> list[Result]:
    return baselines(base, worker.shared, worker.reporter)


def shown(worker: Worker, base: Recipe) -> list[Result]:
    return in_context(base, worker.shared, worker.reporter)


def train_arm(worker: Worker, arm: Arm) -> Result | Left:
    if arm.apart:
        return train_apart(worker, arm)
    began = time.time()
    facts = {"label": arm.label} | ({"tuning": arm.tuning} if arm.tuning else {})
    company = Company(worker.shared, [Herald(arm.label, arm.recipe.seed, worker.tell)], [worker.measures, lambda job: facts])
    try:
        result = run(arm.recipe, Reporter(quiet=True), company=company)
    except Refusal as e:
        worker.tell(gone := left(arm.label, e))
        return gone
    worker.tell(over(arm.label, arm.recipe.seed, result, began))
    return result


# ------------------------------------------------------------------------------------------------ all of them


def tuned(made: Sequence[Arm], trials: int, hands: Crew) -> list[Arm]:
    """Every arm with the best rate that was found for its label; one search a label, at its first seed. Those that refuse are handed on as they are."""
    if not trials:
        return list(made)
    firsts = list({arm.label: arm for arm in reversed(made)}.values())[::-1]
    found = {arm.label: rate for arm, rate in hands.each(partial(search, trials=trials), firsts)}
    return [arm if isinstance(rate := found[arm.label], Left) else at_rate(arm, rate) for arm in made]


def at_rate(arm: Arm, found: Found) -> Arm:
    return replace(arm, recipe=replace(arm.recipe, update=replace(arm.recipe.update, rate=found.rate)), tuning=asdict(found))


def trained(made: Sequence[Arm], hands: Crew) -> list[Result]:
    """In the order of the arms, whoever was done first; the later seeds of a refused one are not asked again."""
    found: dict[str, Result] = {}
    refused: set[str] = set()
    for arm, result in hands.each(train_arm, (arm for arm in made if arm.label not in refused)):
        if isinstance(result, Left):
            refused.add(arm.label)
        else:
            found[arm.recipe.out] = result
    return [found[arm.recipe.out] for arm in made if arm.recipe.out in found]


def general_texts(path: str | None) -> list[str]:
    """Passages, one a line: the embedded ones, or the user's."""
    try:
        text = Path(path).read_text(encoding="utf-8") if path else (resources.files("tunesmith.data") / "general.txt").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise Refusal(f"cannot read {path}", where="--general", why=str(e), fix="a UTF-8 text file with a passage a line") from e
    found = [line.strip() for line in text.splitlines() if len(line.strip()) >= 8]
    if len(found) < 8:
        raise Refusal(f"{path} has {len(found)} passages", where="--general", fix="at least eight, one a line, of two sentences or more")
    return found[:256]


def joined(results: Sequence[Result]) -> dict[str, Any]:
    """What runs that were judged on the same rows say together."""
    metric, table = results[0]["metric"], tabled(results)
    shift = transfer(table)
    trained = [row["label"] for row in table if not row["baseline"]]
    return {
        "task": results[0]["task"], "model": results[0]["model"], "metric": metric, "higher_is_better": better(metric) > 0,
        "rows_judged": len(rows_of(results[0].folder)), "best": table[0]["label"], "best_trained": trained[0], "leads": leads(table), "table": table,
        "notes": [*notes(table), *shifts(shift)], "transfer": shift, "arms": [{**r.record, "label": label_of(r), "folder": str(r.folder)} for r in results],
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "machine": about_machine(),
    }  # fmt: skip


def shifts(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What each task gains or loses by the company of the others, arm by arm."""
    lost = {label: {task: v for task, v in tasks.items() if v < 0} for label, tasks in found.items()}
    told = [f"{label}: " + ", ".join(f"{task} {v:+.3f}" for task, v in tasks.items()) for label, tasks in found.items()]
    named = [f"Negative transfer, {label}: {', '.join(tasks)} did better alone." for label, tasks in lost.items() if tasks]
    return [*([f"Together against each alone: {'; '.join(told)}."] if told else []), *named]


def written(folder: Path, record: Mapping[str, Any], results: Sequence[Result], lang: str) -> Comparison:
    """compare.json and the page that is made from it."""
    write_file(folder / "compare.json", json.dumps(record, indent=1, ensure_ascii=False).encode())
    return Comparison(write_report(record, results, folder / "report.html", lang), record, results)


def about_machine() -> dict[str, Any]:
    from ..networks.precision import cpu_name

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name().partition(":")[2].strip()
    return {
        "device": device, "threads": torch.get_num_threads(), "system": platform.system(), "python": platform.python_version(),
        "tunesmith": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
