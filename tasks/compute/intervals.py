"""How certain a figure is: intervals of counts, of functions of counts, and of many figures at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm, t

Floats = NDArray[np.float64]

LEVEL = 0.95
Z = float(norm.ppf(0.5 + LEVEL / 2))
POWER = 0.8
WIDEST = 1e6  # finite, so that no width times it is none
REACH = Z + float(norm.ppf(POWER))  # an effect of so many standard errors is seen in 80 % of cases


class Interval(NamedTuple):
    """Lower and upper ends of 95 % intervals, of the same shape as what they are about."""

    low: Floats
    high: Floats


def share(hits: Floats, of: Floats) -> Interval:
    """Jeffreys' interval of hits / of, for counts of any shape, also effective ones; from 0 to 1 where `of` is 0.

    It begins at 0 without hits and ends at 1 without misses, so that perfect counts are not shut out.
    Source: Brown, Cai & DasGupta 2001, Interval Estimation for a Binomial Proportion, section 4.1.2.
    """
    hits, of = np.broadcast_arrays(np.asarray(hits, np.float64), np.asarray(of, np.float64))
    misses = np.maximum(of - hits, 0.0)
    low = np.where(hits > 0, beta.ppf((1 - LEVEL) / 2, hits + 0.5, misses + 0.5), 0.0)
    high = np.where(misses > 0, beta.ppf((1 + LEVEL) / 2, hits + 0.5, misses + 0.5), 1.0)
    return Interval(low, high)


def from_overlap(ends: Interval) -> Interval:
    """Ends of an F1 from those of TP / (TP + FP + FN): F1 = 2J / (1 + J) rises with J, whose count is binomial."""
    return Interval(2 * ends.low / (1 + ends.low), 2 * ends.high / (1 + ends.high))


def widened(point: Floats, ends: Interval, factor: Floats | float) -> Interval:
    """The interval with both its arms so many times as long."""
    return Interval(point - (point - ends.low) * factor, point + (ends.high - point) * factor)


class Grouping(NamedTuple):
    """Which samples belong together; what is correlated within a group is not that many independent samples."""

    numbers: NDArray[np.int64]  # (n,) of each sample's group, 0..groups-1
    groups: int

    @property
    def alone(self) -> bool:
        """Whether every sample is a group of its own."""
        return self.groups == len(self.numbers)


def grouping(names: NDArray[np.generic] | None, samples: int) -> Grouping:
    """Groups by name (n,); none: every sample is its own."""
    if names is None:
        return Grouping(np.arange(samples), samples)
    known, numbers = np.unique(names, return_inverse=True)
    return Grouping(numbers.astype(np.int64), len(known))


def inflation(influences: Floats, groups: Grouping) -> float:
    """How many times as wide an interval is for the groups that the samples come in; influences: (n,), of mean 0.

    The root of the design effect, the variance of group sums over that of samples as if they were independent, never
    below 1, and Student's t for the effective number of groups among the samples that count at all.
    Sources: Rao & Scott 1992, A Simple Method for the Analysis of Clustered Binary Data; Cameron & Miller 2015, A
    Practitioner's Guide to Cluster-Robust Inference; Carter, Schnepel & Steigerwald 2017 for the effective number.
    """
    if groups.alone:
        return 1.0
    counting = groups.numbers[influences != 0]
    sizes = np.bincount(counting if len(counting) else groups.numbers).astype(np.float64)
    sums = np.bincount(groups.numbers, weights=influences, minlength=groups.groups)
    factor = widening(np.asarray(sums @ sums), np.asarray(influences @ influences), sizes.sum(), sizes @ sizes)
    return float(factor)


def widening(clustered: Floats, independent: Floats, samples: Floats, squares: Floats) -> Floats:
    """The factors by which intervals widen; all of one shape.

    clustered, independent: Σ over groups, and over samples, of squared influences. samples, squares: Σ of the group sizes
    and of their squares; samples² / squares is the number of groups of equal size that say as much. One group says
    nothing of others: the factor is WIDEST.
    """
    number = np.divide(samples**2, squares, out=np.ones(np.shape(squares)), where=np.asarray(squares) > 0)
    freedom = np.maximum(number - 1, 0.0)
    effect = np.divide(clustered, independent, out=np.ones(np.shape(independent)), where=np.asarray(independent) > 0)
    alone = np.full(np.shape(number), WIDEST**2)
    effect = np.maximum(effect, 1.0) * np.divide(number, freedom, out=alone, where=freedom > 0)
    student = t.ppf(0.5 + LEVEL / 2, np.maximum(freedom, 1e-3)) / Z
    result: Floats = np.minimum(np.sqrt(np.maximum(effect, 1.0)) * student, WIDEST)
    return result


def p_of(point: Floats, ends: Interval, against: Floats | float = 0.0) -> Floats:
    """Two-sided p of point = against, as the interval has it: normal, with an arm of its own on each side.

    At the interval's end p is .05 exactly, so that the two never disagree. 1 where the interval has no width.
    """
    point, against = np.broadcast_arrays(np.asarray(point, np.float64), np.asarray(against, np.float64))
    arm = np.where(against < point, point - ends.low, ends.high - point)
    away = np.abs(point - against)
    steps = np.divide(away * Z, arm, out=np.where(away > 0, np.inf, 0.0), where=arm > 0)
    result: Floats = 2 * norm.sf(steps)
    return result


def p_below(point: Floats, ends: Interval, bound: Floats | float) -> Floats:
    """One-sided p of "not below the bound": small where the figure surely lies below it."""
    both = p_of(point, ends, bound)
    result: Floats = np.where(np.asarray(point) < bound, both / 2, 1 - both / 2)
    return result


def false_discovery(p: Floats) -> Floats:
    """q (m,) of p (m,): reporting every q ≤ .05 makes 5 % of what is reported false on average.

    Source: Benjamini & Hochberg 1995, Controlling the False Discovery Rate.
    """
    if not len(p):
        return np.zeros(0)
    order = np.argsort(p, kind="stable")
    raised = p[order] * len(p) / np.arange(1, len(p) + 1)
    least = np.minimum.accumulate(raised[::-1])[::-1]
    q = np.empty(len(p))
    q[order] = np.minimum(least, 1.0)
    return q


def detectable(ends: Interval) -> Floats:
    """The least difference that such an interval would show not to be 0 in 80 % of cases."""
    result: Floats = (ends.high - ends.low) / (2 * Z) * REACH
    return result
