"""What is wrong with predictions that come from outside, row by row; columns pass by one at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NOTHING, UNKNOWN = -1, -2  # a row that names no class, or one that is not known
EXTRA = -1  # a row about no sample that was asked for
TOLERANCE = 1e-3  # of a sum of probabilities: as much as 100 classes in three decimals may be off
TIE = 1e-6  # a class this close to the most probable one may be the answer
EXAMPLES = 5

MISSING = "missing"
OTHER = "extra"
REPEATED = "duplicate"
CONTRADICTORY = "contradictory duplicate"
NOT_A_NUMBER = "NaN or empty probability"
INFINITE = "infinite probability"
NEGATIVE = "negative probability"
UNNORMALISED = "sum is not 1"
ZERO = "sum is 0"
UNKNOWN_CLASS = "unknown class"
NO_ANSWER = "no answer"
NOT_MOST_PROBABLE = "class is not the most probable one"


class Finding(NamedTuple):
    """A kind of fault, how often it occurs, and the first rows (or, for missing ones, the first samples) that have it."""

    kind: str
    rows: int
    first: list[int]


class Taken(NamedTuple):
    """What the rows say about each sample that was asked for."""

    findings: list[Finding]
    rows: NDArray[np.int64]  # (samples,) the row that answers for it; -1: none
    predicted: NDArray[np.int64]  # (samples,) its class; -1: none
    sums: NDArray[np.float64]  # (samples,) of its probabilities; 1 where they add up


class Check:
    """A check of n rows about `samples` samples. Memory: a few numbers a row, however many classes there are."""

    def __init__(self, places: NDArray[np.int64], said: NDArray[np.int64], *, samples: int) -> None:
        """Places (n,) are the samples that rows are about, or EXTRA; said (n,) classes, or NOTHING, or UNKNOWN."""
        rows = np.arange(len(places))
        self._places, self._said, self._samples = places, said, samples
        self._asked = places >= 0
        self._first = np.full(samples, -1, dtype=np.int64)
        backwards = rows[self._asked][::-1]
        self._first[places[backwards]] = backwards  # the last to be written, hence the first row, stays
        repeated = self._asked.copy()
        repeated[self._first[self._first >= 0]] = False
        self._repeated = np.flatnonzero(repeated)
        self._original = self._first[places[self._repeated]]
        self._differs = said[self._repeated] != said[self._original]
        self._sums = np.zeros(len(places))
        self._best = np.full(len(places), -np.inf)
        self._best_class = np.full(len(places), NOTHING, dtype=np.int64)
        self._of_said = np.zeros(len(places))
        self._flags = {kind: np.zeros(len(places), bool) for kind in (NOT_A_NUMBER, INFINITE, NEGATIVE)}
        self._scored = False

    def add(self, class_place: int, shares: NDArray[np.float64]) -> None:
        """One class's probabilities (n,)."""
        self._scored = True
        self._flags[NOT_A_NUMBER] |= np.isnan(shares)
        self._flags[INFINITE] |= np.isinf(shares)
        self._flags[NEGATIVE] |= shares < 0
        again, original = shares[self._repeated], shares[self._original]
        self._differs |= (again != original) & ~(np.isnan(again) & np.isnan(original))
        self._sums += shares
        higher = shares > self._best
        self._best[higher], self._best_class[higher] = shares[higher], class_place
        own = self._said == class_place
        self._of_said[own] = shares[own]

    def finish(self) -> Taken:
        """Everything that was found, in a fixed order; only rows about samples that were asked for are looked into."""
        masks = {OTHER: ~self._asked}
        repeated, contradictory = (np.zeros(len(self._places), bool) for _ in range(2))
        repeated[self._repeated[~self._differs]] = True
        contradictory[self._repeated[self._differs]] = True
        masks |= {REPEATED: repeated, CONTRADICTORY: contradictory}
        masks[UNKNOWN_CLASS] = self._asked & (self._said == UNKNOWN)
        masks[NO_ANSWER] = self._asked & (self._said == NOTHING) & (not self._scored)
        if self._scored:
            masks |= self._about_shares()
        findings = [_finding(MISSING, self._first < 0), *(_finding(kind, mask) for kind, mask in masks.items())]
        known = self._first >= 0
        predicted, sums = np.full(self._samples, NOTHING, dtype=np.int64), np.ones(self._samples)
        predicted[known] = np.where(self._said >= 0, self._said, self._best_class)[self._first[known]]
        if self._scored:
            found = self._sums[self._first[known]]
            sums[known] = np.where(np.abs(found - 1) <= TOLERANCE, 1.0, found)
        return Taken(
            [finding for finding in findings if finding.rows],
            self._first,
            predicted,
            sums,
        )

    def _about_shares(self) -> dict[str, NDArray[np.bool_]]:
        """Faults of rows' probabilities; what is no number is not blamed for its sum as well."""
        masks = {kind: mask & self._asked for kind, mask in self._flags.items()}
        sound = self._asked & ~masks[NOT_A_NUMBER] & ~masks[INFINITE] & ~masks[NEGATIVE]
        zero = sound & (self._sums == 0)
        with np.errstate(invalid="ignore"):
            masks[UNNORMALISED] = sound & ~zero & (np.abs(self._sums - 1) > TOLERANCE)
            masks[ZERO] = zero
            less = self._of_said < self._best - TIE
        masks[NOT_MOST_PROBABLE] = sound & (self._said >= 0) & less
        return masks


def _finding(kind: str, mask: NDArray[np.bool_]) -> Finding:
    return Finding(kind, int(mask.sum()), np.flatnonzero(mask)[:EXAMPLES].tolist())
