"""Before, while and after money is spent: can this encoder see the issue, what a batch will yield, when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, logit

GOOD, BLIND = 0.9, 0.7  # AUC of held-out exemplars against the background
# Quantiles of the logit of the yield (low, median, high), each linear in what is known: see expected_yield, next_yield.
YIELD = (
    (-6.649, 0.4, 0.562, 0.175, -0.073, 0.31, -0.054),
    (-5.107, 0.325, 0.786, 0.312, -0.563, 0.378, -0.085),
    (-1.326, 0.223, 1.03, 0.158, -0.699, 0.047, -0.182),
)
NEXT_YIELD = ((-2.951, 0.29, 0.355, 0.617), (-0.725, 0.61, 0.241, 0.443), (0.83, 0.713, 0.139, 0.581))
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
    """Share of the chosen that will be hits, with its 95 % interval, from raw scores alone: no label is known yet.

    held_out (k,): exemplars by probes that had not seen them. behind (m,): background rows. chosen (b,): the batch, out
    of `pool` rows. Known are how far the batch's cut lies above the background, in its standard deviations; how heavy the
    background's tail is; how many exemplars were held out, what share of them passes the batch's median, and how far they
    lie above the background; how small a part of the pool the batch is. Source: linear quantile regression (Koenker &
    Bassett 1978) on 3,000 simulated campaigns of five families of vectors (tests/benchmarks/yield_model.py): issues of one
    class, of two and of a part of one, 2 to 30 exemplars, pools of 1,000 to 27,000, prevalences of .1 to 8 %. The
    quantiles are those that cover 95 % in families left out. It is wide, because a few exemplars say little of how many
    more there are; without held-out exemplars nothing is known.
    """
    if not len(chosen) or not len(held_out):
        return Rate(0.0 if not len(chosen) else 0.5, 0.0, 1.0)
    return predicted(YIELD, yield_signs(held_out, behind, chosen, pool=pool), len(chosen))


def yield_signs(
    held_out: NDArray[np.float64], behind: NDArray[np.float64], chosen: NDArray[np.float64], *, pool: int
) -> list[float]:
    """What expected_yield is told from, in its order."""
    mean, spread = float(behind.mean()), float(behind.std()) or 1.0
    middle, high, top = np.quantile(behind, [0.5, 0.9, 0.99])
    below = (np.searchsorted(np.sort(behind), held_out) + 0.5) / (len(behind) + 1)
    return [
        (float(chosen.min()) - mean) / spread,
        float((top - middle) / max(high - middle, 1e-9)),
        float(np.log(len(held_out))),
        _log_odds(float((held_out > np.median(chosen)).sum()), len(held_out)),
        float(stats.norm.ppf(below).mean()),
        float(np.log(100 * len(chosen) / pool)),
    ]


def next_yield(rounds: Sequence[tuple[int, int]], chosen: NDArray[np.float64]) -> Rate:
    """Share of the chosen that will be hits, with its 95 % interval, from (hits, labels) of earlier rounds, oldest first.

    chosen (b,): scores 0..1 of the batch, by probes that learnt from those labels. Known are the last round's log odds of
    a hit, those of all rounds, and the batch's median score as log odds. Source: as expected_yield. Raises ValueError
    without a label.
    """
    told = [(hits, labels) for hits, labels in rounds if labels]
    if not told:
        raise ValueError("no round has labels; use expected_yield")
    if not len(chosen):
        return Rate(0.0, 0.0, 1.0)
    return predicted(NEXT_YIELD, next_signs(told, chosen), len(chosen))


def next_signs(told: Sequence[tuple[int, int]], chosen: NDArray[np.float64]) -> list[float]:
    """What next_yield is told from, in its order; told: (hits, labels) of rounds with labels, oldest first."""
    everything = float(sum(hits for hits, _ in told)), sum(labels for _, labels in told)
    middle = float(logit(np.clip(np.median(chosen), 1e-6, 1 - 1e-6)))
    return [_log_odds(*told[-1]), _log_odds(*everything), middle]


def _log_odds(hits: float, of: int) -> float:
    """With half a hit and half a miss more, so that none and all are finite."""
    return float(np.log((hits + 0.5) / (of - hits + 0.5)))


def predicted(quantiles: Sequence[Sequence[float]], known: list[float], count: int) -> Rate:
    """Quantiles of a yield of `count`; the ends are rounded outward to whole hits."""
    low, middle, high = sorted(float(expit(line[0] + np.dot(line[1:], known))) for line in quantiles)
    ends = np.floor(low * (count + 1) - 0.5), np.ceil(high * (count + 1) - 0.5)
    least, most = (float(end) for end in np.clip(ends, 0, count) / count)
    return Rate(min(max(middle, least), most), least, most)


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
