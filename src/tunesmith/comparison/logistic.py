"""Softmax regression with a penalty chosen by cross-validation. scikit-learn has it, and takes 80 MB and a second to import beside pandas, which an arm does
not have: a comparison must not need more than its arms. The solver is SciPy's; scikit-learn is the tests' oracle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

PENALTIES = tuple(np.logspace(-4, 0, 5))  # C, from strong to weak
FOLDS = 3
ALONE = 0.01  # C where some class has fewer rows than there are folds
STEPS = 300


def fitted(x: np.ndarray, y: np.ndarray, classes: int, penalty: float, start: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Weight (classes, d) and bias (classes,) that minimise C sum_i -log p(y_i | x_i) + |W|^2 / 2; x (n, d), y (n,) in [0, classes)."""
    n, d = x.shape
    rows = np.arange(n)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat[: classes * d].reshape(classes, d), flat[classes * d :]
        z = x @ weight.T + bias
        z -= z.max(1, keepdims=True)
        p = np.exp(z)
        total = p.sum(1)
        value = penalty * (np.log(total) - z[rows, y]).sum() + 0.5 * (weight * weight).sum()
        p /= total[:, None]
        p[rows, y] -= 1
        p *= penalty
        return value, np.concatenate([(p.T @ x + weight).ravel(), p.sum(0)])

    start = np.zeros(classes * (d + 1)) if start is None else start
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS, "gtol": 1e-4 * max(1.0, penalty * n / classes)}).x
    return found[: classes * d].reshape(classes, d), found[classes * d :]


def chosen(x: np.ndarray, y: np.ndarray, classes: int, penalties: Sequence[float] = PENALTIES) -> float:
    """The penalty whose fits say most rows right that they have not seen; each class is spread evenly over the folds."""
    counts = np.bincount(y, minlength=classes)
    if counts.min() < FOLDS:
        return ALONE
    fold = np.empty(len(y), int)
    for k in range(classes):
        mine = np.flatnonzero(y == k)
        fold[np.random.default_rng(k).permutation(mine)] = np.arange(len(mine)) % FOLDS
    right = np.zeros(len(penalties))
    for held in (fold == f for f in range(FOLDS)):
        start = None
        for i, penalty in enumerate(penalties):
            weight, bias = fitted(x[~held], y[~held], classes, penalty, start)
            right[i] += ((x[held] @ weight.T + bias).argmax(1) == y[held]).sum()
            start = np.concatenate([weight.ravel(), bias])
    return float(penalties[int(right.argmax())])
