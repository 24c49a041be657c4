"""What a choice of method depends on: what the user said, what the file says, and what the model is."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..dataset import Dataset, desk_records
from ..errors import Refusal
from ..recipe import Recipe, read_recipe, recipe
from ..recipe_yaml import Places, apply_overrides
from ..sources.text.read import read
from ..start import MODELS, sniff
from .rehearsal import Rehearsal
from .shape import Shape

PAIRED = ({"anchor", "positive"}, {"query", "positive"}, {"sentence1", "sentence2"}, {"text", "paraphrase"}, {"question", "passage"})
ORDERED = ("task", "domain", "dataset", "stage")


@dataclass(frozen=True)
class Wishes:
    """What no file says.

    memory    bytes that may be used; None: what the device has
    tasks     how many are to be served from one base
    keep      what the base knows must not be lost
    over_time tasks or data arrive one after another
    teacher   a larger model at hand
    reward    how good an answer is can be computed
    """

    memory: int | None = None
    tasks: int = 1
    keep: bool = False
    over_time: bool = False
    teacher: str | None = None
    reward: bool = False


@dataclass(frozen=True)
class Signs:
    """What the columns of the training file say beside its task.

    pairs        two texts a row that belong together, and no label
    preferences  a better and a worse answer
    groups       a column that splits the rows into tasks or domains, and its values
    unlabelled   texts alone
    """

    pairs: bool = False
    preferences: bool = False
    groups: tuple[str, int] | None = None
    unlabelled: bool = False


@dataclass(frozen=True)
class Case:
    """`recipe` and `data` are None where no task can be learnt from the file as it is (pairs, preferences)."""

    name: str
    signs: Signs
    wishes: Wishes
    recipe: Recipe | None = None
    data: Dataset | None = None
    shape: Shape | None = None
    rehearsals: Mapping[str, Rehearsal] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return self.recipe.task if self.recipe else ""

    @property
    def kind(self) -> str:
        """encoder, decoder or seq2seq; of a case without a network nothing."""
        return next((r.kind for r in self.rehearsals.values()), "")

    @property
    def each(self) -> float:
        """Rows a label."""
        return self.shape.rows / max(1, self.shape.labels) if self.shape else 0.0

    @property
    def memory(self) -> int:
        """Bytes at hand."""
        return self.wishes.memory or available()


def available() -> int:
    """Bytes free on the device that a run would take."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    info = Path("/proc/meminfo")
    if info.exists():
        return next(int(line.split()[1]) * 1024 for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    return 8 << 30


def bytes_of(text: str) -> int:
    """`8G`, `512M`, `1.5GiB`: bytes."""
    found = re.fullmatch(r"([0-9.]+)\s*([kMGT]?)(i?)B?", text.strip())
    if not found or float(found[1]) <= 0:
        raise Refusal(f"{text!r} is no size", where="--memory", fix="8G, 512M or 1.5GiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kMGT".index(found[2] or " "))


def planned(target: str, given: list[str], model: str | None, task: str | None) -> tuple[Recipe | None, Signs]:
    """From a recipe or a data file. No recipe where the file teaches no task as it is; its signs then say what it is for."""
    extra = [*given, *([f"model={model}"] if model else []), *([f"task={task}"] if task else [])]
    if Path(target).suffix in (".yaml", ".yml"):
        made = read_recipe(Path(target), extra)
        first = next(iter(made.each().values()))
        return made, signs_of(first.data.train, first.task)
    signs = signs_of(target, task or "classify")
    if (signs.pairs or signs.preferences) and not task:
        return None, signs
    name = task or ("classify" if target.partition("/")[0] == "desk" else sniff(target)[0])
    plain: dict[str, Any] = {
        "model": model or MODELS[name],
        "task": name,
        "data": {"train": target, "eval": "desk" if target == "desk" else 0.1},
        "method": "lora",
        **({"objective": "prefer"} if signs.preferences else {}),
    }
    return recipe(*apply_overrides(plain, Places(target, {}), given)), signs


def signs_of(train: str, task: str) -> Signs:
    records = desk_records(train, task, "train") if train.partition("/")[0] == "desk" else read(train)
    columns = {str(name).lower() for name in (records.rows[0] if records.rows else {})}
    labelled = bool(columns & {"label", "labels", "category", "score", "tags", "completion", "messages", "output", "response", "conversations"})
    group = next((name for name in ORDERED if name in columns), None)
    values = len({str(row.get(group)) for row in records.rows}) if group else 0
    return Signs(
        pairs=paired(columns) and not labelled,
        preferences={"chosen", "rejected"} <= columns,
        groups=(group, values) if group and 1 < values <= 200 else None,
        unlabelled=columns == {"text"} and task != "generate",
    )


def paired(columns: Collection[str]) -> bool:
    return any(pair <= set(columns) for pair in PAIRED)
