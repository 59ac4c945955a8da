"""How good scores are: precision by threshold, its average, and whether probabilities mean what they say."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scores = NDArray[np.floating]
BINS = 15  # Guo et al. 2017


class Ranked(NamedTuple):
    """The average precision of scores, and how each sample moves it."""

    value: float  # nan without positives
    influences: Floats  # (n,): value ≈ value + Σ (weight - 1) · influence


class Sweep(NamedTuple):
    """What a threshold would give: everything that scores at least it is said to be of the class."""

    thresholds: Floats  # (k,), rising
    precision: Floats
    recall: Floats
    f1: Floats
    said: NDArray[np.int64]


def average_precision(scores: Scores, positives: NDArray[np.bool_]) -> float:
    """Σ (recall step) × precision over thresholds, as scikit-learn has it; nan without positives. scores, positives: (n,)."""
    found = np.sort(scores[positives])
    if not len(found):
        return float("nan")
    return float(_precision_at(found, np.sort(scores), found).mean())


def ranked(scores: Scores, positives: NDArray[np.bool_]) -> Ranked:
    """Average precision with the influence of every sample, which is its derivative by the sample's weight."""
    found = np.sort(scores[positives])
    count = len(found)
    if not count:
        return Ranked(float("nan"), np.zeros(len(scores)))
    ordered = np.sort(scores)
    above = len(ordered) - np.searchsorted(ordered, found, "left")  # samples that score at least as much
    precision = _precision_at(found, ordered, found)
    value = float(precision.mean())
    # A sample counts above every positive that scores no more than it does.
    for_hits = np.concatenate([[0.0], np.cumsum(1 / above)])
    for_all = np.concatenate([[0.0], np.cumsum(precision / above)])
    below = np.searchsorted(found, scores, "right")
    influences = np.where(positives, for_hits[below], 0.0) - for_all[below]
    own = np.flatnonzero(positives)
    influences[own] += precision[np.searchsorted(found, scores[own], "left")] - value
    return Ranked(value, influences / count)


def _precision_at(thresholds: Scores, ordered: Scores, found: Scores) -> Floats:
    """Of all scores (sorted) that reach a threshold, the share that are positives' (sorted)."""
    hits = len(found) - np.searchsorted(found, thresholds, "left")
    result: Floats = hits / (len(ordered) - np.searchsorted(ordered, thresholds, "left"))
    return result


def threshold_sweep(scores: Scores, positives: NDArray[np.bool_], *, most: int = 101) -> Sweep:
    """Precision, recall and F1 at up to `most` thresholds: every distinct score or, of more, quantiles of the positives'."""
    found, ordered = np.sort(scores[positives]).astype(np.float64), np.sort(scores).astype(np.float64)
    thresholds = np.unique(ordered)
    if len(thresholds) > most:
        source = found if len(found) else ordered
        thresholds = np.unique(np.quantile(source, np.linspace(0, 1, most), method="nearest"))
    said = len(ordered) - np.searchsorted(ordered, thresholds, "left")
    hits = len(found) - np.searchsorted(found, thresholds, "left")
    recall = hits / max(1, len(found))
    return Sweep(thresholds, hits / said, recall, 2 * hits / (said + len(found)), said.astype(np.int64))


class Calibration(NamedTuple):
    """Whether a model that is 80 % sure is right 80 % of the time. Means over all samples; bins by confidence."""

    ece: float  # |confidence - accuracy| averaged over samples, bin by bin
    brier: float  # mean Σ over classes (probability - truth)², 0..2
    log_loss: float
    counts: NDArray[np.int64]  # (bins,)
    confidence: Floats  # (bins,) mean in the bin, 0 where it is empty
    accuracy: Floats


class Certainty:
    """Gathers what calibration needs from a class's probabilities at a time, so that they never lie in memory all at once."""

    def __init__(self, targets: NDArray[np.int64]) -> None:
        self._targets = targets
        self._squares = np.zeros(len(targets))
        self._top = np.zeros(len(targets))
        self._true = np.zeros(len(targets))

    def add(self, place: int, probabilities: Scores) -> None:
        """A class's probabilities (n,)."""
        own = self._targets == place
        self._true[own] = probabilities[own]
        self._squares += np.square(probabilities, dtype=np.float64)
        np.maximum(self._top, probabilities, out=self._top)

    def losses(self) -> Floats:
        """Each sample's part (n,) of the Brier score."""
        result: Floats = self._squares - 2 * self._true + 1
        return result

    def measured(self, right: NDArray[np.bool_]) -> Calibration:
        """Over all classes added; right (n,): whether the predicted class is true.

        Source of the binned error: Guo et al. 2017, On Calibration of Modern Neural Networks, 15 equal bins.
        """
        bins = np.clip(np.ceil(self._top * BINS).astype(np.int64) - 1, 0, BINS - 1)
        counts = np.bincount(bins, minlength=BINS)
        some = np.maximum(counts, 1)
        confidence = np.bincount(bins, weights=self._top, minlength=BINS) / some
        accuracy = np.bincount(bins, weights=right, minlength=BINS) / some
        least = np.finfo(np.float64).eps
        return Calibration(
            ece=float(counts @ np.abs(confidence - accuracy) / max(1, len(right))),
            brier=float(self.losses().mean()),
            log_loss=float(-np.log(np.clip(self._true, least, 1.0)).mean()),
            counts=counts,
            confidence=confidence,
            accuracy=accuracy,
        )
