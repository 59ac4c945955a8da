"""What the random arms say of the whole pool: how many hits it held, and how many nobody has found yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from tasks.compute.outlook import Rate

UNKNOWN = Rate(float("nan"), float("nan"), float("nan"))


class Drawn(NamedTuple):
    """The random arm of one round, drawn from what the rounds before had left."""

    hits: int
    labels: int
    eligible: float  # rows that could have been drawn
    error: float  # standard error of `eligible`, as a share of it
    found_since: int  # hits of those rows that were found in this round and later, by any arm


class Held(NamedTuple):
    """Hits that the eligible rows of the rounds held, on average over rounds, and how many of those were found since."""

    hits: Rate
    found: float


def missed(pools: Sequence[Sequence[Drawn]]) -> Rate:
    """Hits of the pools that are not found, with a 95 % interval; a list of rounds for each of several disjoint pools.

    A round's share of hits times its eligible rows is how many hits there were before it; less what it and later rounds
    found, that is what is left now. Rounds of a pool count by their random labels, pools add up. Near-duplicates of what
    a round found count as missed until a later round has barred them.
    """
    if not any(one.labels for pool in pools for one in pool):
        return UNKNOWN
    held = _held(pools)
    most = sum(max(one.eligible - one.found_since for one in pool) for pool in pools if any(o.labels for o in pool))
    return Rate(*(float(np.clip(hits - held.found, 0.0, most)) for hits in held.hits))


def prevalence(pools: Sequence[Sequence[Drawn]]) -> Rate:
    """Share of hits among the rows that were eligible in each pool's first round, with a 95 % interval.

    No less than what has been found there already.
    """
    known = [pool for pool in pools if any(one.labels for one in pool)]
    if not known:
        return UNKNOWN
    held, first = _held(known), [pool[0] for pool in known]
    before = sum(one.found_since for one in first) - held.found  # found before the rounds that hits were estimated for
    eligible, known_hits = sum(one.eligible for one in first), sum(one.found_since for one in first)
    return Rate(*(float(np.clip((hits + before) / eligible, known_hits / eligible, 1.0)) for hits in held.hits))


def _held(pools: Sequence[Sequence[Drawn]]) -> Held:
    """Weighted sums of independent counts. The interval is for Poisson counts, so it is wide where hits are common.

    Source: Fay & Feuer, Statistics in Medicine 1997 (gamma intervals for weighted sums, which keep their level where counts
    are small or none); the error of `eligible` is added in quadrature (Zou & Donner 2008).
    """
    pairs = [(one, sum(other.labels for other in pool)) for pool in pools for one in pool if one.labels]
    weights = np.asarray([one.eligible / labels for one, labels in pairs])
    counts = np.asarray([one.hits for one, _ in pairs], dtype=np.float64)
    total, spread, widest = float(weights @ counts), float(weights**2 @ counts), float(weights.max())
    low = spread / (2 * total) * stats.chi2.ppf(0.025, 2 * total**2 / spread) if total else 0.0
    more, wider = total + widest, spread + widest**2
    high = wider / (2 * more) * stats.chi2.ppf(0.975, 2 * more**2 / wider)
    blur = 1.96 * float(np.linalg.norm(weights * counts * [one.error for one, _ in pairs]))
    found = sum(one.found_since * one.labels / labels for one, labels in pairs)
    return Held(
        Rate(total, total - float(np.hypot(total - low, blur)), total + float(np.hypot(high - total, blur))), found
    )
