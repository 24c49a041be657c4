"""A recipe: what the user writes, checked key by key before anything is loaded, and what it builds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import TypeAdapter, ValidationError

from .aliases import ALIASES
from .core import Method, Objective
from .errors import Refusal
from .methods import METHODS
from .objectives import OBJECTIVES
from .recipe_yaml import Places, apply_overrides, closest, load_yaml
from .sources.kinds import SOURCES
from .updates import UPDATES

T = TypeVar("T")
TASKS = ("classify", "tag", "score", "generate")
Positive = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class Model:
    """name: hub id, folder, `minilm` or `desk-lm`; bits: 4 or 8 for a quantised base."""

    name: str
    revision: str | None = None
    bits: Literal[4, 8] | None = None


@dataclass(frozen=True)
class Data:
    """train, eval, test: files, hub data sets or `desk`; eval may be a share of the training rows to hold out.

    inner: a share of the training rows to judge by instead of eval and test, which are left unread (a search for options).
    """

    train: str
    eval: str | Annotated[float, Gt(0), Lt(1)] | None = None
    test: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    encoding: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    multi_label: bool = False
    bad_rows: Literal["stop", "skip"] = "stop"
    repair: bool = False
    max_length: Annotated[int, Ge(4)] | None = None
    template: Literal["auto", "chat", "plain"] = "auto"
    learn_prompt: bool = False
    limit: Positive | None = None  # first rows of a seeded shuffle of the training file
    inner: Annotated[float, Gt(0), Lt(1)] | None = None


@dataclass(frozen=True)
class HeadOptions:
    kind: Literal["linear", "mlp"] = "linear"
    pool: Literal["mean", "cls", "last"] | None = None
    hidden: Positive | None = None
    dropout: Share = 0.1


@dataclass(frozen=True)
class UpdateOptions:
    """rate: peak learning rate, by default the method's own for this kind of architecture; batch: rows a step."""

    kind: Literal["descend"] = "descend"
    rate: Annotated[float, Gt(0)] | None = None
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Share = 0.06
    decay: Annotated[float, Ge(0)] = 0.01
    clip: Annotated[float, Ge(0)] = 1.0
    batch: Positive = 32
    micro: Positive = 16384


@dataclass(frozen=True)
class Budget:
    """One of: epochs, steps, examples, tokens, minutes."""

    epochs: Annotated[float, Gt(0)] | None = None
    steps: Positive | None = None
    examples: Positive | None = None
    tokens: Positive | None = None
    minutes: Annotated[float, Gt(0)] | None = None


@dataclass(frozen=True)
class Evaluation:
    """every: steps or `epoch`; patience: evaluations without a better one before the run stops (0: never); best: keep the best."""

    every: Positive | Literal["epoch"] = "epoch"
    patience: Annotated[int, Ge(0)] = 0
    best: bool = True
    samples: Annotated[int, Ge(0)] = 16
    max_new_tokens: Positive = 64


@dataclass(frozen=True)
class Saving:
    every: Positive | Literal["epoch"] = "epoch"
    keep: Positive = 2


@dataclass(frozen=True)
class Recipe:
    """The whole of a run. Sections are the dataclasses above; `method` and `objective` are rows of their tables."""

    model: Model
    task: Literal["classify", "tag", "score", "generate"]
    data: Data
    method: Mapping[str, Any] = field(default_factory=lambda: {"kind": "lora"})
    head: HeadOptions = HeadOptions()
    objective: Mapping[str, Any] = field(default_factory=lambda: {"kind": "supervised"})
    stream: Mapping[str, Any] = field(default_factory=lambda: {"kind": "single"})
    update: UpdateOptions = UpdateOptions()
    budget: Budget = Budget()
    evaluate: Evaluation = Evaluation()
    checkpoint: Saving = Saving()
    out: str = "runs/{task}-{method}"
    seed: Annotated[int, Ge(0), Le(2**31 - 1)] = 0
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    kernel: Literal["auto", "matmul", "sdpa", "varlen"] = "auto"
    device: str = "auto"
    threads: Positive | None = None
    dropout: Share | None = None  # replaces the published dropout everywhere
    recompute: bool = False  # gradient checkpointing: less memory, a third more time

    @property
    def folder(self) -> Path:
        return Path(self.out.format(task=self.task, method=self.method["kind"], seed=self.seed)).expanduser()

    def built_method(self) -> Method:
        return build(METHODS[self.method["kind"]], without_kind(self.method), "method", None)

    def plain(self) -> dict[str, Any]:
        """As it would be written, every default spelt out."""
        return json.loads(json.dumps(asdict(self)))

    def text(self) -> str:
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True)


SHORT = {"model": "name", "method": "kind", "objective": "kind", "stream": "kind", "update": "kind", "head": "kind"}  # `method: lora` is {kind: lora}


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
    found = from_aliases(dict(data), places)
    for key, inner in SHORT.items():
        if isinstance(found.get(key), str):
            found[key] = {inner: found[key]}
    if isinstance(found.get("data"), str):
        found["data"] = {"train": found["data"]} | ({"eval": found["data"]} if found["data"] == "desk" else {})
    for key in ("model", "task", "data"):
        if key not in found:
            raise Refusal(
                f"the recipe has no `{key}`",
                where=at(places, key),
                fix=f"{key}: {dict(model='minilm', task='classify', data='{train: train.jsonl, eval: dev.jsonl}')[key]}",
            )
    made = build(Recipe, found, "", places)
    contradictions(made, places)
    return made


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


def build(cls: type[T], data: Any, path: str, places: Places | None) -> T:
    """A frozen dataclass from a dict: unknown keys refused with the closest, values checked by their annotations."""
    strict(cls, data, path, places)
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as e:
        raise first_fault(e, path, places) from e


def strict(cls: type, data: Any, path: str, places: Places | None) -> None:
    """Unknown keys, here and in the sections below."""
    if not isinstance(data, Mapping):
        raise Refusal(f"`{path}` is a section, not {data!r}", where=at(places, path), fix=f"{path}: {{{fields(cls)[0].name}: ...}}")
    known = {f.name for f in fields(cls)}
    for key in data:
        if key not in known:
            near = closest(str(key), [*known, *ALIASES] if not path else known)
            full = f"{path}.{key}" if path else str(key)
            raise Refusal(f"unknown key `{full}`", where=at(places, full), fix=f"did you mean `{near}`?" if near else f"known here: {', '.join(sorted(known))}")
        if key in SECTIONS and not path:
            strict(SECTIONS[key], data[key], key, places)
    if not path:
        kinds(data, places)


SECTIONS: dict[str, type] = {name: kind for name, kind in get_type_hints(Recipe).items() if is_dataclass(kind)}  # type: ignore[misc]
TABLES: dict[str, Mapping[str, type]] = {"method": METHODS, "objective": OBJECTIVES, "stream": {"single": Recipe}, "update": UPDATES}


def kinds(data: Mapping[str, Any], places: Places | None) -> None:
    """The rows of the tables: the kind is known, and so are its options."""
    for section, table in TABLES.items():
        if section not in data:
            continue
        if not isinstance(data[section], Mapping):
            raise Refusal(
                f"`{section}` is {data[section]!r}", where=at(places, section), fix=f"{section}: {next(iter(table))}, or {{kind: {next(iter(table))}, ...}}"
            )
        kind = data[section].get("kind", next(iter(table)) if section != "method" else None)
        if kind not in table:
            near = closest(str(kind), table)
            raise Refusal(f"there is no {section} `{kind}`", where=at(places, section), fix=f"did you mean `{near}`?" if near else f"one of {', '.join(table)}")
        if section == "method":
            build(table[kind], without_kind(data[section]), "method", places)


def without_kind(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k != "kind"}


def first_fault(error: ValidationError, path: str, places: Places | None) -> Refusal:
    """pydantic's first complaint as one line: the key, what was given, what is allowed."""
    faults = error.errors()
    fault = max(faults, key=lambda f: f["type"] not in ("none_required", "literal_error")) if len(faults) > 1 else faults[0]
    names = [str(part) for part in fault["loc"] if isinstance(part, str) and part.isidentifier()]
    key = ".".join([*([path] if path else []), *names])
    if fault["type"] == "missing":
        return Refusal(f"`{key}` is missing", where=at(places, key))
    wanted = fault["msg"].removeprefix("Input should be ")
    return Refusal(f"`{key}` is {fault['input']!r}", where=at(places, key), fix=f"it should be {wanted}")


def contradictions(r: Recipe, places: Places | None) -> None:
    """Keys that are right one by one and wrong together."""
    limits = [k for k, v in asdict(r.budget).items() if v is not None]
    checks: list[tuple[bool, str, str, str]] = [
        (len(limits) > 1, f"budget.{limits[-1] if limits else ''}", f"two budgets: {' and '.join(limits)}", "keep one of them"),
        (r.evaluate.patience > 0 and r.data.eval is None, "evaluate.patience", "`evaluate.patience` needs `data.eval`", "data.eval: 0.1 holds out a tenth of the training rows"),
        (r.task == "generate" and r.head != HeadOptions(), "head", "`head` and `task: generate`: the vocabulary is the head", "leave `head` out"),
        (r.data.multi_label and r.task != "classify", "data.multi_label", f"`data.multi_label` and `task: {r.task}`", "task: classify"),
        (r.data.learn_prompt and r.task != "generate", "data.learn_prompt", f"`data.learn_prompt` and `task: {r.task}`", "task: generate"),
        (r.dtype == "fp32" and r.model.bits is not None, "dtype", "`dtype: fp32` and `model.bits`: a quantised base computes in bf16", "dtype: bf16"),
        (r.kernel == "varlen" and r.device == "cpu", "kernel", "`kernel: varlen` and `device: cpu`", "kernel: auto"),
        (bool(r.objective.get("smoothing")) and r.task in ("score", "generate"), "objective.smoothing", f"`objective.smoothing` and `task: {r.task}`", "leave `smoothing` out"),
    ]  # fmt: skip
    for wrong, key, what, fix in checks:
        if wrong:
            raise Refusal(what, where=at(places, key), fix=fix)


def at(places: Places | None, key: str) -> str:
    return places.where(key) if places else key


def vocabulary() -> dict[str, list[str]]:
    """What `tunesmith list` prints."""
    return {"methods": list(METHODS), "objectives": list(OBJECTIVES), "sources": list(SOURCES), "updates": list(UPDATES), "tasks": list(TASKS)}


def objective(kind: str, options: Mapping[str, Any]) -> Objective:
    """The objective of a recipe. `kind` is the task's."""
    return OBJECTIVES[options["kind"]](kind, **without_kind(options))
