"""Tunesmith: every way to fine-tune a Transformer, in one place, measured side by side on your own data.

import tunesmith
result = tunesmith.run("recipe.yaml")        # or a dict
tuned = tunesmith.load(result.folder)
tuned.predict(["where is my order?"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artifact import Tuned
    from .train import Result

__version__ = "0.1.0"
__all__ = ["load", "run"]


def run(recipe: str | dict[str, Any], *overrides: str, fresh: bool = False) -> Result:
    """Train by a recipe: a file's path, or its content as a dict. `overrides` are `key=value` as on the command line."""
    from . import recipe as recipes
    from .train import run as train

    return train(recipes.read_recipe(recipe, overrides) if isinstance(recipe, str) else recipes.recipe(recipe), fresh=fresh)


def load(folder: str) -> Tuned:
    """The tuned network in a run's folder."""
    from .artifact import load as load_artifact

    return load_artifact(folder)
