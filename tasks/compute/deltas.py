"""Whether one model is better than another on the same samples: paired differences with 95 % intervals.

Of a class, a sample falls into one of eight patterns: is it of the class, does the model before say so, does the model
after? Precision, recall and F1 of both models follow from the counts of the patterns, so a class's differences are drawn
from the posterior of these counts under a prior of a third of a sample in each pattern: a smoothed Bayesian bootstrap
(Rubin 1981). Where few samples changed, a plain bootstrap's intervals are far too short; the prior's are not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, t

from tasks.compute import intervals, patterns
from tasks.compute.intervals import Floats, Grouping, Interval
from tasks.compute.patterns import AFTER, BEFORE, METRICS, Places, Triples
from tasks.compute.ranking import Ranked

PRIOR = 1 / 3  # neutral: the posterior median is about the observed share (Kerman 2011)
# Accuracy's four patterns have one sample each (as in Bonett & Price 2012): with a third, intervals of 300 are too short.
EVEN = 1.0


class Delta(NamedTuple):
    """A metric of two models on the same samples, and the interval of the difference after − before."""

    metric: str
    target: int  # class, or -1 for all classes together
    before: float
    after: float
    low: float
    high: float
    p: float  # two-sided, of no difference
    q: float  # after Benjamini and Hochberg over the classes of this metric
    detectable: float  # least difference that is seen in 80 % of such comparisons


class McNemar(NamedTuple):
    """Samples that only one of the models has right, and the exact two-sided p of their being as many."""

    only_before: int
    only_after: int
    p: float


class Uplift(NamedTuple):
    """What one arm gains over the other, over several training seeds."""

    mean: float
    low: float
    high: float
    by_seed: Floats  # (seeds, 2): the metric of control and of campaign


def paired_deltas(
    cells: Triples, *, classes: int, resamples: int, seed: int, groups: Grouping | None = None
) -> list[Delta]:
    """Precision, recall and F1 of every class, then accuracy and macro F1, of samples counted by `triples`.

    `resamples` draws stand behind each class's interval; that of macro F1 follows from them and from how classes go
    together. Where samples come in groups, intervals widen by the design effect.
    """
    together = groups or intervals.grouping(None, len(cells.cell_of))
    counts = patterns.patterns_of(cells, classes)
    before, after = (patterns.metrics_of(counts, side) for side in (BEFORE, AFTER))  # (3, classes) each
    influences = patterns.slopes(counts, AFTER) - patterns.slopes(counts, BEFORE)  # (3, classes, 8)
    drawn = _drawn(counts, after - before, resamples, seed)
    wide = intervals.widened(after - before, drawn, patterns.inflations(cells, influences, together))
    rows = []
    for m, metric in enumerate(METRICS):
        mine = zip(before[m], after[m], wide.low[m], wide.high[m], strict=True)
        rows += with_q([_row(metric, c, *values) for c, values in enumerate(mine)])
    return [*rows, _accuracy(cells, together, resamples, seed), _macro(cells, counts, drawn, together)]


def paired_mean(metric: str, before: Floats, after: Floats, groups: Grouping, *, most: float) -> Delta:
    """The difference of two means over samples, before and after (n,), with Student's interval; it is ±most at most."""
    n = len(before)
    moves = (after - before - (after - before).mean()) / n
    half, point = _half(moves, groups), float(after.mean() - before.mean())
    return _row(metric, -1, float(before.mean()), float(after.mean()), point - half, point + half, most=most)


def ranked_delta(target: int, before: Ranked, after: Ranked, groups: Grouping) -> Delta:
    """The difference in average precision of a class, by the influences of samples: its interval is one for many samples."""
    half, point = _half(after.influences - before.influences, groups), after.value - before.value
    return _row("average_precision", target, before.value, after.value, point - half, point + half)


def with_q(rows: list[Delta]) -> list[Delta]:
    """The rows of one metric with their q."""
    q = intervals.false_discovery(np.array([row.p for row in rows]))
    return [row._replace(q=float(value)) for row, value in zip(rows, q, strict=True)]


def mcnemar(targets: Places, before: Places, after: Places) -> McNemar:
    """McNemar's exact test of equal accuracy. Source: McNemar 1947; exact binomial as in Edwards 1948."""
    was, now = before == targets, after == targets
    lost, won = int((was & ~now).sum()), int((~was & now).sum())
    return McNemar(lost, won, float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0)


def uplift(
    targets: Places,
    control: Places,
    campaign: Places,
    *,
    metric: str,
    target: int,
    classes: int,
    groups: Grouping | None = None,
) -> Uplift:
    """The campaign's mean gain over control on a metric, over training seeds. targets (n,); control, campaign (seeds, n).

    metric: precision, recall or f1 of class `target`, accuracy, or macro_f1. The interval covers other images and other
    training seeds: both variances add (images and seeds are crossed), with Satterthwaite's degrees of freedom.
    Source: Owen 2007, The Pigeonhole Bootstrap, section 3, for the sum of variances.
    """
    together = groups or intervals.grouping(None, len(targets))
    sides = [[_valued(targets, said, metric, target, classes) for said in arm] for arm in (control, campaign)]
    by_seed = np.array([[value for value, _ in side] for side in sides]).T
    gains = by_seed[:, 1] - by_seed[:, 0]
    moves = np.mean([there - here for (_, here), (_, there) in zip(*sides, strict=True)], axis=0)
    # One sample more that is moved, so that arms that agree on every image are not certain to agree.
    images = max((_half(moves, together) / intervals.Z) ** 2, 1 / _counting(targets, control, campaign, target) ** 2)
    seeds = float(gains.var(ddof=1)) / len(gains)
    total = images + seeds
    freedom = total**2 / (images**2 / max(1, together.groups - 1) + seeds**2 / (len(gains) - 1))
    half = float(np.sqrt(total) * t.ppf(0.5 + intervals.LEVEL / 2, freedom))
    mean = float(gains.mean())
    return Uplift(mean, max(-1.0, mean - half), min(1.0, mean + half), by_seed)


def _counting(targets: Places, control: Places, campaign: Places, target: int) -> int:
    """Samples that have to do with a class; all of them for −1."""
    named = (targets == target) | (control == target).any(axis=0) | (campaign == target).any(axis=0)
    return max(1, int(named.sum())) if target >= 0 else max(1, len(targets))


def _valued(targets: Places, said: Places, metric: str, target: int, classes: int) -> tuple[float, Floats]:
    """A metric of one model, and the influence (n,) of every sample on it."""
    if metric == "accuracy":
        right = (said == targets).astype(np.float64)
        return float(right.mean()), (right - right.mean()) / len(right)
    cells = patterns.triples(targets, said, said, classes=classes)
    counts = patterns.patterns_of(cells, classes)
    values, slopes = patterns.metrics_of(counts, BEFORE), patterns.slopes(counts, BEFORE)
    if metric == "macro_f1":
        occurs = patterns.occurs(counts, BEFORE)
        return float(values[2][occurs].mean()), patterns.moves(cells, slopes[2] / occurs.sum())[cells.cell_of]
    place = METRICS.index(metric)
    only = np.zeros_like(slopes[place])
    only[target] = slopes[place][target]
    return float(values[place][target]), patterns.moves(cells, only)[cells.cell_of]


def _drawn(counts: Floats, point: Floats, resamples: int, seed: int) -> Interval:
    """Ends (3, classes) of the differences, from draws of the patterns' counts; the point lies within."""
    low, high = np.empty_like(point), np.empty_like(point)
    for c, mine in enumerate(counts):
        shape = mine + PRIOR
        weights = np.random.default_rng([seed, c]).standard_gamma(shape, size=(resamples, 8))
        weights[:, 0] = 0.0
        gained = patterns.metrics_of(weights, AFTER) - patterns.metrics_of(weights, BEFORE)
        low[:, c], high[:, c] = np.quantile(gained, [0.5 - intervals.LEVEL / 2, 0.5 + intervals.LEVEL / 2], axis=1)
    return Interval(np.minimum(low, point), np.maximum(high, point))


def _accuracy(cells: Triples, groups: Grouping, resamples: int, seed: int) -> Delta:
    was, now = cells.before == cells.true, cells.after == cells.true
    n = cells.counts.sum()
    counts = np.array([cells.counts[was & now].sum(), cells.counts[was & ~now].sum(), cells.counts[~was & now].sum()])
    counts = np.append(counts, n - counts.sum())
    weights = np.random.default_rng([seed, 2**31]).standard_gamma(counts + EVEN, size=(resamples, 4))
    gained = (weights[:, 2] - weights[:, 1]) / weights.sum(axis=1)
    before, after = (counts[0] + counts[1]) / n, (counts[0] + counts[2]) / n
    low, high = np.quantile(gained, [0.5 - intervals.LEVEL / 2, 0.5 + intervals.LEVEL / 2])
    moved = now.astype(np.float64) - was
    factor = intervals.inflation((moved - (after - before))[cells.cell_of], groups)
    point = after - before
    ends = intervals.widened(point, Interval(np.minimum(low, point), np.maximum(high, point)), factor)
    return _row("accuracy", -1, before, after, float(ends.low), float(ends.high))


def _macro(cells: Triples, counts: Floats, drawn: Interval, groups: Grouping) -> Delta:
    """Macro F1 over the classes that occur, as scikit-learn has it.

    Its variance is that of the influences of samples, which knows how classes go together, plus, class by class, what
    the drawn intervals are wider than their influences say: that is what matters where classes are small.
    """
    shares, values = [], []
    for side in (BEFORE, AFTER):
        occurs = patterns.occurs(counts, side)
        values.append(float(patterns.metrics_of(counts, side)[2][occurs].mean()) if occurs.any() else 0.0)
        shares.append(patterns.slopes(counts, side)[2] / max(1, occurs.sum()))
    moves = patterns.moves(cells, shares[1] - shares[0])
    occurs = counts.sum(axis=1) > 0
    arms = (drawn.high[2] - drawn.low[2]) / 2 / max(1, occurs.sum())
    wide = patterns.beyond(arms, counts, shares[1] - shares[0])[occurs].sum()
    factor = intervals.inflation(moves[cells.cell_of], groups)
    half = intervals.Z * factor * float(np.sqrt(cells.counts @ moves**2 + wide))
    point = values[1] - values[0]
    return _row("macro_f1", -1, values[0], values[1], point - half, point + half)


def _half(moves: Floats, groups: Grouping) -> float:
    """Half of a 95 % interval of a figure that samples move by so much (n,), with Student's t for the groups."""
    spread = float(np.sqrt(moves @ moves)) * intervals.inflation(moves, groups)
    few = t.ppf(0.5 + intervals.LEVEL / 2, max(1, len(moves) - 1)) if groups.alone else intervals.Z
    return spread * float(few)


def _row(metric: str, target: int, before: float, after: float, low: float, high: float, *, most: float = 1.0) -> Delta:
    """The interval ends at ±most, beyond which no difference can be."""
    point = float(after - before)
    ends = Interval(np.asarray(max(-most, float(low))), np.asarray(min(most, float(high))))
    p = float(intervals.p_of(np.asarray(point), ends))
    seen = float(intervals.detectable(ends))
    return Delta(metric, target, float(before), float(after), float(ends.low), float(ends.high), p, p, seen)
