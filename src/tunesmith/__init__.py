"""Tunesmith: every way to fine-tune a Transformer, in one place, measured side by side on your own data.

import tunesmith
result = tunesmith.run("recipe.yaml")        # or a dict
tuned = tunesmith.load(result.folder)
tuned.predict(["where is my order?"])

tunesmith.recommend("recipe.yaml")           # which rows of the guide fit, before anything is trained
tunesmith.compare("recipe.yaml", ["lora", "full"]).table
tunesmith.explain("lora", rank=32)           # what moves; a drawing in a notebook
tunesmith.pet("few.yaml", [{"method": "lora"}, {"objective": "setfit"}], "texts.jsonl")  # few labels, many texts
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .advice.recommend import Advice
    from .artifact import Tuned
    from .comparison.compare import Comparison
    from .explanation.explain import Explanation
    from .recipe import Recipe
    from .train import Result

__version__ = "0.1.0"
__all__ = ["compare", "explain", "load", "pet", "recommend", "run"]


def run(recipe: str | dict[str, Any], *overrides: str, fresh: bool = False) -> Result:
    """Train by a recipe: a file's path, or its content as a dict. `overrides` are `key=value` as on the command line."""
    from .train import run as train

    return train(_recipe(recipe, overrides), fresh=fresh)


def load(folder: str) -> Tuned:
    """The tuned network in a run's folder."""
    from .artifact import load as load_artifact

    return load_artifact(folder)


def compare(recipe: str | dict[str, Any], methods: Sequence[str] | None = None, *overrides: str, seeds: int = 3, **options: Any) -> Comparison:
    """Train a recipe by several methods, all eight if none are named, with baselines. `options`: those of `tunesmith.comparison.compare.compare`."""
    from .comparison.arms import EIGHT
    from .comparison.compare import compare as measure

    return measure(_recipe(recipe, overrides), methods or EIGHT, seeds=seeds, **options)


def pet(recipe: str | dict[str, Any], members: Sequence[dict[str, Any]], unlabelled: str, *overrides: str, **options: Any) -> Result:
    """Runs that differ in method or objective label the texts of a file, and a student learns from them. `options`: those of `tunesmith.labelling.pet`."""
    from .labelling import pet as taught

    return taught(_recipe(recipe, overrides), members, unlabelled, **options)


def recommend(target: str, *overrides: str, **options: Any) -> Advice:
    """Which rows of the guide fit a recipe or a data file. `options`: those of `tunesmith.advice.recommend.recommend`, and its `Wishes` by name."""
    from dataclasses import fields

    from .advice.case import Wishes
    from .advice.recommend import recommend as advise

    wished = {f.name: options.pop(f.name) for f in fields(Wishes) if f.name in options}
    return advise(target, overrides, wishes=Wishes(**wished), **options)


def explain(row: str, model: str = "minilm", **options: Any) -> Explanation:
    """What one row of the guide does to a model. `options` are those of the method."""
    from .explanation.explain import explain as look

    return look(row, model, [f"{key}={value}" for key, value in options.items()])


def _recipe(given: str | dict[str, Any], overrides: Sequence[str]) -> Recipe:
    from . import recipe as recipes

    return recipes.read_recipe(given, overrides) if isinstance(given, str) else recipes.recipe(given)
