"""A recipe: what the user writes, checked key by key before anything is loaded, and what it builds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Le

from .aliases import ALIASES
from .construct import at, build, folded, options, strict, without_kind
from .contradictions import among, contradictions
from .core import Method, Objective
from .errors import Refusal
from .handed import from_file, handed_on
from .methods import METHODS
from .objectives import OBJECTIVES
from .recipe_yaml import Places, apply_overrides, closest, load_yaml
from .sections import TASKS, Budget, Data, Evaluation, HeadOptions, Model, Positive, Saving, Share, TaskOptions, UpdateOptions
from .sources.kinds import SOURCES
from .sources.streams import STREAMS, Stream
from .strategies import STRATEGIES, Strategy
from .updates import UPDATES, Form

IMPLIED = {"embed": "contrast"}  # the objective of a task, where the recipe names none and it is not learning from labels


@dataclass(frozen=True)
class Recipe:
    """The whole of a run. Sections are the dataclasses of sections.py; `method`, `objective`, `stream`, `strategy` and `update` are rows of their tables.

    tasks   several tasks on one network by name, instead of `task` and `data`; `task` is then theirs, or `several`
    """

    model: Model
    task: Literal["classify", "tag", "score", "generate", "embed", "several"] = "several"
    data: Data = field(default_factory=Data)
    method: Mapping[str, Any] = field(default_factory=lambda: {"kind": "lora"})
    head: HeadOptions = field(default_factory=HeadOptions)
    objective: Mapping[str, Any] = field(default_factory=lambda: {"kind": "supervised"})
    tasks: Mapping[str, TaskOptions] = field(default_factory=dict)
    stream: Mapping[str, Any] = field(default_factory=lambda: {"kind": "single"})
    strategy: Mapping[str, Any] = field(default_factory=lambda: {"kind": "naive"})  # how a sequence keeps what it has learnt
    update: UpdateOptions = field(default_factory=UpdateOptions)
    budget: Budget = field(default_factory=Budget)
    evaluate: Evaluation = field(default_factory=Evaluation)
    checkpoint: Saving = field(default_factory=Saving)
    out: str = "runs/{task}-{method}"
    seed: Annotated[int, Ge(0), Le(2**31 - 1)] = 0
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    kernel: Literal["auto", "matmul", "sdpa", "varlen"] = "auto"
    device: str = "auto"
    threads: Positive | None = None
    dropout: Share | None = None  # replaces the published dropout everywhere; by default 0 where an objective compares with a reference
    recompute: bool = False  # gradient checkpointing: less memory, a third more time

    @property
    def folder(self) -> Path:
        return Path(self.out.format(task=self.task, method=self.method["kind"], seed=self.seed)).expanduser()

    def built_method(self) -> Method:
        return build(METHODS[self.method["kind"]], without_kind(self.method), "method", None)

    def built_stream(self) -> Stream:
        return build(STREAMS[self.stream["kind"]], without_kind(self.stream), "stream", None)

    def built_update(self, default: str) -> Form:
        return build(UPDATES[self.update.kind or default], self.update.options, "update", None)

    def built_strategy(self) -> Strategy:
        return build(STRATEGIES[self.strategy["kind"]], without_kind(self.strategy), "strategy", None)

    def each(self) -> dict[str, Recipe]:
        """The recipe of each task by itself; of a recipe with one, the recipe."""
        made: dict[str, Recipe] = {
            name: replace(self, task=t.task, data=t.data, head=t.head, objective=implied(t.task, t.objective), tasks={}) for name, t in self.tasks.items()
        }
        return made or {self.task: self}

    @property
    def generates(self) -> bool:
        """Whether the vocabulary is among its heads."""
        return "generate" in (self.task, *(t.task for t in self.tasks.values()))

    @property
    def keeps_best(self) -> bool:
        return self.built_stream().chooses if self.evaluate.best is None else self.evaluate.best

    def plain(self) -> dict[str, Any]:
        """As it would be written, every default spelt out."""
        plain = json.loads(json.dumps(asdict(self)))
        plain["update"] |= plain["update"].pop("options")
        return plain

    def text(self) -> str:
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True)


SHORT = {"model": "name", **dict.fromkeys(("method", "objective", "stream", "strategy", "update", "head"), "kind")}  # `method: lora` is {kind: lora}


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override, check. Every complaint names file:line:column or the override."""
    data, places = load_yaml(str(path))
    given = [renamed(o) for o in overrides]
    if any(o.startswith("budget.") for o in given):
        data.pop("budget", None)  # a budget on the command line replaces the recipe's
    if given:
        data, places = apply_overrides(data, places, given)
    return recipe(data, places)


def renamed(override: str) -> str:
    key, sep, value = override.removeprefix("--").partition("=")
    return ALIASES.get(key.replace("-", "_"), key) + sep + value


def recipe(data: Mapping[str, Any], places: Places | None = None) -> Recipe:
    """A recipe from a dict, such as a parsed file. Raises Refusal with the key and the nearest right one."""
    found = unfolded(from_aliases(dict(data), places))
    if isinstance(found.get("tasks"), Mapping):
        found["tasks"] = {name: unfolded(dict(t)) if isinstance(t, Mapping) else t for name, t in found["tasks"].items()}
    if isinstance(section := found.get("update"), Mapping) and (row := UPDATES.get(str(section.get("kind") or "descend"))):
        found["update"] = folded(UpdateOptions, row, section, "update", places)
    complete(found, places)
    in_words(found, places)
    strict(Recipe, found, "", places, tuple(ALIASES))
    if not found.get("tasks") and not found["data"].get("train"):
        raise Refusal("`data.train` is missing", where=at(places, "data"), fix="data: {train: train.jsonl, eval: dev.jsonl}")
    for name, one in (found.get("tasks") or {}).items():
        strict(TaskOptions, one, f"tasks.{name}", places)
        kinds({"objective": one.get("objective")}, places, f"tasks.{name}.")
    kinds(found, places)
    found.setdefault("objective", implied(str(found["task"]), None))
    made = build(Recipe, found, "", places)
    for name, one in made.each().items():
        contradictions(one, places, name if made.tasks else "")
    among(made, places)
    still = any(OBJECTIVES[one.objective["kind"]].still for one in made.each().values())
    return replace(made, dropout=0.0) if made.dropout is None and still else made


def unfolded(found: dict[str, Any]) -> dict[str, Any]:
    """`method: lora` is {kind: lora}, and `data: desk` its train and eval."""
    found |= {key: {inner: found[key]} for key, inner in SHORT.items() if isinstance(found.get(key), str)}
    if isinstance(found.get("data"), str):
        found["data"] = {"train": found["data"]} | ({"eval": found["data"]} if found["data"].partition("/")[0] in ("desk", "play") else {})
    return found


def complete(found: dict[str, Any], places: Places | None) -> None:
    """A task with its data, or several; the kind that several are all of is the recipe's."""
    if tasks := found.get("tasks"):
        if doubled := [key for key, usual in DEFAULTS.items() if found.get(key) and not (isinstance(found[key], Mapping) and {**usual, **found[key]} == usual)]:
            raise Refusal(f"`{doubled[0]}` and `tasks`: each task has its own", where=at(places, doubled[0]), fix=f"tasks.{next(iter(tasks))}.{doubled[0]}")
        of = {t.get("task") for t in tasks.values() if isinstance(t, Mapping)}
        found["task"] = next(iter(of)) if len(of) == 1 else "several"
        found.setdefault("stream", {"kind": "mix"})
    for key in ("model", "task", *(() if tasks else ("data",))):
        if key not in found or (key == "task" and not tasks and found[key] == "several"):
            fix = {"model": "minilm", "task": "classify", "data": "{train: train.jsonl, eval: dev.jsonl}"}[key]
            raise Refusal(f"the recipe has no `{key}`", where=at(places, key), fix=f"{key}: {fix}")


def implied(task: str, objective: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return objective or {"kind": IMPLIED.get(task, "supervised")}


def in_words(found: dict[str, Any], places: Places | None) -> None:
    """What a file says of a prompt, and what a method hands on to its objective, is said by the objective."""
    for key in ("method", "objective"):
        for section in (found, *(found.get("tasks") or {}).values()):
            if isinstance(section, dict) and isinstance(section.get(key), Mapping):
                section[key] = from_file(dict(section[key]), places)
    row = METHODS.get(str(found["method"].get("kind"))) if isinstance(found.get("method"), Mapping) else None
    if row and row.implies:
        handed_on(found, row.implies, row.hands_on)


def from_aliases(data: dict[str, Any], places: Places | None) -> dict[str, Any]:
    """Top-level keys under the names other tools use, moved to ours."""
    for alias in [k for k in data if k in ALIASES]:
        section, _, key = ALIASES[alias].partition(".")
        value = data.pop(alias)
        if not key:
            data.setdefault(section, value)
            continue
        inside = data.get(section, {})
        inside = {SHORT.get(section, "kind"): inside} if isinstance(inside, str) else dict(inside)
        data[section] = {key: value} | inside
    return data


TABLES: dict[str, Mapping[str, Any]] = {"method": METHODS, "objective": OBJECTIVES, "stream": STREAMS, "strategy": STRATEGIES, "update": UPDATES}
OPTIONS: dict[str, Callable[[Any], type]] = {"objective": options, **dict.fromkeys(("method", "stream", "strategy"), lambda row: row)}
DEFAULTS = {"data": json.loads(json.dumps(asdict(Data()))), "head": asdict(HeadOptions()), "objective": {"kind": "supervised"}}


def kinds(data: Mapping[str, Any], places: Places | None, before: str = "") -> None:
    """The rows of the tables: the kind is known, and so are its options."""
    for name, table in TABLES.items():
        if data.get(name) is None:
            continue
        section, given = before + name, data[name]
        if not isinstance(given, Mapping):
            raise Refusal(f"`{section}` is {given!r}", where=at(places, section), fix=f"{name}: {next(iter(table))}, or {{kind: {next(iter(table))}, ...}}")
        kind = str(given.get("kind") or (next(iter(table)) if name != "method" else None))
        if kind not in table:
            near = closest(kind, table)
            raise Refusal(f"there is no {name} `{kind}`", where=at(places, section), fix=f"did you mean `{near}`?" if near else f"one of {', '.join(table)}")
        if name in OPTIONS:
            build(OPTIONS[name](table[kind]), without_kind(given), section, places)


def vocabulary() -> dict[str, list[str]]:
    """What `tunesmith list` prints."""
    return {
        "methods": list(METHODS),
        "objectives": list(OBJECTIVES),
        "sources": list(SOURCES),
        "streams": list(STREAMS),
        "strategies": list(STRATEGIES),
        "updates": [*UPDATES, *(row.update for row in METHODS.values() if not row.learns)],
        "tasks": list(TASKS),
    }


def objective(kind: str, given: Mapping[str, Any]) -> Objective:
    """The objective of a recipe. `kind` is the task's. Raises Refusal where the two do not go together."""
    return OBJECTIVES[given["kind"]](kind, **without_kind(given))
