"""Asking a finished run: measuring it on a file, predicting, talking to it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from .artifact import Tuned, describe, load
from .dataset import DESK_SPLITS, Part, desk_records, episodes, formatted, known
from .errors import Refusal
from .evaluate.evaluate import Probe
from .judging import probe_of
from .networks.decode import Sampling
from .objectives import OBJECTIVES
from .prompting.asking import judged as in_words
from .recipe import Recipe, recipe
from .reinforcement import judged as played
from .sources.table import Table
from .sources.text.read import read
from .sources.text.records import Records
from .sources.text.task import kind_of

ANSWERED = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))


def evaluate(folder: Path, file: str, task: str | None = None) -> dict[str, Any]:
    """The task's metrics on a file, read as the run's own data were, or on further episodes of its environment. `task`: of several, which."""
    made = recipe_of(folder)
    tuned = run_of(folder, task, keep=made.objective["kind"] == "reinforce")
    made = made.each().get(task or "", made)
    found = formatted(made, records_for(made, file))
    known(tuned.task, found.examples(), "eval")
    kind = kind_of(tuned.task.name, found.examples(), tuned.task.kind == "multi")
    asked = replace(tuned.task, kind=OBJECTIVES[made.objective["kind"]].rows.get(kind, kind))
    part = Part("test", found, tuned.reader.encode(found.examples(), asked), asked)
    outcome = JUDGED.get(made.objective["kind"], by_labels)(tuned, part, made).ask(tuned.net)
    return {"rows": len(part.examples), "loss": outcome.loss, "scores": dict(outcome.scores.values), "undefined": dict(outcome.scores.reasons)}


def records_for(made: Recipe, file: str) -> Records:
    """`desk` and `desk/dev` are the embedded data in the shape of the run's own; `play/200` are episodes that it has not met."""
    d, (first, _, rest) = made.data, file.partition("/")
    if first == "desk":
        names = {"": "test", **{split: name for name, split in DESK_SPLITS.items()}}
        if rest not in names:
            raise Refusal(f"the desk has no part {rest!r}", where="data", fix="desk/train, desk/dev or desk/test")
        return desk_records(d.train if d.train.partition("/")[0] == "desk" else "desk", made.task, names[rest])
    if made.objective.get("environment"):
        if first != "play":
            raise Refusal("this run plays an environment, and is not asked about rows", where="data", fix="play, or play/200")
        return episodes(file, made, "test")
    return read(file, encoding=d.encoding, delimiter=d.delimiter, header=d.header, split="test", where_key="data")


def by_labels(tuned: Tuned, part: Part, made: Recipe) -> Probe:
    return probe_of(part, Table(part.encoded.columns, tuned.task.key, device=tuned.net.device), tuned.reader, made)


JUDGED: dict[str, Callable[[Tuned, Part, Recipe], Probe]] = {  # objective -> how a finished run of it is judged, where not by labels
    "cloze": lambda tuned, part, made: in_words(tuned, part),
    "reinforce": played,
}


def run_of(folder: Path, task: str | None, keep: bool = False) -> Tuned:
    """A finished run; of one with several tasks, the one that is meant."""
    tuned = load(folder, keep=keep)
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
