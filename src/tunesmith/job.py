"""From a recipe to the five nouns, side by side: everything a run needs, before its first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch

from .core import Delta, Method, Objective, Ragged, Run, Stage
from .dataset import Dataset, Part
from .embedder import guided
from .errors import Refusal
from .evaluate.evaluate import Probe
from .networks.decode import Sampling
from .networks.precision import DTYPES, Choice, Sizes, choose
from .networks.transformer import Transformer
from .parallel import told
from .predicting import write
from .progress import Reporter
from .prompting.asking import judge as in_words
from .prompting.asking import searching
from .recipe import Recipe, objective
from .reference import other_reference, others, reference
from .reinforcement import foreseen as playable
from .reinforcement import judge, notes, rollouts
from .shared import Shared
from .sources.answers import Answers
from .sources.features import Features
from .sources.rollouts import Rollouts
from .sources.table import Table
from .sources.text.encode import Reader
from .sources.text.examples import Dialogue
from .sources.witness import Witness
from .teaching.columns import foreseen as teachable
from .teaching.columns import taught
from .teaching.written import Written
from .updates import UPDATES, Descend, Search

Rows = Table | Features | Witness | Answers | Written  # a table, as it is or with more columns
Stream = Rows | Rollouts  # what is trained on


@dataclass
class Job:
    """A recipe with everything built, before the first step."""

    recipe: Recipe
    data: Dataset
    net: Transformer
    method: Method
    delta: Delta
    choice: Choice
    run: Run
    probe: Probe | None
    test: Probe | None
    notes: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------ build


def assemble(recipe: Recipe, data: Dataset, net: Transformer, reporter: Reporter, shared: Shared | None = None) -> Job:
    """Attach the method and put the five nouns together."""
    shared = shared or Shared()
    method, learn = recipe.built_method(), agreed(recipe, data)
    torch.manual_seed(recipe.seed)
    delta = method.attach(net, keep=shared.keeps or bool({"reference", "guide"} & learn.needs))
    learn.to(net.device).meet(net)
    net.recompute(recipe.recompute)
    fits(data, net, method.positions)
    table = Table(data.train.encoded.columns, data.task.name, recipe.update.batch, recipe.seed, net.device)
    choice = told(lambda: choose(sizes(net, table), net.device, recipe.dtype if recipe.model.bits is None else "bf16", recipe.kernel))
    net.compute, net.room.kernel = DTYPES[choice.dtype], choice.kernel
    delta.cast(net.compute, keep=shared.keeps)
    above = Above(net, delta, data, shared, reporter)
    setting = Setting(recipe, data, net, delta, learn, reporter, shared)
    source = enriched(above.cached("train", table), learn.needs, setting)
    stage = Stage("train", source, *lengths(recipe, table, source.period))
    run = Run(net, delta, learn, [stage], MOVERS[method.update](setting), seed=recipe.seed)
    probed = JUDGES.get(recipe.objective["kind"], by_labels)
    probes = [probed(part, enriched(above.of(part), learn.judges, setting), setting) if part else None for part in (data.eval, data.test)]
    said = NOTES[recipe.objective["kind"]](recipe, learn, stage.steps) if recipe.objective["kind"] in NOTES else []
    return Job(recipe, data, net, method, delta, choice, run, probes[0], probes[1], [*data.notes, *method.notes(net), *said])


def agreed(recipe: Recipe, data: Dataset) -> Objective:
    """The objective of a recipe on its rows. Raises Refusal, before weights are loaded, where one cannot serve the other."""
    learn = objective(data.task.kind, recipe.objective)
    learn.accept(data.train.encoded.columns, recipe.update.batch)
    if recipe.built_method().needs_head and not data.task.outputs and recipe.task != "generate":
        what = f"objective: {recipe.objective['kind']}" if learn.rows else f"task: {recipe.task}"
        raise Refusal(
            f"`method: {recipe.method['kind']}` and `{what}`, which has no head: nothing would move",
            where="method",
            fix="method: lora, layers or bitfit",
        )
    if learn.whole and recipe.update.kind == "descend":
        raise Refusal("`update: descend` and an objective in which all rows of a batch see each other", where="update.kind", fix="update: gradcache")
    for column in learn.needs & FORESEEN.keys():
        FORESEEN[column](recipe, data, learn)
    return learn


@dataclass(frozen=True)
class Setting:
    """All that a source may need to add a column."""

    recipe: Recipe
    data: Dataset
    net: Transformer
    delta: Delta
    objective: Objective
    reporter: Reporter
    shared: Shared = field(default_factory=Shared)

    def told(self, what: str) -> Callable[[int, int], None]:
        """A bar that hears how many of how many rows are done."""
        return bar_of(self.reporter, what)


def enriched(source: Any, wanted: Collection[str], setting: Setting) -> Any:
    """The source, with the columns that the objective wants and the data does not give."""
    for column in sorted(set(wanted) - source.gives):
        if column in ADDED and column not in source.gives:
            source = ADDED[column](source, setting)
    return source


ADDED: dict[str, Callable[[Any, Setting], Stream]] = {  # column -> the source that adds it
    "advantage": rollouts,
    "guide": guided,
    "other": others,
    "other_reference": other_reference,
    "reference": reference,
    "teacher": taught,
}
JUDGES: dict[str, Callable[[Part, Any, Setting], Probe]] = {"reinforce": judge, "cloze": in_words}  # objective -> how its runs are judged, where not by labels
FORESEEN: dict[str, Callable[[Recipe, Dataset, Any], None]] = {
    "advantage": playable,
    "teacher": teachable,
}  # column -> what can be refused before weights are loaded
NOTES: dict[str, Callable[[Recipe, Any, int], list[str]]] = {"reinforce": notes}


def descending(setting: Setting) -> Descend:
    u, learn = setting.recipe.update, setting.objective
    rate = u.rate or default_rate(setting.recipe.built_method(), setting.net, learn)
    form = UPDATES[u.kind or ("gradcache" if learn.whole else "descend")]
    return Descend(rate, u.schedule, u.warmup, u.decay, u.clip, micro=u.micro, form=form)


MOVERS: dict[str, Callable[[Setting], Descend | Search]] = {"descend": descending, "search": searching}  # a method's update -> what moves it


def default_rate(method: Method, net: Transformer, learn: Objective) -> float:
    """The method's own for this model, as far as the objective bears it."""
    return float(f"{method.rate(net.anatomy.kind, net.anatomy.width) * learn.pace:.2g}")


def fits(data: Dataset, net: Transformer, before: int) -> None:
    """Every row, with the positions that the method takes, has a position; every token a row in the embedding."""
    parts = [part for part in (data.train, data.eval, data.test) if part]
    ids = [part.encoded.columns["ids"] for part in parts]
    longest = max(max(column.lengths) for column in ids if isinstance(column, Ragged)) + before
    if net.anatomy.positions and longest > net.anatomy.positions:
        raise Refusal(
            f"a row of {longest} tokens, and the model has {net.anatomy.positions} positions",
            where="data.max_length",
            fix=f"max_length: {net.anatomy.positions - before}",
        )
    rows = len(net.get_submodule(net.anatomy.embedding).weight)  # type: ignore[arg-type]
    largest = max(int(column.values.max()) for column in ids if isinstance(column, Ragged))
    if largest >= rows:
        raise Refusal(
            f"the tokenizer gives token {largest}, and the model knows {rows}",
            where="model",
            why="tokenizer and weights come from different models",
            fix="use the tokenizer that was published with the weights",
        )


def sizes(net: Transformer, table: Table) -> Sizes:
    mean, a = sum(table.lengths) / len(table), net.anatomy
    heads = net.model.config.num_attention_heads
    return Sizes(round(sum(table.lengths) / len(table.examples) * table.size), round(mean), a.width, heads, a.head_dim)


@dataclass(frozen=True)
class Above:
    """Starts sources above a constant trunk where there is one: pooled rows for a pooled head, token states otherwise."""

    net: Transformer
    delta: Delta
    data: Dataset
    shared: Shared
    reporter: Reporter

    def cached(self, part: str, table: Table) -> Table | Features:
        floor, depth = self.delta.lowest, self.net.anatomy.depth
        if floor == 0 or not (self.net.skips or floor == depth) or self.net.anatomy.kind == "seq2seq":
            self.shared.states.clear()
            return table
        pooled = floor == depth and self.data.task.outputs > 0 and self.data.task.name in ("classify", "score")
        store = self.shared.store(part, self.data, self.net, floor, pooled)
        return Features(table, floor, pooled, bar_of(self.reporter, "frozen blocks, once"), store)

    def of(self, part: Part) -> Table | Features:
        return self.cached(part.name, Table(part.encoded.columns, self.data.task.name, device=self.net.device))


def bar_of(reporter: Reporter, what: str) -> Callable[[int, int], None]:
    """A callback that opens a bar with its first report and closes it with its last."""
    state: dict[str, Any] = {}

    def told(done: int, total: int) -> None:
        if "bar" not in state:
            state["context"] = reporter.bar(what)
            state["bar"] = state["context"].__enter__()
        state["bar"].told(done, total)
        if done >= total:
            state.pop("context").__exit__(None, None, None)
            state.pop("bar")

    return told


def lengths(recipe: Recipe, table: Table, period: int) -> tuple[int, int]:
    """Steps in all, and an epoch. Default: the stream's steps, or three epochs. A time budget ends the run itself; its steps are only a bound."""
    b = recipe.budget
    if own := recipe.built_method().steps:
        return min(own, b.steps or own), own  # judged at both ends
    unsaid = not (b.epochs or b.examples or b.tokens or b.minutes)
    if steps := b.steps or (recipe.built_stream().steps if unsaid else None):
        return steps, period
    if b.examples:
        return math.ceil(b.examples / table.size), period
    if b.tokens:
        return max(1, math.ceil(b.tokens / (sum(table.lengths) / table.period))), period
    return max(1, math.ceil((b.epochs or (10_000 if b.minutes else 3)) * period)), period


def by_labels(part: Part, source: Rows, setting: Setting) -> Probe:
    return probe_of(part, source, setting.data.reader, setting.recipe)


def probe_of(part: Part, source: Rows, reader: Reader, recipe: Recipe) -> Probe:
    """A part that can be asked about; its rows come from the source."""
    return Probe(part.name, source.once, part.task.kind, part.task.labels, references(part, part.task.kind), writer(part, reader, recipe))


def references(part: Part, kind: str) -> list[Any]:
    examples: Any = part.examples
    ways = {
        "single": lambda e: e.labels[0],
        "multi": lambda e: e.labels,
        "cloze": lambda e: e.labels[0],
        "score": lambda e: e.score,
        "tag": lambda e: list(e.tags),
        "generate": lambda e: e.turns[-1].content if isinstance(e, Dialogue) else e.text,
        "preferred": lambda e: e.chosen.turns[-1].content,
        "reward": lambda e: e.chosen.turns[-1].content,
        "judged": lambda e: e.good,
        "pairs": lambda e: 1,
        "similar": lambda e: e.score,
        "grouped": lambda e: e.label,
        "texts": lambda e: None,
    }
    return [ways[kind](e) for e in examples]


def writer(part: Part, reader: Reader, recipe: Recipe) -> Callable[[Any], list[str]] | None:
    """For dialogues: what the model answers to the first few; plain text is judged by its perplexity."""
    first: list[Any] = list(part.examples[: recipe.evaluate.samples])
    asked = [d.turns[:-1] for d in (getattr(e, "chosen", e) for e in first) if isinstance(d, Dialogue) and recipe.task == "generate"]
    return (lambda net: write(net, reader, asked, Sampling(recipe.evaluate.max_new_tokens))) if asked else None
