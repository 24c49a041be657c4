"""Asking a finished run: measuring it on a file, predicting, talking to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from .artifact import Tuned, describe, load
from .dataset import Part, desk_records, known
from .errors import Refusal
from .judging import probe_of
from .networks.decode import Sampling
from .objectives import OBJECTIVES
from .prompting.asking import judged
from .recipe import Recipe, recipe
from .sources.table import Table
from .sources.text.formats import detect
from .sources.text.read import read
from .sources.text.task import kind_of

ANSWERED = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))


def evaluate(folder: Path, file: str, task: str | None = None) -> dict[str, Any]:
    """The task's metrics on a file, read as the run's own data were. `task`: of several, which."""
    tuned, made = run_of(folder, task), recipe_of(folder)
    made = made.each().get(task or "", made)
    d = made.data
    if file.partition("/")[0] == "desk":
        shape = d.train if d.train.partition("/")[0] == "desk" else "desk"
        records = desk_records(shape, made.task, "test" if file == "desk" else file.partition("/")[2])
    else:
        records = read(file, encoding=d.encoding, delimiter=d.delimiter, header=d.header, split="test", where_key="data")
    found = detect(records, made.task, d.columns or None, multi_label=d.multi_label, bad_rows=d.bad_rows, repair=d.repair)
    known(tuned.task, found.examples(), "eval")
    kind = kind_of(tuned.task.name, found.examples(), tuned.task.kind == "multi")
    asked = replace(tuned.task, kind=OBJECTIVES[made.objective["kind"]].rows.get(kind, kind))
    part = Part("eval", found, tuned.reader.encode(found.examples(), asked), asked)
    table = Table(part.encoded.columns, tuned.task.key, device=tuned.net.device)
    outcome = (judged(tuned, part) if tuned.learn else probe_of(part, table, tuned.reader, made)).ask(tuned.net)
    return {"rows": len(part.examples), "loss": outcome.loss, "scores": dict(outcome.scores.values), "undefined": dict(outcome.scores.reasons)}


def run_of(folder: Path, task: str | None) -> Tuned:
    """A finished run; of one with several tasks, the one that is meant."""
    tuned = load(folder)
    if task is None and tuned.others:
        raise Refusal(f"{folder} has several tasks", where="--task", fix=f"--task {' or '.join(tuned.others)}")
    return tuned.of(task) if task is not None else tuned


def kind_of_run(folder: Path, task: str | None) -> str:
    """What its rows are (see Task)."""
    about = describe(folder)
    return about.tasks.get(task or "", {"task": about.task})["task"]["kind"]


def recipe_of(folder: Path) -> Recipe:
    try:
        return recipe(yaml.safe_load((folder / "recipe.yaml").read_text()))
    except OSError as e:
        raise Refusal(f"{folder} is not the folder of a run", why="recipe.yaml is missing") from e


def predictions(folder: Path, asked: Sequence[Any], max_new_tokens: int, temperature: float, task: str | None = None) -> Iterator[dict[str, Any]]:
    yield from run_of(folder, task).predict(asked, sampling=Sampling(max_new_tokens, temperature))


def learnable(folder: Path, asked: Sequence[Any], max_new_tokens: int, temperature: float, task: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows to learn from: what was asked, without the answer that the file gives, and what the run said."""
    asked = [unanswered(a) for a in asked]
    for a, record in zip(asked, predictions(folder, asked, max_new_tokens, temperature, task), strict=True):
        if record.get("text") != "":  # an answer that is none teaches nothing
            yield as_row(a, record)


def as_row(asked: Any, said: dict[str, Any]) -> dict[str, Any]:
    """What was asked with what was said, as a row to learn from: a teacher's text for a student (Kim & Rush 2016), a label that it gave."""
    if "text" in said:
        return (
            {"prompt": asked, "completion": said["text"]} if isinstance(asked, str) else {"messages": [*asked, {"role": "assistant", "content": said["text"]}]}
        )
    texts = {"text": asked} if isinstance(asked, str) else {"text": asked[0], "pair": asked[1]}
    spans = {"spans": [{k: e[k] for k in ("start", "end", "label")} for e in said["entities"]]} if "entities" in said else {}
    return {**texts, **{k: said[k] for k in ("label", "labels", "score") if k in said}, **spans}


def unanswered(asked: Any) -> Any:
    """Messages without the answer that the file gives."""
    return asked[:-1] if isinstance(asked, list) and isinstance(asked[-1], dict) and asked[-1].get("role") == "assistant" else asked


def lines_of(file: str, kind: str = "") -> list[Any]:
    """Texts, [text, pair] or messages from a file, answers with what was asked for a reward; lines from standard input."""
    if file == "-":
        return [line.rstrip("\n") for line in sys.stdin if line.strip()]
    rows = read(file).rows
    if "positive" in rows[0] and "anchor" not in rows[0]:
        return [{"positive": row["positive"]} for row in rows]
    usual = (("anchor",), ("text", "pair"), ("sentence1", "sentence2"), ("text",), ("messages",), ("prompt",), ("sentence",))
    for keys in (*(ANSWERED if kind == "reward" else ()), *usual):
        if all(key in rows[0] for key in keys):
            return [row[keys[0]] if len(keys) == 1 else [row[k] for k in keys] for row in rows]
    raise Refusal(f"no column text, prompt or messages; found {', '.join(map(str, rows[0]))}", where=file, fix="rename one of them")


def chat(folder: Path, max_new_tokens: int, temperature: float, task: str | None = None) -> None:
    """A conversation on the terminal; classifiers and taggers answer line by line. An empty line or Ctrl-D ends it."""
    if not sys.stdin.isatty():
        raise Refusal("nothing to predict", where="predict", fix=f'tunesmith predict {folder} "a text", or --file FILE')
    tuned, said = run_of(folder, task), []
    print(f"{describe(folder).model['name']}, {tuned.task.name}. An empty line ends.")
    while line := input("> ").strip():
        said.append({"role": "user", "content": line})
        answer = tuned.predict([said if tuned.task.name == "generate" else line], sampling=Sampling(max_new_tokens, temperature))[0]
        print(answer.get("text", answer))
        said.append({"role": "assistant", "content": answer.get("text", "")})
