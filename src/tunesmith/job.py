"""From a recipe to the five nouns, side by side: everything a run needs, before its first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from .core import Delta, Listener, Method, Objective, Ragged, Run
from .curriculum import growing, keys_of, known_after, narrow
from .dataset import Dataset, Part
from .embedder import guidable, guide_weighs, guided
from .errors import Refusal
from .evaluate.evaluate import Probe
from .judging import probe_of_all
from .listeners import Afresh, Conflicts, Opening
from .networks.precision import DTYPES, Choice, Sizes, choose
from .networks.transformer import Transformer
from .objectives.together import Together
from .parallel import told
from .progress import Reporter
from .prompting.asking import searching
from .recipe import Recipe, objective
from .reference import other_reference, others, reference
from .reinforcement import engine_weighs, notes, rollouts
from .reinforcement import foreseen as playable
from .shared import Shared
from .sources.enriched import Enriched
from .sources.features import Features
from .sources.rollouts import Rollouts
from .sources.streams import Mixed, Plan
from .sources.table import Table
from .strategies import Strategy
from .strategies.among import Among, Narrowing
from .teaching.columns import foreseen as teachable
from .teaching.columns import taught, weighed
from .teaching.written import Written
from .updates import Descend, Form, Search

Rows = Table | Enriched | Written  # a table, as it is or with more columns
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
    listeners: Sequence[Listener] = ()  # that belong to what is trained, before those that watch


# ------------------------------------------------------------------------------------------------ build


def assemble(recipe: Recipe, data: Dataset, net: Transformer, reporter: Reporter, shared: Shared | None = None) -> Job:
    """Attach the method and put the five nouns together."""
    shared = shared or Shared()
    method, strategy, stream, learn = recipe.built_method(), recipe.built_strategy(), recipe.built_stream(), agreed(recipe, data)
    learns = {name: learn.of(one.task.key) for name, one in data.each.items()}
    torch.manual_seed(recipe.seed)
    delta = method.attach(net, keep=shared.keeps or strategy.base or any({"reference", "guide"} & one.needs for one in learns.values()))
    strategy.meet(net, delta, {one.task.key: one.task.kind for one in data.each.values()})
    present = growing(recipe, data)
    among = Among(learn, present) if narrow(recipe, present, learn) else None
    learn = strategy.objective(among or learn)
    net.recompute(recipe.recompute)
    learn.to(net.device).meet(net)
    tables = tables_of(recipe, data, learn, net.device)
    for one in data.each.values():
        fits(one, net, method.positions)
    choice = told(lambda: choose(sizes(net, list(tables.values())), net.device, recipe.dtype if recipe.model.bits is None else "bf16", recipe.kernel))
    net.compute, net.room.kernel = DTYPES[choice.dtype], choice.kernel
    delta.cast(net.compute, keep=shared.keeps)
    each, places = recipe.each(), keys_of(data.parts)
    settings = {name: Setting(each.get(name, recipe), one, net, delta, learns[name], reporter, shared, places.get(name, "")) for name, one in data.each.items()}
    sources = {name: enriched(above(settings[name], "train", table), learns[name].needs, settings[name]) for name, table in tables.items()}
    stages = stream.stages(sources, Plan(partial(lengths, recipe), strategy.source, strategy.joins, recipe.seed))
    run = Run(net, delta, learn, stages, MOVERS[method.update](next(iter(settings.values())), learn, strategy), seed=recipe.seed)
    judged = lambda name, part: enriched(rows_of(settings[name], part), learns[name].judges, settings[name])
    probes = [probe_of_all(part, data, judged, settings) for part in ("eval", "test")]
    known = known_after(present)
    listeners = [Afresh(), *([Opening(net, data.task.key, known)] if known else []), *([Narrowing(among)] if among else []), strategy, Conflicts()]
    said = [line for name, s in settings.items() for column in added_for(learns[name]) for line in column.notes(s.recipe, learns[name], run.total)]
    said += strategy.notes(growing=bool(known) and known[0] < known[-1] and delta.lowest < net.anatomy.depth)
    return Job(recipe, data, net, method, delta, choice, run, probes[0], probes[1], [*data.notes, *method.notes(net), *said], listeners)


def tables_of(recipe: Recipe, data: Dataset, learn: Objective, device: torch.device) -> dict[str, Table]:
    """The training rows of each task, with as many in a batch as the stream has it."""
    rows = {name: len(one.train.examples) for name, one in data.each.items()}
    sizes = recipe.built_stream().sizes(rows, recipe.update.batch, recipe.built_strategy().joins)
    return {
        name: Table(one.train.encoded.columns, one.task.key, sizes[name], recipe.seed, learn.of(one.task.key).together, device)
        for name, one in data.each.items()
    }


def agreed(recipe: Recipe, data: Dataset) -> Objective:
    """The objective of a recipe on its rows. Raises Refusal, before weights are loaded, where one cannot serve the other."""
    each, stream = recipe.each(), recipe.built_stream()
    found = {one.task.key: agreed_for_one(each.get(name, recipe), one) for name, one in data.each.items()}
    recipe.built_method().foreseen(asdict(recipe.model))
    recipe.built_strategy().foreseen(recipe.built_method(), len(data.each))
    form_of(recipe, next(iter(found.values())))
    narrow(recipe, growing(recipe, data), next(iter(found.values())))
    if len(found) == 1:
        return next(iter(found.values()))
    weights = {one.task.key: recipe.tasks[name].weight if name in recipe.tasks else 1.0 for name, one in data.each.items()}
    return Together(found, weights, stream.mean if isinstance(stream, Mixed) else "task")


def form_of(recipe: Recipe, learn: Objective) -> Form:
    """How the gradient is formed; where the recipe does not say, as the objective asks."""
    return recipe.built_update("gradcache" if learn.whole else "descend")


def agreed_for_one(recipe: Recipe, data: Dataset) -> Objective:
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
    for column in added_for(learn):
        column.foresee(recipe, data, learn)
    return learn


@dataclass(frozen=True)
class Setting:
    """All that a source may need to add a column. `part`: of which of several tasks, as the name of a folder."""

    recipe: Recipe
    data: Dataset
    net: Transformer
    delta: Delta
    objective: Objective
    reporter: Reporter
    shared: Shared = field(default_factory=Shared)
    part: str = ""

    def told(self, what: str) -> Callable[[int, int], None]:
        """A bar that hears how many of how many rows are done."""
        return bar_of(self.reporter, what)


@dataclass(frozen=True)
class Column:
    """A column that an objective may want and no file gives.

    add      the source that adds it
    foresee  raises Refusal for what can be told before weights are loaded
    notes    what a run says of it first, given its steps
    beside   bytes of what is loaded for it: while the source is filled, and as long as the run goes on
    """

    add: Callable[[Any, Setting], Stream]
    foresee: Callable[[Recipe, Dataset, Any], None] = lambda recipe, data, learn: None
    notes: Callable[[Recipe, Any, int], list[str]] = lambda recipe, learn, steps: []
    beside: Callable[[Recipe, Dataset, Any], tuple[int, int]] = lambda recipe, data, learn: (0, 0)


COLUMNS = {
    "advantage": Column(rollouts, playable, notes, engine_weighs),
    "guide": Column(guided, guidable, beside=guide_weighs),
    "other": Column(others),
    "other_reference": Column(other_reference),
    "reference": Column(reference),
    "teacher": Column(taught, teachable, beside=weighed),
}


def added_for(learn: Objective) -> list[Column]:
    return [COLUMNS[name] for name in sorted(learn.needs & COLUMNS.keys())]


def enriched(source: Any, wanted: Collection[str], setting: Setting) -> Any:
    """The source, with the columns that the objective wants and the data does not give."""
    for name in sorted(set(wanted) & COLUMNS.keys()):
        if name not in source.gives:
            source = COLUMNS[name].add(source, setting)
    return source


def descending(setting: Setting, learn: Objective, strategy: Strategy) -> Descend:
    u = setting.recipe.update
    rate = u.rate or default_rate(setting.recipe.built_method(), setting.net, learn)
    return Descend(rate, u.schedule, u.warmup, u.decay, u.clip, micro=u.micro, form=strategy.form(form_of(setting.recipe, learn)))


MOVERS: dict[str, Callable[[Setting, Objective, Strategy], Descend | Search]] = {
    "descend": descending,
    "search": lambda setting, learn, strategy: searching(setting),
}  # a method's update -> what moves it


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


def sizes(net: Transformer, tables: Sequence[Table]) -> Sizes:
    rows, tokens, a = sum(map(len, tables)), sum(sum(table.lengths) for table in tables), net.anatomy
    heads = net.model.config.num_attention_heads
    return Sizes(round(tokens / sum(len(table.examples) for table in tables) * max(t.size for t in tables)), round(tokens / rows), a.width, heads, a.head_dim)


def above(setting: Setting, part: str, table: Table) -> Table | Features:
    """Starts above a constant trunk where there is one: pooled rows for a pooled head, token states otherwise."""
    net, task, shared = setting.net, setting.data.task, setting.shared
    floor, depth = setting.delta.lowest, net.anatomy.depth
    if floor == 0 or not (net.skips or floor == depth) or net.anatomy.kind == "seq2seq":
        shared.states.clear()
        return table
    pooled = floor == depth and task.outputs > 0 and task.name in ("classify", "score")
    store = shared.store(f"{setting.part}/{part}", setting.data, net, floor, pooled)
    return Features(table, floor, pooled, setting.told("frozen blocks, once"), store)


def rows_of(setting: Setting, part: Part) -> Table | Features:
    """Of a part that is judged."""
    return above(setting, part.name, Table(part.encoded.columns, setting.data.task.key, device=setting.net.device))


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


def lengths(recipe: Recipe, tables: Sequence[Table], period: int) -> tuple[int, int]:
    """Steps in all, and an epoch. Default: the stream's steps, or three epochs. A time budget ends the run itself; its steps are only a bound."""
    b = recipe.budget
    if own := recipe.built_method().steps:
        return min(own, b.steps or own), own  # judged at both ends
    unsaid = not (b.epochs or b.examples or b.tokens or b.minutes)
    if steps := b.steps or (recipe.built_stream().steps if unsaid else None):
        return steps, period
    if b.examples:
        return math.ceil(b.examples / recipe.update.batch), period
    if b.tokens:
        return max(1, math.ceil(b.tokens / (sum(sum(table.lengths) for table in tables) / period))), period
    return max(1, math.ceil((b.epochs or (10_000 if b.minutes else 3)) * period)), period
