"""Counts of what models say of samples, what metrics follow from them, and how each sample moves a metric.

Of a class, a sample falls into one of eight patterns, numbered 4 · (is it of the class?) + 2 · (does the model before say
so?) + (does the model after?). Precision, recall and F1 of both models follow from the patterns' counts alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.compute import intervals
from tasks.compute.intervals import Floats, Grouping

Places = NDArray[np.int64]
METRICS = ("precision", "recall", "f1")
TRUE, BEFORE, AFTER = (np.array([(pattern >> bit) & 1 for pattern in range(8)], np.float64) for bit in (2, 1, 0))


class Triples(NamedTuple):
    """Samples counted by (true class, said before, said after); only combinations that occur."""

    true: Places  # (cells,)
    before: Places
    after: Places
    counts: Floats
    cell_of: Places  # (n,) each sample's


def triples(targets: Places, before: Places, after: Places, *, classes: int) -> Triples:
    """Count targets, before, after (n,), in 0..classes-1."""
    codes, cell_of, counts = np.unique(
        (targets * classes + before) * classes + after, return_inverse=True, return_counts=True
    )
    rest, last = np.divmod(codes, classes)
    first, middle = np.divmod(rest, classes)
    return Triples(first, middle, last, counts.astype(np.float64), cell_of)


class Kind(NamedTuple):
    """What cells have to do with one of the classes that they name."""

    cells: Places  # (k,) of the cells
    classes: Places  # (k,)
    patterns: Places  # (k,)


def patterns_of(cells: Triples, classes: int) -> Floats:
    """(classes, 8) counts of each class's patterns; the first, of samples that have nothing to do with it, stays 0."""
    found = np.zeros((classes, 8))
    for kind in kinds(cells):
        np.add.at(found, (kind.classes, kind.patterns), cells.counts[kind.cells])
    return found


def parts_of(counts: Floats, side: Floats) -> tuple[Floats, Floats, Floats]:
    """True positives, samples said to be of the class, samples of the class; counts (…, 8)."""
    return counts @ (TRUE * side), counts @ side, counts @ TRUE


def occurs(counts: Floats, side: Floats) -> NDArray[np.bool_]:
    _, said, there = parts_of(counts, side)
    result: NDArray[np.bool_] = said + there > 0
    return result


def metrics_of(counts: Floats, side: Floats) -> Floats:
    """(3, …): precision, recall and F1 of one model; 0 where the denominator is 0. counts: (…, 8)."""
    hits, said, there = parts_of(counts, side)
    return np.stack([ratio(hits, said), ratio(hits, there), ratio(2 * hits, said + there)])


def slopes(counts: Floats, side: Floats) -> Floats:
    """(3, classes, 8): derivatives of the metrics by the pattern counts (classes, 8)."""
    _, said, there = (part[:, None] for part in parts_of(counts, side))
    precision, recall, f1 = (value[:, None] for value in metrics_of(counts, side))
    hit = TRUE * side
    return np.stack(
        [
            ratio(hit - precision * side, said),
            ratio(hit - recall * TRUE, there),
            ratio(2 * hit - f1 * (side + TRUE), said + there),
        ]
    )


def moves(cells: Triples, slopes: Floats) -> Floats:
    """(cells,) how one sample more of a cell moves the sum over classes; slopes: (classes, 8)."""
    found = np.zeros(len(cells.counts))
    for kind in kinds(cells):
        found[kind.cells] += slopes[kind.classes, kind.patterns]
    return found


def beyond(arms: Floats, counts: Floats, slopes: Floats) -> Floats:
    """(classes,) variance that arms of intervals (classes,) hold beyond that of the samples' influences; never below 0."""
    result: Floats = np.maximum((arms / intervals.Z) ** 2 - (counts * slopes**2).sum(axis=1), 0.0)
    return result


def inflations(cells: Triples, influences: Floats, groups: Grouping) -> Floats:
    """(3, classes) factors by which groups widen the intervals; influences: (3, classes, 8)."""
    if groups.alone:
        return np.ones(influences.shape[:2])
    classes = influences.shape[1]
    rows, names, codes = [], [], []
    for kind in kinds(cells):
        place = np.full(len(cells.counts), -1)
        place[kind.cells] = np.arange(len(kind.cells))
        mine = place[cells.cell_of]
        here = np.flatnonzero(mine >= 0)
        names.append(kind.classes[mine[here]])
        codes.append(kind.patterns[mine[here]])
        rows.append(groups.numbers[here] * classes + names[-1])
    keys, number = np.unique(np.concatenate(rows), return_inverse=True)
    sizes = np.bincount(number).astype(np.float64)
    name, code = np.concatenate(names), np.concatenate(codes)

    def by_class(values: Floats) -> Floats:
        return np.bincount(keys % classes, weights=values, minlength=classes).astype(np.float64)

    found = np.ones(influences.shape[:2])
    for m, slopes in enumerate(influences):
        moved = slopes[name, code]
        sums: Floats = np.bincount(number, weights=moved).astype(np.float64)
        independent = np.bincount(name, weights=moved**2, minlength=classes).astype(np.float64)
        found[m] = intervals.widening(by_class(sums**2), independent, by_class(sizes), by_class(sizes**2))
    return found


def kinds(cells: Triples) -> list[Kind]:
    """Every cell with each of the one to three classes that it names, once."""
    names = (cells.true, cells.before, cells.after)
    kinds = []
    for place, name in enumerate(names):
        fresh = np.ones(len(name), bool)
        for earlier in names[:place]:
            fresh &= earlier != name
        code = 4 * (cells.true == name) + 2 * (cells.before == name) + (cells.after == name)
        kinds.append(Kind(np.flatnonzero(fresh), name[fresh], code[fresh]))
    return kinds


def ratio(above: NDArray[np.generic], below: NDArray[np.generic]) -> Floats:
    """above / below, 0 where below is 0."""
    over, under = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    result: Floats = np.divide(over, under, out=np.zeros(over.shape), where=under > 0)
    return result
