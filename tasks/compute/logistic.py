"""Logistic regression that is shrunk toward a given vector instead of toward zero."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Vector = NDArray[np.float64]


class Line(NamedTuple):
    """A linear function: rows @ weights + bias."""

    weights: Vector  # (dim,)
    bias: float


def fit(rows: NDArray[np.float64], hits: NDArray[np.bool_], costs: Vector, *, prior: Line, strength: float) -> Line:
    """Minimise Σ costs · log(1 + exp(-margin)) + strength / 2 · |weights - prior.weights|² over rows (n, dim).

    The bias is shrunk toward the prior's likewise. Without rows, the prior is the answer. L-BFGS from the prior, so that
    the same rows give the same bits.
    """
    if not len(rows):
        return prior
    signs = np.where(hits, 1.0, -1.0)
    start = np.append(prior.weights, prior.bias)

    def loss(at: Vector) -> tuple[float, Vector]:
        margins = signs * (rows @ at[:-1] + at[-1])
        pull = -costs * signs * expit(-margins)
        apart = at - start
        value = float((costs * np.logaddexp(0.0, -margins)).sum() + strength / 2 * (apart @ apart))
        return value, np.append(rows.T @ pull, pull.sum()) + strength * apart

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-9}).x
    return Line(found[:-1], float(found[-1]))
