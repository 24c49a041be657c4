"""Which runs a comparison is made of: methods, seeds, and any key of the recipe as a further axis."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from ..errors import Refusal
from ..methods import METHODS
from ..recipe import Recipe, recipe, renamed
from ..recipe_yaml import Places, apply_overrides, closest
from ..sections import Budget

EIGHT = tuple(name for name, row in METHODS.items() if name != "peft" and row.learns and not row.builds)
TIME, NUMBER = re.compile(r"([0-9.]+)([smh])"), re.compile(r"([0-9.]+)([kM]?)")
COMMA = re.compile(r",(?![^\[{]*[\]}])")  # not inside brackets


@dataclass(frozen=True)
class Arm:
    """One run. `label` says what sets it apart from the others, seeds not counted; `tuning`, what the search of its rate found and took.

    apart   its tasks are trained each by itself
    """

    label: str
    recipe: Recipe
    tuning: Mapping[str, Any] | None = None
    apart: bool = False


def arms(base: Recipe, methods: Sequence[str], seeds: int, vary: Sequence[str] = ()) -> list[Arm]:
    """Every method x every value of every axis x seeds; an axis `method.x` concerns the methods that have an option x.

    The arms of one label follow each other, the heads come first: they read the states that the baselines have computed.
    """
    axes = dict(axis(text) for text in vary)
    known(methods, axes)
    return [
        Arm(label, seeded(made, folder_of(base, label), base.seed + i))
        for name in sorted(methods, key=lambda name: name != "head")
        for label, made in variants(base, name, axes)
        for i in range(seeds)
    ]


def budget_of(text: str) -> str:
    """`20m`, `90s`, `2h`, `steps=500`, `tokens=2M` ... as an override of the recipe."""
    key, sep, value = text.partition("=")
    if not sep and (found := TIME.fullmatch(text)):
        return f"budget.minutes={float(found[1]) * {'s': 1 / 60, 'm': 1, 'h': 60}[found[2]]:g}"
    if sep and key in {f.name for f in fields(Budget)} and (found := NUMBER.fullmatch(value)):
        return f"budget.{key}={float(found[1]) * {'': 1, 'k': 1e3, 'M': 1e6}[found[2]]:.12g}"
    raise Refusal(f"{text!r} is no budget", where="--budget", fix="20m, epochs=3, steps=500, examples=10k or tokens=2M")


def axis(text: str) -> tuple[str, list[str]]:
    """`update.rate=1e-3,2e-3` -> its key and its values."""
    key, sep, values = renamed(text).partition("=")
    if not sep or not values:
        raise Refusal(f"{text!r} is no axis", where="--vary", fix="--vary update.rate=1e-3,2e-3")
    return key, [value.strip() for value in COMMA.split(values)]


def known(methods: Sequence[str], axes: Mapping[str, Sequence[str]]) -> None:
    for name in methods:
        if name not in METHODS:
            near = closest(name, METHODS)
            raise Refusal(f"there is no method `{name}`", where="--methods", fix=f"did you mean `{near}`?" if near else f"one of {', '.join(METHODS)}")
    for key in axes:
        if key in ("seed", "out", "method", "method.kind"):
            raise Refusal(
                f"`{key}` is not an axis", where="--vary", fix="--seeds N" if key == "seed" else "--methods a,b" if "method" in key else "leave it out"
            )
        options = {f"method.{f.name}" for name in methods for f in fields(METHODS[name])}  # type: ignore[arg-type]
        if key.startswith("method.") and key not in options:
            raise Refusal(f"none of these methods has the option `{key}`", where="--vary", fix=f"one of {', '.join(sorted(options)) or 'no option'}")


def variants(base: Recipe, name: str, axes: Mapping[str, Sequence[str]]) -> list[tuple[str, Recipe]]:
    """Of one method: its own options from the recipe if that is the recipe's method, and one variant a combination of the axes."""
    method = dict(base.method) if base.method["kind"] == name else {"kind": name}
    has = {f"method.{f.name}" for f in fields(METHODS[name])}  # type: ignore[arg-type]
    mine = {key: values for key, values in axes.items() if not key.startswith("method.") or key in has}
    found = []
    for values in product(*mine.values()):
        given = [f"{key}={value}" for key, value in zip(mine, values, strict=True)]
        data: dict[str, Any] = {**base.plain(), "method": method}
        if any(text.startswith("budget.") for text in given):
            data.pop("budget")
        made = recipe(*apply_overrides(data, Places("the recipe", {}), given))
        short = [f"{key.removeprefix('method.')}={value}" for key, value in zip(mine, values, strict=True)]
        found.append((" ".join([name, *short]), made))
    return found


def folder_of(base: Recipe, label: str) -> Path:
    return base.folder / "arms" / re.sub(r"[^\w.=+-]+", "-", label)


def seeded(made: Recipe, folder: Path, seed: int) -> Recipe:
    """An arm never chooses on the eval set: no best checkpoint, no early stop."""
    evaluate = replace(made.evaluate, best=False, patience=0)
    return replace(made, seed=seed, evaluate=evaluate, out=escaped(folder / f"seed-{seed}"))


def escaped(folder: Path) -> str:
    """As `out` of a recipe, in which braces stand for its keys."""
    return str(folder).replace("{", "{{").replace("}", "}}")
