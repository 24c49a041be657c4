"""A recipe: what the user writes, checked key by key before anything is loaded, and what it builds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt

from .aliases import ALIASES
from .construct import at, build, options, strict, without_kind
from .core import Method, Objective
from .errors import Refusal
from .handed import from_file, handed_on
from .methods import METHODS
from .objectives import OBJECTIVES
from .recipe_yaml import Places, apply_overrides, closest, load_yaml
from .sources.kinds import SOURCES
from .sources.streams import STREAMS, Few, Single
from .updates import UPDATES

TASKS = ("classify", "tag", "score", "generate", "embed")
IMPLIED = {"embed": "contrast"}  # the objective of a task, where the recipe names none and it is not learning from labels
Positive = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class Model:
    """name: hub id, folder, `minilm` or `desk-lm`; bits: 4 or 8 for a quantised base; blocks: those that are kept, in order, for a student with
    dropped layers."""

    name: str
    revision: str | None = None
    bits: Literal[4, 8] | None = None
    blocks: tuple[Annotated[int, Ge(0)], ...] | None = None


@dataclass(frozen=True)
class Data:
    """train, eval, test: files, hub data sets or `desk`; eval may be a share of the training rows to hold out.

    prompts: what stands before texts to embed, by role: anchor and positive (negatives too), or text.
    unlabelled: a file of further rows, of which only the texts are read: for a teacher to label (`limit` does not count them).
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
    prompts: dict[Literal["anchor", "positive", "text"], str] = field(default_factory=dict)
    limit: Positive | None = None  # first rows of a seeded shuffle of the training file
    unlabelled: str | None = None
    inner: Annotated[float, Gt(0), Lt(1)] | None = None


@dataclass(frozen=True)
class HeadOptions:
    kind: Literal["linear", "mlp"] = "linear"
    pool: Literal["mean", "cls", "last"] | None = None
    hidden: Positive | None = None
    dropout: Share = 0.1


@dataclass(frozen=True)
class UpdateOptions:
    """kind: how the gradient is formed, by default as the objective asks; rate: peak learning rate, by default the method's own for this kind
    of architecture; batch: examples a step; micro: tokens a pass."""

    kind: Literal["descend", "gradcache"] | None = None
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
    """every: steps or `epoch`, by default each epoch, and for few rows at the end alone; patience: evaluations without a better one before the run
    stops (0: never); best: keep the best evaluation's weights, by default unless the rows are few."""

    every: Positive | Literal["epoch"] | None = None
    patience: Annotated[int, Ge(0)] = 0
    best: bool | None = None
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
    task: Literal["classify", "tag", "score", "generate", "embed"]
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
    dropout: Share | None = None  # replaces the published dropout everywhere; by default 0 where an objective compares with a reference
    recompute: bool = False  # gradient checkpointing: less memory, a third more time

    @property
    def folder(self) -> Path:
        return Path(self.out.format(task=self.task, method=self.method["kind"], seed=self.seed)).expanduser()

    def built_method(self) -> Method:
        return build(METHODS[self.method["kind"]], without_kind(self.method), "method", None)

    def built_stream(self) -> Single | Few:
        return build(STREAMS[self.stream["kind"]], without_kind(self.stream), "stream", None)

    @property
    def keeps_best(self) -> bool:
        return not self.built_stream().draws if self.evaluate.best is None else self.evaluate.best

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
    in_words(found, places)
    if isinstance(found.get("data"), str):
        found["data"] = {"train": found["data"]} | ({"eval": found["data"]} if found["data"] in ("desk", "play") else {})
    for key in ("model", "task", "data"):
        if key not in found:
            raise Refusal(
                f"the recipe has no `{key}`",
                where=at(places, key),
                fix=f"{key}: {dict(model='minilm', task='classify', data='{train: train.jsonl, eval: dev.jsonl}')[key]}",
            )
    strict(Recipe, found, "", places, tuple(ALIASES))
    kinds(found, places)
    found.setdefault("objective", {"kind": IMPLIED.get(str(found["task"]), "supervised")})
    made = build(Recipe, found, "", places)
    contradictions(made, places)
    return replace(made, dropout=0.0) if made.dropout is None and OBJECTIVES[made.objective["kind"]].still else made


def in_words(found: dict[str, Any], places: Places | None) -> None:
    """What a file says of a prompt, and what a method hands on to its objective, is said by the objective."""
    for section in ("method", "objective"):
        if isinstance(found.get(section), Mapping):
            found[section] = from_file(dict(found[section]), places)
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


TABLES: dict[str, Mapping[str, Any]] = {"method": METHODS, "objective": OBJECTIVES, "stream": STREAMS, "update": UPDATES}
OPTIONS: dict[str, Callable[[Any], type]] = {"method": lambda row: row, "objective": options, "stream": lambda row: row}


def kinds(data: Mapping[str, Any], places: Places | None) -> None:
    """The rows of the tables: the kind is known, and so are its options."""
    for section, table in TABLES.items():
        if data.get(section) is None:
            continue
        if not isinstance(data[section], Mapping):
            raise Refusal(
                f"`{section}` is {data[section]!r}", where=at(places, section), fix=f"{section}: {next(iter(table))}, or {{kind: {next(iter(table))}, ...}}"
            )
        kind = str(data[section].get("kind") or (next(iter(table)) if section != "method" else None))
        if kind not in table:
            near = closest(kind, table)
            raise Refusal(f"there is no {section} `{kind}`", where=at(places, section), fix=f"did you mean `{near}`?" if near else f"one of {', '.join(table)}")
        if section in OPTIONS:
            build(OPTIONS[section](table[kind]), without_kind(data[section]), section, places)


def contradictions(r: Recipe, places: Places | None) -> None:
    """Keys that are right one by one and wrong together."""
    limits = [k for k, v in asdict(r.budget).items() if v is not None]
    learn, moves = OBJECTIVES[r.objective["kind"]], METHODS[r.method["kind"]]
    serving = [name for name, row in OBJECTIVES.items() if r.task in row.tasks]
    checks: list[tuple[bool, str, str, str]] = [
        (r.task not in learn.tasks, "objective", f"`objective: {r.objective['kind']}` and `task: {r.task}`", f"objective: {' or '.join(serving)}; else task: {' or '.join(learn.tasks)}"),
        (bool(moves.implies) and r.objective["kind"] not in moves.implies.values(), "objective", f"`method: {r.method['kind']}`, which has no parameters, and `objective: {r.objective['kind']}`", f"objective: {next(iter(moves.implies.values()), '')}, with task: {next(iter(moves.implies), '')}"),
        (not moves.learns and r.objective.get("verbaliser", "manual") != "manual", "objective.verbaliser", f"`verbaliser: {r.objective.get('verbaliser')}`, which has parameters to learn, and `method: {r.method['kind']}`, which learns none", "verbaliser: manual, or another method"),
        (not moves.learns and bool(r.update.kind), "update.kind", f"`update: {r.update.kind}` and `method: {r.method['kind']}`, which has no gradient", "leave it out: candidates are searched"),
        (bool(learn.rows) and r.head != HeadOptions(), "head", f"`head` and `objective: {r.objective['kind']}`: words of the vocabulary are the classes", "leave `head` out"),
        (learn.whole and r.update.kind == "descend", "update.kind", f"`update: descend` and `objective: {r.objective['kind']}`, in which all rows of a batch see each other", "update: gradcache"),
        (len(limits) > 1, f"budget.{limits[-1] if limits else ''}", f"two budgets: {' and '.join(limits)}", "keep one of them"),
        (r.built_stream().draws and (r.evaluate.patience > 0 or bool(r.evaluate.best)), "evaluate", f"choosing on the rows that judge, and `stream: {r.stream['kind']}`: they are more than those to learn from", "leave `patience` and `best` out"),
        (r.evaluate.patience > 0 and r.data.eval is None, "evaluate.patience", "`evaluate.patience` needs `data.eval`", "data.eval: 0.1 holds out a tenth of the training rows"),
        (r.task == "generate" and r.head != HeadOptions(), "head", "`head` and `task: generate`: the vocabulary is the head", "leave `head` out"),
        (r.data.multi_label and r.task != "classify", "data.multi_label", f"`data.multi_label` and `task: {r.task}`", "task: classify"),
        (bool(r.data.prompts) and r.task != "embed", "data.prompts", f"`data.prompts` and `task: {r.task}`", "task: embed; other tasks have their prompts in the texts"),
        (r.task == "embed" and replace(r.head, pool=None) != HeadOptions(), "head", "`head` and `task: embed`: the pooled states are the embedding", "head: {pool: mean}, or cls or last, and no more"),
        (r.data.learn_prompt and r.task != "generate", "data.learn_prompt", f"`data.learn_prompt` and `task: {r.task}`", "task: generate"),
        (r.data.learn_prompt and learn.still, "data.learn_prompt", f"`data.learn_prompt` and `objective: {r.objective['kind']}`: answers are compared, not what was asked", "leave it out"),
        (learn.exact and bool(r.dropout or r.method.get("dropout")), "dropout", f"dropout and `objective: {r.objective['kind']}`: the policy that is scored is the one that wrote", "dropout: 0"),
        (learn.exact and r.budget.tokens is not None, "budget.tokens", f"`budget.tokens` and `objective: {r.objective['kind']}`: how long answers are is not known before", "budget: {steps: 200}"),
        (bool(r.objective.get("environment")) != (r.data.train.partition("/")[0] == "play"), "data.train", "an environment plays, and `data: play` has one", "data: play, with objective: {kind: reinforce, environment: tictactoe}"),
        (r.data.unlabelled is not None and not learn.unlabelled, "data.unlabelled", f"`data.unlabelled` and `objective: {r.objective['kind']}`, which learns from labels", f"objective: {next(n for n, o in OBJECTIVES.items() if o.unlabelled)}"),
        (r.data.unlabelled is not None and r.task == "generate", "data.unlabelled", "`data.unlabelled` and `task: generate`: prompts without answers", "objective.on_policy: 1, or have the teacher write the answers"),
        (r.dtype == "fp32" and r.model.bits is not None, "dtype", "`dtype: fp32` and `model.bits`: a quantised base computes in bf16", "dtype: bf16"),
        (r.kernel == "varlen" and r.device == "cpu", "kernel", "`kernel: varlen` and `device: cpu`", "kernel: auto"),
        (bool(r.objective.get("smoothing")) and r.task in ("score", "generate"), "objective.smoothing", f"`objective.smoothing` and `task: {r.task}`", "leave `smoothing` out"),
    ]  # fmt: skip
    for wrong, key, what, fix in checks:
        if wrong:
            raise Refusal(what, where=at(places, key), fix=fix)


def vocabulary() -> dict[str, list[str]]:
    """What `tunesmith list` prints."""
    return {
        "methods": list(METHODS),
        "objectives": list(OBJECTIVES),
        "sources": list(SOURCES),
        "streams": list(STREAMS),
        "updates": [*UPDATES, *(row.update for row in METHODS.values() if not row.learns)],
        "tasks": list(TASKS),
    }


def objective(kind: str, given: Mapping[str, Any]) -> Objective:
    """The objective of a recipe. `kind` is the task's. Raises Refusal where the two do not go together."""
    return OBJECTIVES[given["kind"]](kind, **without_kind(given))
