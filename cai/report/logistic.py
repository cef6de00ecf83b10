"""Logistic regression by Newton's method, for figures at equal others."""

from typing import Final

import numpy as np

from cai.report.resampling import Floats

__all__ = ["logistic", "sigmoid"]

_STEPS: Final = 60  # what has no finite answer has run away by then
_MOST: Final = 30.0  # log-odds at a column's largest value: beyond, it decides by itself


def sigmoid(x: Floats | float) -> Floats:
    """1 / (1 + exp(-x)), which does not overflow."""
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def logistic(columns: Floats, outcome: Floats) -> Floats | None:
    """Coefficients (C,) of `outcome` (N, in [0, 1]; soft ones count as they are) on `columns` (N, C).

    None when there is no finite answer: no rows, columns that say nothing or the same, or one that decides by itself.
    """
    if not columns.size or not (scale := np.abs(columns).max(axis=0)).all():
        return None
    x, beta = columns / scale, np.zeros(columns.shape[1])  # so that one unit is as good as another
    for _ in range(_STEPS):
        p = sigmoid(x @ beta)
        hessian = (x * (p * (1 - p))[:, None]).T @ x
        if np.linalg.cond(hessian) > 1e12:
            return None
        step = np.linalg.solve(hessian, x.T @ (outcome - p))
        beta = beta + step
        if np.abs(beta).max() > _MOST:
            return None
        if np.abs(step).max() < 1e-10:
            return np.asarray(beta / scale)
    return None
