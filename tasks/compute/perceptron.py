"""A classifier with one hidden layer on frozen embeddings, the same bits every time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tasks.compute.classifier import class_weights, softmax

Matrix = NDArray[np.float64]

LEARNING_RATE = 1e-3
BATCH = 128
EPOCHS = 200
PATIENCE = 10  # epochs without a lower loss, as in scikit-learn's MLPClassifier
TOLERANCE = 1e-4


class Perceptron(NamedTuple):
    """Probabilities are softmax(relu(x @ hidden.T + hidden_bias) @ weights.T + bias)."""

    hidden: NDArray[np.float32]  # (units, dim)
    hidden_bias: NDArray[np.float32]  # (units,)
    weights: NDArray[np.float32]  # (classes, units)
    bias: NDArray[np.float32]  # (classes,)


class Rows(NamedTuple):
    """Rows to learn from, or to stop by."""

    features: NDArray[np.float32]  # (n, dim)
    targets: NDArray[np.int64]  # (n,)


class Options(NamedTuple):
    """How to fit."""

    classes: int
    hidden: int
    regularisation: float  # inverse strength of the L2 penalty, scikit-learn's C
    balanced: bool
    seed: int


class Fit(NamedTuple):
    """The best epoch's weights, and every epoch's losses."""

    head: Perceptron
    history: list[dict[str, float]]


def fit(train: Rows, watched: Rows | None, options: Options) -> Fit:
    """Adam on the penalised cross-entropy in float64, on one thread: the same rows in the same order give the same bits.

    Without watched rows it stops when the training loss no longer falls. A class without examples is never predicted, and
    watched rows of a class that is not learnt (-1) say nothing.
    Raises ValueError for rows of fewer than two classes.
    """
    if len(np.unique(train.targets)) < 2:
        raise ValueError("a classifier needs labels of at least two classes")
    mean = train.features.mean(axis=0, dtype=np.float64)
    scale = train.features.std(axis=0, dtype=np.float64) + 1e-9
    inputs = (train.features - mean) / scale
    seen = None
    if watched is not None and (known := watched.targets >= 0).any():
        seen = ((watched.features[known] - mean) / scale, watched.targets[known])
    with threadpool_limits(1):
        best, history = _descend(inputs, train.targets, seen, options)
    hidden, hidden_bias, weights, bias = best
    hidden = hidden / scale
    hidden_bias = hidden_bias - hidden @ mean
    bias[np.bincount(train.targets, minlength=options.classes) == 0] = np.finfo(np.float32).min
    return Fit(Perceptron(*(part.astype(np.float32) for part in (hidden, hidden_bias, weights, bias))), history)


def probabilities(head: Perceptron, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Class probabilities (n, classes) of features (n, dim)."""
    parts = [part.astype(np.float64) for part in head]
    with threadpool_limits(1):
        _, logits = _forward(parts, features.astype(np.float64))
    return softmax(logits)


def _descend(
    inputs: Matrix, targets: NDArray[np.int64], watched: tuple[Matrix, NDArray[np.int64]] | None, options: Options
) -> tuple[list[Matrix], list[dict[str, float]]]:
    generator = np.random.default_rng(options.seed)
    parts = _initial(generator, inputs.shape[1], options)
    moments = [[np.zeros_like(part) for part in parts] for _ in range(2)]
    costs = class_weights(targets, classes=options.classes)[targets] if options.balanced else np.ones(len(targets))
    best, lowest, stale, steps = [part.copy() for part in parts], np.inf, 0, 0
    history: list[dict[str, float]] = []
    for epoch in range(EPOCHS):
        order, total = generator.permutation(len(targets)), 0.0
        for start in range(0, len(order), BATCH):
            rows, steps = order[start : start + BATCH], steps + 1
            loss, slopes = _slopes(parts, inputs[rows], targets[rows], costs[rows])
            penalty = 1.0 / (options.regularisation * len(targets))
            for place in (0, 2):
                slopes[place] += penalty * parts[place]
            _adam(parts, slopes, moments, steps)
            total += loss * len(rows)
        history.append({"epoch": epoch + 1, "loss": total / len(order)})
        if watched is not None:
            history[-1]["development_loss"] = _loss(parts, *watched)
        now = history[-1].get("development_loss", history[-1]["loss"])
        stale = 0 if now < lowest - TOLERANCE else stale + 1
        if now < lowest:
            best, lowest = [part.copy() for part in parts], now
        if stale >= PATIENCE:
            break
    return best, history


def _initial(generator: np.random.Generator, dim: int, options: Options) -> list[Matrix]:
    """Glorot's uniform start."""
    first, second = np.sqrt(6 / (dim + options.hidden)), np.sqrt(6 / (options.hidden + options.classes))
    return [
        generator.uniform(-first, first, (options.hidden, dim)),
        np.zeros(options.hidden),
        generator.uniform(-second, second, (options.classes, options.hidden)),
        np.zeros(options.classes),
    ]


def _forward(parts: list[Matrix], rows: Matrix) -> tuple[Matrix, Matrix]:
    """Hidden units (n, units) and logits (n, classes)."""
    units = np.maximum(rows @ parts[0].T + parts[1], 0.0)
    return units, units @ parts[2].T + parts[3]


def _log_shares(logits: Matrix) -> Matrix:
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def _loss(parts: list[Matrix], rows: Matrix, targets: NDArray[np.int64]) -> float:
    """Mean cross-entropy."""
    shares = _log_shares(_forward(parts, rows)[1])
    return float(-shares[np.arange(len(targets)), targets].mean())


def _slopes(
    parts: list[Matrix], rows: Matrix, targets: NDArray[np.int64], costs: NDArray[np.float64]
) -> tuple[float, list[Matrix]]:
    """The batch's mean cost and its slope by each part."""
    units, logits = _forward(parts, rows)
    shares = _log_shares(logits)
    places = np.arange(len(targets))
    loss = float(-(costs * shares[places, targets]).mean())
    back = np.exp(shares)
    back[places, targets] -= 1.0
    back *= costs[:, None] / len(targets)
    through = (back @ parts[2]) * (units > 0)
    return loss, [through.T @ rows, through.sum(axis=0), back.T @ units, back.sum(axis=0)]


def _adam(parts: list[Matrix], slopes: list[Matrix], moments: list[list[Matrix]], steps: int) -> None:
    """One step of Adam (Kingma and Ba 2015), in place."""
    for part, slope, first, second in zip(parts, slopes, *moments, strict=True):
        first += 0.1 * (slope - first)
        second += 0.001 * (slope * slope - second)
        part -= LEARNING_RATE * (first / (1 - 0.9**steps)) / (np.sqrt(second / (1 - 0.999**steps)) + 1e-8)
