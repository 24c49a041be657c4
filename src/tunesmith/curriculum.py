"""The data of several tasks on one network, and of one task whose rows arrive in parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

from torch import nn

from .core import Objective
from .dataset import Dataset, Rows, labels_in, made_of, read_data, read_rows
from .errors import Refusal
from .objectives.supervised import Supervised
from .recipe import Recipe
from .recipe_yaml import closest
from .sources.streams import InTurn, label_of
from .sources.text.examples import Example
from .sources.text.task import Task, task_of

TAKEN = frozenset(dir(nn.ModuleDict()))  # what a module among others may not be called


def read_all(recipe: Recipe) -> Dataset:
    """All data of a recipe. Raises Refusal on anything that cannot be learnt from, before a weight is loaded."""
    stream = recipe.built_stream()
    if recipe.tasks:
        each = recipe.each()
        return together(each, {name: read_rows(one) for name, one in each.items()}, stream.scenario or "task" if isinstance(stream, InTurn) else "task")
    if isinstance(stream, InTurn):
        rows = parted(read_rows(recipe), stream)
        return together(dict.fromkeys(rows, recipe), rows, stream.scenario or ("domain" if same_labels(rows) else "class"))
    return read_data(recipe)


def together(recipes: Mapping[str, Recipe], rows: Mapping[str, Rows], scenario: str) -> Dataset:
    """The parts, and what they are together: where they share a head, all their rows, in their order; else the first stands for them."""
    own = {name: task_of(one.task, rows[name].examples["train"], one.data.multi_label) for name, one in recipes.items()}
    first, one = next(iter(recipes.items()))
    if scenario == "task" or not any(task.outputs for task in own.values()):
        keys = keys_of(own)
        keyed = {name: replace(task, head=keys[name] if task.outputs else "") for name, task in own.items()}
        parts = {name: made_of(recipes[name], rows[name], task) for name, task in keyed.items()}
        apart = len({task.key for task in keyed.values()}) > 1
        return replace(parts[first] if apart else made_of(one, all_rows(rows), own[first]), parts=parts, notes=notes(parts, scenario))
    shared = one_task(own, scenario)
    parts = {name: made_of(recipes[name], rows[name], shared) for name in recipes}
    return replace(made_of(one, all_rows(rows), shared), parts=parts, notes=notes(parts, scenario))


def one_task(own: Mapping[str, Task], scenario: str) -> Task:
    """One head for all; to a class-incremental one, labels come in the order of the parts."""
    kinds = {(task.name, task.kind) for task in own.values()}
    if len(kinds) > 1 or (scenario == "class" and next(iter(kinds))[1] not in ("single", "multi")):
        named = ", ".join(f"{name}: {task.name} ({task.kind})" for name, task in own.items())
        raise Refusal(f"`scenario: {scenario}` and tasks that cannot share a head", where="stream.scenario", why=named, fix="scenario: task")
    if scenario == "domain" and len({task.labels for task in own.values()}) > 1:
        raise Refusal("`scenario: domain` and parts with labels of their own", where="stream.scenario", fix="scenario: class, or task")
    return replace(next(iter(own.values())), labels=tuple(dict.fromkeys(label for task in own.values() for label in task.labels)))


def labels_of_parts(data: Dataset) -> list[list[int]]:
    """Which of the head's labels each part has."""
    index = {label: i for i, label in enumerate(data.task.labels)}
    return [sorted({index[label] for e in part.train.examples for label in labels_in(e)}) for part in data.parts.values()]


def known_after(present: Sequence[Sequence[int]]) -> list[int]:
    """How many labels a head knows once each part has come."""
    return list(accumulate((max(labels, default=-1) + 1 for labels in present), max))


def growing(recipe: Recipe, data: Dataset) -> list[list[int]]:
    """Which labels each part has, where they come to a head that all parts share; none where it knows all from the first."""
    apart = len({one.task.key for one in data.parts.values()}) != 1
    if not recipe.built_stream().grows or recipe.built_strategy().joins or apart or not (data.task.labels and data.task.outputs):
        return []
    return labels_of_parts(data)


def narrow(recipe: Recipe, present: Sequence[Sequence[int]], learn: Objective) -> bool:
    """Whether new rows are told apart among the labels of their stage alone (`present`, see growing). Raises Refusal where that is asked for and says nothing."""
    stream, strategy = recipe.built_stream(), recipe.built_strategy()
    asked = stream.among if isinstance(stream, InTurn) else None
    possible = len({tuple(labels) for labels in present}) > 1 and isinstance(learn, Supervised)
    if asked == "stage" and not possible and not strategy.joins:
        raise Refusal(
            "`among: stage`, and no labels that come to one head and are learnt as they are",
            where="stream.among",
            fix="scenario: class and objective: supervised; else leave `among` out",
        )
    return possible and (asked or strategy.among) == "stage"


def notes(parts: Mapping[str, Dataset], scenario: str) -> list[str]:
    rows = ", ".join(f"{name} ({len(part.train.examples):,})" for name, part in parts.items())
    told = {"task": "a head each", "class": "one head, to which labels come", "domain": "one head, the same labels"}[scenario]
    return list(dict.fromkeys([f"tasks: {rows}; {told}", *(note for part in parts.values() for note in part.notes)]))


def all_rows(rows: Mapping[str, Rows]) -> Rows:
    first = next(iter(rows.values()))
    names = {name for part in rows.values() for name in part.examples}
    examples: dict[str, list[Example]] = {
        name: [e for part in rows.values() for e in part.examples.get(name, ())] for name in ("train", "eval", "test") if name in names
    }
    return Rows({}, {name: next(p.formats[name] for p in rows.values() if name in p.formats) for name in examples} or first.formats, examples)


def keys_of(names: Iterable[str]) -> dict[str, str]:
    """Each as the name of a module: one of its own, and none that a module has already, such as `train` or `type`. Those that come later change nothing."""
    found: dict[str, str] = {}
    for name in names:
        key = re.sub(r"\W+", "_", name)
        while key in found.values() or key in TAKEN:
            key += "_"
        found[name] = key
    return found


# ------------------------------------------------------------------------------------------------ one file in parts


def parted(rows: Rows, stream: InTurn) -> dict[str, Rows]:
    """The rows of one task by the values of a column."""
    assert stream.by
    value = {name: values(rows, name, stream.by) for name in rows.examples}
    found = ordered(list(dict.fromkeys(value["train"])), stream)
    into = grouped(found, stream.into or len(found))
    part_of = {v: name for name, vs in into.items() for v in vs}
    if odd := [v for vs in value.values() for v in vs if v not in part_of]:
        raise Refusal(f"`{odd[0]}` in the column {stream.by} occurs in no training row", where="stream.by", fix=f"known: {', '.join(part_of)}"[:300])
    pick = lambda part, name: [e for e, v in zip(rows.examples[part], value[part], strict=True) if part_of[v] == name]
    return {name: Rows(rows.records, rows.formats, {part: found for part in rows.examples if (found := pick(part, name))}) for name in into}


def values(rows: Rows, part: str, by: str) -> list[str]:
    if by == "label":
        return [label_of(e) for e in rows.examples[part]]
    records = rows.records[part]
    if by not in records.columns:
        near = closest(by, records.columns)
        raise Refusal(
            f"{records.path} has no column `{by}`", where="stream.by", fix=f"did you mean `{near}`?" if near else f"one of {', '.join(records.columns)}"
        )
    return [str(records.rows[e.row].get(by)) for e in rows.examples[part]]


def ordered(found: list[str], stream: InTurn) -> list[str]:
    if not stream.order:
        return found
    if set(stream.order) != set(found):
        odd = sorted(set(stream.order) ^ set(found))
        raise Refusal(f"`stream.order` and the column {stream.by} differ in {', '.join(odd[:5])}", where="stream.order", fix=f"name each once: {found}"[:300])
    return list(stream.order)


def grouped(found: Sequence[str], into: int) -> dict[str, list[str]]:
    """The values in `into` parts of like number, in order."""
    if not 1 < into <= len(found):
        raise Refusal(f"{len(found)} values in {into} parts", where="stream.into", why=", ".join(found[:10]), fix=f"2 to {len(found)}")
    cuts = [round(i * len(found) / into) for i in range(into + 1)]
    parts = [list(found[a:b]) for a, b in pairwise(cuts)]
    return {named(part, i): part for i, part in enumerate(parts)}


def named(part: Sequence[str], i: int) -> str:
    return part[0] if len(part) == 1 else f"{i + 1}: {part[0]} +{len(part) - 1}"


def same_labels(rows: Mapping[str, Rows]) -> bool:
    sets: list[Any] = [{label for e in part.examples["train"] for label in labels_in(e)} for part in rows.values()]
    return all(labels == sets[0] for labels in sets)
