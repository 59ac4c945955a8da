"""Before, while and after money is spent: can this encoder see the issue, what a batch will yield, when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

GOOD, BLIND = 0.9, 0.7  # AUC of held-out exemplars against the background
YIELD = (-7.461, -0.328, 1.084, 0.847, 0.959)  # see expected_yield
YIELD_ERROR = (-4.5, 4.1)  # logits
CHECKABLE = 3  # exemplars below which nothing can be held out that says much


class Adequacy(NamedTuple):
    """Whether an encoder can tell an issue's exemplars from the background."""

    auc: float
    low: float  # 95 %
    high: float
    above_99: float  # share of held-out exemplars that score above 99 % of the background
    verdict: str  # good, weak, blind or unknown
    reason: str


class Rate(NamedTuple):
    """A share with its 95 % interval."""

    share: float
    low: float
    high: float


class Cost(NamedTuple):
    """What something takes: labels, minutes and money."""

    labels: float
    minutes: float
    money: float


def adequacy(held_out: NDArray[np.float64], behind: NDArray[np.float64]) -> Adequacy:
    """From raw scores of exemplars (k,) by probes that had not seen them, and of background rows (m,).

    blind: even the upper end of the AUC's interval is poor, so that mining would be little better than chance.
    """
    if len(held_out) < CHECKABLE:
        reason = f"{len(held_out)} exemplars that can be held out are too few to check; add some"
        return Adequacy(float("nan"), 0.0, 1.0, float("nan"), "unknown", reason)
    ordered = np.sort(behind)
    below = (np.searchsorted(ordered, held_out, "left") + np.searchsorted(ordered, held_out, "right")) / 2 / len(behind)
    auc, error = float(below.mean()), float(below.std(ddof=1) / np.sqrt(len(below)))
    reach = float(stats.t.ppf(0.975, len(below) - 1)) * error
    low, high = max(0.0, auc - reach), min(1.0, auc + reach)
    above = float((below >= 0.99).mean())
    verdict = "good" if auc >= GOOD else "blind" if high < BLIND else "weak"
    reason = f"a held-out exemplar outscores {auc:.0%} of the background on average; {above:.0%} outscore 99 % of it"
    return Adequacy(auc, low, high, above, verdict, reason)


def expected_yield(
    held_out: NDArray[np.float64], behind: NDArray[np.float64], chosen: NDArray[np.float64], *, pool: int
) -> Rate:
    """Share of the chosen that will be hits, with its 95 % interval, from raw scores alone.

    held_out (k,): exemplars by probes that had not seen them. behind (m,): background rows. chosen (b,): the batch, out
    of `pool` rows. A linear model of the logit of the yield: how far the batch's cut lies above the background, how heavy
    the background's tail is, how many exemplars pass the cut, how small a part of the pool the batch is. YIELD was fitted on
    120 simulated campaigns of the pilot (seeds 0 to 5); its interval's ends are the 1st and 99th percentile of residuals
    where the class and the kind of issue are left out, since other data are further away than other seeds. It is wide: a
    few exemplars say little of how many more there are. See tests/benchmarks/README.md for its coverage.
    """
    if not len(chosen):
        return Rate(0.0, 0.0, 1.0)
    cut, mean, spread = float(chosen.min()), float(behind.mean()), float(behind.std()) or 1.0
    above = (float((held_out > cut).sum()) + 0.5) / (len(held_out) + 1)
    middle, high, top = np.quantile(behind, [0.5, 0.9, 0.99])
    known = [
        1.0,
        float(np.log(above / (1 - above))),
        (cut - mean) / spread,
        float(np.log(100 * len(chosen) / pool)),
        float((top - middle) / max(high - middle, 1e-9)),
    ]
    logit = float(np.dot(known, YIELD))
    return Rate(*(float(expit(logit + away)) for away in (0.0, *YIELD_ERROR)))


def rate(hits: float, labels: int) -> Rate:
    """Hits per label with its 95 % Clopper–Pearson interval; everything is possible without labels."""
    if labels == 0:
        return Rate(float("nan"), 0.0, 1.0)
    low = float(stats.beta.ppf(0.025, hits, labels - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(0.975, hits + 1, labels - hits)) if hits < labels else 1.0
    return Rate(hits / labels, low, high)


def next_hit(last_round: Rate, *, minutes_per_label: float, rate_per_hour: float) -> Cost:
    """What the next hit takes, if the next labels are like the last round's: 1 / (hits per label).

    Without a hit, at the upper end of the interval: it takes at least so much.
    """
    share = last_round.share if last_round.share > 0 else last_round.high
    labels = 1.0 / share
    return Cost(labels, labels * minutes_per_label, labels * minutes_per_label / 60 * rate_per_hour)


def stop_reason(
    last_round: Rate, coming: Cost, *, labels: int, min_yield: float, max_cost: float, max_labels: int
) -> str:
    """Why a campaign should end, or '' when it should not. A bound of 0 is none.

    A low yield counts only when it is surely low: the upper end of the last round's interval lies below the bound.
    """
    if max_labels and labels >= max_labels:
        return f"{labels} labels came back; the bound is {max_labels}"
    if min_yield and last_round.high < min_yield:
        found = f"{last_round.share:.1%} hits per label (at most {last_round.high:.1%})"
        return f"the last round found {found}; the bound is {min_yield:.1%}"
    if max_cost and coming.money > max_cost:
        return f"the next hit is projected to cost {coming.money:.2f}; the bound is {max_cost:.2f}"
    return ""


def missed(prevalence: Rate, *, pool: int, found: int) -> Rate:
    """Hits of the pool that were not found, by the random arm's share of hits; not below 0."""
    return Rate(*(max(0.0, share * pool - found) for share in prevalence))


def curve(hits: Sequence[bool]) -> NDArray[np.int64]:
    """Hits among the first 1, 2, … labels (n,)."""
    return np.cumsum(np.asarray(hits, dtype=np.int64))
