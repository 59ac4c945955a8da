"""How good predictions are, and how certain a difference is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

METRICS = ("precision", "recall", "f1")


class Scores(NamedTuple):
    """Per-class metrics (classes,), in 0..1; 0 where the denominator is 0, as in scikit-learn's zero_division=0."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]
    accuracy: float
    macro_f1: float  # over the classes that occur among targets or predictions


class Delta(NamedTuple):
    """A metric of two models on the same samples, and the interval of the difference after − before."""

    metric: str
    target: int  # class, or -1 for all classes together
    before: float
    after: float
    low: float
    high: float


def confusion(targets: NDArray[np.int64], predicted: NDArray[np.int64], *, classes: int) -> NDArray[np.int64]:
    """Counts (classes, classes): rows are true classes, columns predicted ones."""
    return np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def scores(targets: NDArray[np.int64], predicted: NDArray[np.int64], *, classes: int) -> Scores:
    """Metrics of predictions (n,) against targets (n,), both in 0..classes-1."""
    table = confusion(targets, predicted, classes=classes)
    hits, said, there = np.diag(table), table.sum(axis=0), table.sum(axis=1)
    f1 = _ratio(2 * hits, said + there)
    occurs = (said + there) > 0
    return Scores(
        precision=_ratio(hits, said),
        recall=_ratio(hits, there),
        f1=f1,
        support=there,
        accuracy=float(hits.sum() / max(1, len(targets))),
        macro_f1=float(f1[occurs].mean()) if occurs.any() else 0.0,
    )


def paired_deltas(
    targets: NDArray[np.int64],
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    *,
    classes: int,
    resamples: int,
    seed: int,
) -> list[Delta]:
    """95 % percentile intervals of every metric's difference, by a paired bootstrap.

    Both models are scored on the same resampled images: a resample is a multinomial weight a sample, and all counts are
    one matrix product. targets, before, after: (n,). Source: Efron & Tibshirani, An Introduction to the Bootstrap, ch. 13.
    """
    generator = np.random.default_rng(seed)
    indicators = [_indicators(targets, predicted, classes) for predicted in (before, after)]
    drawn: list[list[NDArray[np.float64]]] = [[], []]
    for start in range(0, resamples, 250):  # 250 × n weights at a time bound the memory
        count = min(250, resamples - start)
        weights = generator.multinomial(len(targets), np.full(len(targets), 1 / len(targets)), size=count)
        for side, indicator in enumerate(indicators):
            drawn[side].append(_metrics(weights.astype(np.float32) @ indicator, classes))
    differences = np.concatenate(drawn[1]) - np.concatenate(drawn[0])
    ones = np.ones((1, len(targets)), dtype=np.float32)
    points = [_metrics(ones @ indicator, classes)[0] for indicator in indicators]
    low, high = np.percentile(differences, [2.5, 97.5], axis=0)
    names = [(metric, c) for metric in METRICS for c in range(classes)] + [("accuracy", -1), ("macro_f1", -1)]
    return [
        Delta(metric, c, float(points[0][i]), float(points[1][i]), float(low[i]), float(high[i]))
        for i, (metric, c) in enumerate(names)
    ]


def _indicators(targets: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """(n, 3·classes): is a hit of class c, was said to be c, is a c."""
    known, said = np.eye(classes, dtype=np.float32)[targets], np.eye(classes, dtype=np.float32)[predicted]
    return np.hstack([known * said, said, known])


def _metrics(counts: NDArray[np.float32], classes: int) -> NDArray[np.float64]:
    """(b, 3·classes) weighted counts → (b, 3·classes + 2): precision, recall, F1 by class; accuracy; macro F1."""
    hits, said, there = (counts[:, i * classes : (i + 1) * classes].astype(np.float64) for i in range(3))
    f1 = _ratio(2 * hits, said + there)
    occurs = (said + there) > 0
    macro = f1.sum(axis=1) / np.maximum(1, occurs.sum(axis=1))
    accuracy = hits.sum(axis=1) / np.maximum(1, there.sum(axis=1))
    return np.hstack([_ratio(hits, said), _ratio(hits, there), f1, accuracy[:, None], macro[:, None]])


def _ratio(above: NDArray[np.generic], below: NDArray[np.generic]) -> NDArray[np.float64]:
    """above / below, 0 where below is 0."""
    result: NDArray[np.float64] = np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0)
    return result
