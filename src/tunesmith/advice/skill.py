"""How much of a task the frozen trunk knows already: what a linear head on its states reaches on training rows that the head has not seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..comparison.baselines import states
from ..job import assemble
from ..progress import Reporter
from ..recipe import Recipe
from ..shared import Shared

ROWS, TOKENS = 2000, 4000  # that are asked at most
FOLDS = 3
PENALTY = 0.01  # C of the logistic regression: strong, since rows may be as few as dimensions


def skill_of(recipe: Recipe, shared: Shared) -> float | None:
    """In [0, 1]: the share of what the majority class gets wrong that the head gets right (Alain & Bengio 2016 ask each layer so; here the last).

    None where nothing is classified, one label a row is not all there is, or rows come from several tasks. Loads the model; trains nothing but the head.
    """
    bare = replace(recipe, method={"kind": "head"}, head=replace(recipe.head, kind="linear"), data=replace(recipe.data, limit=ROWS))
    data = shared.data(bare)
    if data.parts or data.task.kind not in ("single", "tag"):
        return None
    with shared.lent(bare, data) as net:
        job = assemble(bare, data, net, Reporter(quiet=True), shared)
        x, y = states(job)
        job.delta.detach() if shared.keeps else None
    return of_states(x[:: 1 + len(x) // TOKENS], y[:: 1 + len(y) // TOKENS])


def of_states(x: np.ndarray, y: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    most = np.bincount(y).max() / len(y)
    if most == 1.0 or len(y) < FOLDS:
        return 0.0
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=200))
    said = np.asarray(cross_val_predict(model, x, y, cv=KFold(FOLDS, shuffle=True, random_state=0)))
    return float(np.clip((np.mean(said == y) - most) / (1 - most), 0.0, 1.0))
