"""How good predictions are, and how certain a difference is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.compute import intervals, patterns
from tasks.compute.intervals import Floats, Grouping, Interval
from tasks.compute.patterns import Places


class Scores(NamedTuple):
    """Per-class metrics (classes,), in 0..1; 0 where the denominator is 0, as in scikit-learn's zero_division=0."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]
    accuracy: float
    macro_f1: float  # over the classes that occur among targets or predictions


def confusion(targets: NDArray[np.int64], predicted: NDArray[np.int64], *, classes: int) -> NDArray[np.int64]:
    """Counts (classes, classes): rows are true classes, columns predicted ones."""
    return np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def scores(targets: NDArray[np.int64], predicted: NDArray[np.int64], *, classes: int) -> Scores:
    """Metrics of predictions (n,) against targets (n,), both in 0..classes-1."""
    table = confusion(targets, predicted, classes=classes)
    hits, said, there = np.diag(table), table.sum(axis=0), table.sum(axis=1)
    f1 = patterns.ratio(2 * hits, said + there)
    occurs = (said + there) > 0
    return Scores(
        precision=patterns.ratio(hits, said),
        recall=patterns.ratio(hits, there),
        f1=f1,
        support=there,
        accuracy=float(hits.sum() / max(1, len(targets))),
        macro_f1=float(f1[occurs].mean()) if occurs.any() else 0.0,
    )


class Ends(NamedTuple):
    """95 % intervals of one model's metrics; per class (classes,), over all scalars."""

    precision: Interval
    recall: Interval
    f1: Interval
    accuracy: Interval
    macro_f1: Interval


def ends(targets: Places, predicted: Places, *, classes: int, groups: Grouping | None = None) -> Ends:
    """Intervals of `scores` (n,) (n,), wider by the design effect where samples come in groups.

    Precision and recall are shares of counts; F1 follows from the share that hits are of hits and errors; macro F1 from
    how samples move it, and from the classes' own intervals where these are wider.
    """
    cells = patterns.triples(targets, predicted, predicted, classes=classes)
    together = groups or intervals.grouping(None, len(targets))
    counts = patterns.patterns_of(cells, classes)
    hits, said, there = patterns.parts_of(counts, patterns.BEFORE)
    slopes = patterns.slopes(counts, patterns.BEFORE)
    factors = patterns.inflations(cells, slopes, together) ** 2  # of the variance: so many times fewer samples
    right = (targets == predicted).astype(np.float64)
    effect = intervals.inflation(right - right.mean(), together) ** 2
    either = said + there - hits
    return Ends(
        intervals.share(hits / factors[0], said / factors[0]),
        intervals.share(hits / factors[1], there / factors[1]),
        intervals.from_overlap(intervals.share(hits / factors[2], either / factors[2])),
        intervals.share(np.asarray(right.sum() / effect), np.asarray(len(targets) / effect)),
        _macro(cells, counts, slopes[2], together),
    )


def _macro(cells: patterns.Triples, counts: Floats, slopes: Floats, groups: Grouping) -> Interval:
    """By how samples move it, which knows how classes go together, and what small classes' own intervals are wider.

    Each arm adds the classes' own arms. Source: Zou & Donner 2008, Construction of Confidence Limits about Effect Measures.
    """
    hits, said, there = patterns.parts_of(counts, patterns.BEFORE)
    occurs = said + there > 0
    of = max(1, int(occurs.sum()))
    f1 = patterns.metrics_of(counts, patterns.BEFORE)[2]
    value = float(f1[occurs].sum()) / of
    own = intervals.from_overlap(intervals.share(hits, said + there - hits))
    moves = patterns.moves(cells, slopes / of)
    sure = float(cells.counts @ moves**2)
    errors, both = said + there - 2 * hits, np.maximum(said + there, 1)
    middle = value + float((errors * f1 / both**2)[occurs].sum()) / of  # F1 of few samples is too low on average
    factor = intervals.Z * intervals.inflation(moves[cells.cell_of], groups)
    arms = [
        factor * np.sqrt(sure + patterns.beyond(arm, counts, slopes)[occurs].sum() / of**2)
        for arm in (f1 - own.low, own.high - f1)
    ]
    return Interval(np.clip(middle - arms[0], 0.0, value), np.clip(middle + arms[1], value, 1.0))
