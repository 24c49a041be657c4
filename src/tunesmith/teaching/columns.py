"""The columns that `objective: distil` needs and no file gives: what job.py asks for by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from ..core import Objective, Ragged
from ..dataset import Dataset
from ..errors import Refusal
from ..networks.blank import bytes_of
from ..objectives.distil import Distil
from ..parallel import told as told_by_first
from ..recipe import Recipe
from ..sources.answers import Answers, Stored
from ..sources.enriched import Enriched
from ..sources.table import Table
from .ask import Question, ids, stored_answers
from .cache import manifest, of_file
from .teacher import named, shape_of, stored
from .written import Written

if TYPE_CHECKING:
    from ..job import Setting


def foreseen(recipe: Recipe, data: Dataset, learn: Objective) -> None:
    """Raises Refusal for what can be told of the teachers before a weight is loaded."""
    assert isinstance(learn, Distil)
    for name in learn.teachers:
        if file := stored(name):
            fits_file(file, data, learn)
        else:
            Question(recipe, data, learn, named(recipe, data, name)).refuse()


def weighed(recipe: Recipe, data: Dataset, learn: Objective) -> tuple[int, int]:
    """Bytes of the largest teacher's weights, which are in memory while it is asked; and of the one that has an opinion on what the student writes."""
    assert isinstance(learn, Distil)
    sources = [named(recipe, data, name).source for name in learn.teachers if not stored(name)]
    largest = max((bytes_of(source, recipe.generates) for source in sources), default=0)
    return largest, largest if learn.on_policy else 0


def taught(source: Table | Enriched, setting: Setting) -> Answers | Written:
    """teacher, teacher_ids, teacher_states, teacher_heads: what the teachers said of each row, from where it was kept, or asked with the first batch."""
    learn, recipe, data = setting.objective, setting.recipe, setting.data
    assert isinstance(learn, Distil)
    names = frozenset(n for n in learn.needs if n.startswith("teacher"))
    folder = Path(learn.cache or recipe.folder / "teacher").expanduser() / setting.part
    questions = [None if stored(name) else Question(recipe, data, learn, named(recipe, data, name)) for name in learn.teachers]
    places = [folder / str(i) if len(questions) > 1 else folder for i in range(len(questions))]
    examples = ids(data, learn.kind == "generate" or bool(names - {"teacher", "teacher_ids"}))
    finds = [
        asking(question, place, setting) if question else kept(name, examples, setting)
        for question, place, name in zip(questions, places, learn.teachers, strict=True)
    ]
    find = finds[0] if len(finds) == 1 else lambda: averaged([one() for one in finds], list(dict.fromkeys(examples)))
    answers = Answers(source, names, examples, find)
    if not learn.on_policy:
        return answers
    assert questions[0]
    return Written(answers if learn.on_policy < 1 else source, questions[0], setting.net)


def kept(name: str, examples: Sequence[int], setting: Setting) -> Callable[[], Stored]:
    """What was answered before."""
    file = stored(name)
    assert file and isinstance(setting.objective, Distil)
    fits_file(file, setting.data, setting.objective)
    about = {"name": name, **((manifest(file.parent) or {}).get("about", {}))}
    return lambda: of_file(file, examples, about)


def asking(question: Question, folder: Path, setting: Setting) -> Callable[[], Stored]:
    """What a network answers."""
    learn = question.learn
    question.refuse()
    if question.inside:
        within(question, setting)
        learn.equip(shape_of(setting.net.model.config), question.who.shape)
        learn.to(setting.net.device)
    told = setting.told("teacher, once")

    def find() -> Stored:
        """Arms of a comparison that ask the same ask it once."""
        asked = json.dumps([question.key, question.examples, question.data.fingerprint])
        if asked in setting.shared.answers:
            return setting.shared.answers[asked]
        told_by_first(lambda: stored_answers(question, folder, setting.net, told) and None)
        found = stored_answers(question, folder, setting.net, told)
        setting.shared.answers |= {asked: found} if setting.shared.keeps else {}
        return found

    return find


def averaged(members: Sequence[Stored], examples: Sequence[int]) -> Stored:
    """The mean of what they said of each example. Who they are together: all of their parameters and of their time; `scores` are the mean of theirs."""
    said = [member.of(examples)["teacher"] for member in members]
    values = torch.stack([column.values if isinstance(column, Ragged) else column for column in said]).mean(0)
    teacher = Ragged(values, said[0].lengths) if isinstance(said[0], Ragged) else values
    known = [member.about for member in members]
    total = {key: sum(about[key] for about in known) for key in ("parameters", "bytes", "latency_ms") if all(key in about for about in known)}
    scores = [about.get("scores", {}) for about in known]
    means = {key: sum(s[key] for s in scores) / len(scores) for key in scores[0] if all(key in s for s in scores)}
    about = {"name": " + ".join(str(about["name"]) for about in known), **total, **({"scores": means} if means else {})}
    return Stored({"teacher": teacher}, {example: i for i, example in enumerate(examples)}, about)


def within(question: Question, setting: Setting) -> None:
    """Blocks that are matched exist, and the student's can learn from it."""
    learn = question.learn
    for who, depth, which in (("student", setting.net.anatomy.depth, 0), ("teacher", question.who.depth, 1)):
        blocks = [i for part in learn.heard(which) for i in part]
        if odd := [i for i in blocks if not -depth <= i < depth]:
            raise Refusal(f"the {who} has blocks 0 to {depth - 1}, and {odd[0]} is to be matched", where="objective.states", fix=f"0 to {depth - 1}")
        if which == 0 and setting.delta.lowest > min(i % depth for i in blocks):
            raise Refusal(
                f"block {min(i % depth for i in blocks)} of the student is to be matched, and nothing under block {setting.delta.lowest} moves",
                where="objective.states", fix="method: full, lora or adapter; or match higher blocks",
            )  # fmt: skip


def fits_file(file: Path, data: Dataset, learn: Distil) -> None:
    """What a file of stored answers says of itself goes with the run."""
    if learn.on_policy:
        raise Refusal(
            "`on_policy` and stored answers: nobody can be asked about what the student writes",
            where="objective.on_policy",
            fix="on_policy: 0, or a network as the teacher",
        )
    with safe_open(file, "pt") as f:
        said, has = f.metadata() or {}, set(f.keys())
    key = (manifest(file.parent) or {}).get("key", {}) if file.name == "teacher.safetensors" else {}
    labels = key.get("labels") or (json.loads(said["labels"]) if "labels" in said else None)
    if data.task.labels and labels is not None and tuple(labels) != data.task.labels:
        raise Refusal(f"{file} has the labels {', '.join(labels[:8])}, in this order; the data {', '.join(data.task.labels[:8])}", where="objective.teacher")
    stored_at = key.get("temperature", said.get("temperature"))
    if learn.kind == "generate" and stored_at is not None and float(stored_at) != learn.temperature:
        raise Refusal(
            f"{file} was stored at temperature {float(stored_at):g}, and the run is at {learn.temperature:g}",
            where="objective.temperature", why="of a distribution that was cut off, another temperature cannot be made", fix=f"temperature: {float(stored_at):g}",
        )  # fmt: skip
    if missing := {n for n in learn.needs if n.startswith("teacher")} - has:
        raise Refusal(
            f"{file} holds no {', '.join(sorted(missing))}", where="objective.teacher", fix="a network as the teacher, or leave out what is matched inside"
        )
