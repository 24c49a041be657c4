"""The guide's table as a command: arms that take turns on one loaded base, judged on the same rows, and what can be said of them."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from ..shared import Shared
from ..train import Company, Result, identity, run
from .arms import Arm, arms
from .baselines import baselines
from .board import Board
from .measures import Measures
from .report import write_report
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
    seeds: int = 3,
    vary: Sequence[str] = (),
    general: str | None = None,
    fresh: bool = False,
    lang: str = "en",
    reporter: Reporter | None = None,
) -> Comparison:
    """Train every arm, or take it finished from an earlier command, and write compare.json and report.html.

    An arm equals the run that its recipe would be alone. A method that refuses this model is said and left out.
    Raises Refusal where there is nothing to judge by, before anything is loaded.
    """
    reporter = reporter or Reporter()
    machine.keep_freed_memory()
    if recipe.data.eval is None:
        raise Refusal("a comparison needs rows to judge by", where="data.eval", fix="data.eval=dev.jsonl, or a share of the training rows, data.eval=0.1")
    made, passages, _ = arms(recipe, methods, seeds, vary), general_texts(general), words(lang)
    if fresh:
        shutil.rmtree(recipe.folder / "arms", ignore_errors=True)
    torch.set_num_threads(recipe.threads or torch.get_num_threads())
    shared, began = Shared(keeps=True), time.perf_counter()
    results = baselines(recipe, shared, reporter)
    with Board(made, reporter) as board:
        results += list(trained(made, Company(shared, [board], [Measures(passages)]), board))
    if not any(not r.record.get("baseline") for r in results):
        raise Refusal("no method was left to compare", where="--methods", fix="tunesmith explain METHOD says what each needs")
    options = ["--methods", ",".join(methods), "--seeds", str(seeds), *(word for axis in vary for word in ("--vary", axis))]
    again = shlex.join(["tunesmith", "compare", "recipe.yaml", *options, *(["--general", general] if general else [])])
    record = {**joined(results), "command": again, "seconds": round(time.perf_counter() - began, 1), "recipe": identity(recipe)}
    return written(recipe.folder, record, results, lang)


def trained(made: Sequence[Arm], company: Company, board: Board) -> Iterator[Result]:
    """One arm after another; the later seeds of a refused one are not asked again."""
    refused: set[str] = set()
    for arm in made:
        if arm.label in refused:
            continue
        board.turn(arm)
        began = time.time()
        own = Company(company.shared, company.listeners, [*company.measures, lambda job, label=arm.label: {"label": label}])
        try:
            result = run(arm.recipe, Reporter(quiet=True), company=own)
        except Refusal as e:
            if e.where.partition(".")[0] != "method":
                raise
            refused.add(arm.label)
            board.refuse(arm, str(e))
            continue
        board.over(arm, result.record, trained=(result.folder / "result.json").stat().st_mtime >= began)
        yield result


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
    trained = [row["label"] for row in table if not row["baseline"]]
    return {
        "task": results[0]["task"], "model": results[0]["model"], "metric": metric, "higher_is_better": better(metric) > 0,
        "rows_judged": len(rows_of(results[0].folder)), "best": table[0]["label"], "best_trained": trained[0], "leads": leads(table), "table": table,
        "notes": notes(table), "arms": [{**r.record, "label": label_of(r), "folder": str(r.folder)} for r in results],
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "machine": about_machine(),
    }  # fmt: skip


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
