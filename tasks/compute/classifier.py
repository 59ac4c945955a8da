"""A logistic head on frozen embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits


class Head(NamedTuple):
    """A linear classifier: probabilities are softmax(x @ weights.T + bias)."""

    weights: NDArray[np.float32]  # (classes, dim)
    bias: NDArray[np.float32]  # (classes,)


def fit(
    features: NDArray[np.float32],
    targets: NDArray[np.int64],
    *,
    classes: int,
    regularisation: float,
    balanced: bool = False,
) -> Head:
    """Multinomial logistic regression; features (n, dim), targets (n,) in 0..classes-1. Raises ValueError for one class.

    Features are standardised for the solver and the scaling is folded back into the weights. L-BFGS from zero on
    float64 is deterministic: the same rows in the same order give the same bits. A class without examples is never
    predicted: its bias is the lowest float. Balanced: a class's rows weigh n / (present classes · its rows).
    """
    present = np.unique(targets)
    if len(present) < 2:
        raise ValueError("a classifier needs labels of at least two classes")
    mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64) + 1e-9
    solver = LogisticRegression(
        C=regularisation, max_iter=2_000, tol=1e-6, class_weight="balanced" if balanced else None
    )
    with threadpool_limits(1):  # small products: two threads that wait for each other were 20 times slower than one
        solver.fit((features - mean) / scale, targets)
    coefficients, intercept = solver.coef_, solver.intercept_
    if len(present) == 2:  # scikit-learn keeps one row for two classes
        coefficients, intercept = np.vstack([-coefficients, coefficients]) / 2, np.array([-1, 1]) * intercept / 2
    weights = np.zeros((classes, features.shape[1]))
    bias = np.full(classes, np.finfo(np.float32).min, dtype=np.float64)
    weights[present] = coefficients / scale
    bias[present] = intercept - weights[present] @ mean
    return Head(weights.astype(np.float32), bias.astype(np.float32))


def probabilities(head: Head, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Class probabilities (n, classes) of features (n, dim)."""
    with threadpool_limits(1):  # the same bits however many threads there are
        logits = features.astype(np.float64) @ head.weights.T.astype(np.float64) + head.bias
    return softmax(logits)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    """Probabilities of logits (n, classes); the logits are overwritten."""
    logits -= logits.max(axis=1, keepdims=True)
    odds = np.exp(logits)
    result: NDArray[np.float32] = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def resample(targets: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Rows (n,) drawn with replacement within each class of targets (n,), in order: each class keeps its count."""
    generator = np.random.default_rng(seed)
    drawn = [
        generator.choice(np.flatnonzero(targets == place), int((targets == place).sum()))
        for place in np.unique(targets)
    ]
    return np.sort(np.concatenate(drawn))


def class_weights(targets: NDArray[np.int64], *, classes: int) -> NDArray[np.float64]:
    """Weights (classes,) under which every class that occurs weighs the same: n / (present classes · its rows)."""
    counts = np.bincount(targets, minlength=classes)
    present = int((counts > 0).sum())
    return np.where(counts > 0, len(targets) / (present * np.maximum(counts, 1)), 1.0)


def as_targets(names: Sequence[str], class_names: Sequence[str]) -> NDArray[np.int64]:
    """Names (n,) as places in class_names; -1 for a name that is not among them."""
    places = {name: place for place, name in enumerate(class_names)}
    return np.asarray([places.get(name, -1) for name in names], dtype=np.int64)
