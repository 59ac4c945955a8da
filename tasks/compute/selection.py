"""From ranked rows to a batch: what stands for what, how alike the chosen may be, and who gets a share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WINDOW = 2_000  # ranked rows that compete at a time; budgets up to 500 see all of theirs at once
BLOCK = 8_192  # rows and reference rows in one product: 256 MB
# A row's cosine to itself, at length 1 in float32, may be so much below 1: 4,096 products each rounded by 6e-8. Two
# roundings of one image's vector to float16 are 4e-8 apart, and two pictures that a person can tell apart 1e-4 or more.
ROUNDING = 4e-6
# Of `agreed`; tuned on the pilot's seeds 0 to 2, where 3 to 20 neighbours and shares of .3 to .85 are within a point.
AGREEING = 5  # neighbours that a row's score is evened out with
AGREED_SHARE, AGREED_STEPS = 0.5, 3
AGREED_AMONG = 4_096  # rows at the top that can be neighbours


class Chosen(NamedTuple):
    """Places among the ranked rows that were chosen, best first, and how many near-duplicates each one stands for."""

    places: NDArray[np.int64]  # (k,) ascending
    stands_for: NDArray[np.int64]  # (k,)
    near_duplicates: int


class Shares(NamedTuple):
    """Slots kept for groups (prototypes, predicted classes) before the rest go by score alone."""

    groups: NDArray[np.int64]  # (n,) the group of each ranked row, 0..g-1
    slots: NDArray[np.int64]  # (g,)


def nearest(vectors: NDArray[np.float32], references: NDArray[np.float32]) -> NDArray[np.float32]:
    """For each row of vectors (n, dim) its greatest cosine to a row of references (m, dim); -1 for m = 0."""
    found = np.full(len(vectors), -1.0, dtype=np.float32)
    for start in range(0, len(references) if len(vectors) else 0, BLOCK):
        block = unit(references[start : start + BLOCK]).T
        for first in range(0, len(vectors), BLOCK):
            here = found[first : first + BLOCK]
            np.maximum(here, (unit(vectors[first : first + BLOCK]) @ block).max(axis=1), out=here)
    return found


def too_close(vectors: NDArray[np.float32], references: NDArray[np.float32], *, cosine: float) -> NDArray[np.bool_]:
    """For each row of vectors (n, dim) whether any row of references (m, dim) is at least that similar."""
    result: NDArray[np.bool_] = nearest(vectors, references) >= cosine - ROUNDING
    return result


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (n, dim) at length 1 once more: float16 leaves a stored row up to .0005 longer or shorter."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    result: NDArray[np.float32] = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return result


def even_shares(groups: NDArray[np.int64], *, slots: int) -> Shares:
    """So many slots dealt evenly among the groups that occur, larger groups first; one group needs no share."""
    sizes = np.bincount(groups, minlength=1)
    dealt = np.zeros(len(sizes), dtype=np.int64)
    present = np.flatnonzero(sizes)
    if len(present) > 1:
        whole, rest = divmod(slots, len(present))
        by_size = present[np.argsort(-sizes[present], kind="stable")]
        dealt[by_size] = whole
        dealt[by_size[:rest]] += 1
    return Shares(groups, dealt)


def agreed(vectors: NDArray[np.float32], raw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Raw scores (n,) of unit rows (n, dim), best first, evened out with those of their nearest neighbours among them.

    A row between rows that score high is likelier a hit than one that stands alone among what scores low. Each of a few
    steps mixes a row's own score with the mean of its neighbours'. Source: label spreading (Zhou et al., NIPS 2003).
    """
    among = vectors[:AGREED_AMONG]
    count = min(AGREEING, len(among) - 1)
    if count < 1:
        return raw
    near = np.empty((len(vectors), count), dtype=np.int64)
    for start in range(0, len(vectors), WINDOW):
        cosines = vectors[start : start + WINDOW] @ among.T
        own = np.arange(start, min(start + WINDOW, len(among)))
        cosines[own - start, own] = -np.inf
        near[start : start + WINDOW] = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    found = raw
    for _ in range(AGREED_STEPS):
        found = (1 - AGREED_SHARE) * raw + AGREED_SHARE * found[near].mean(axis=1)
    return found


def choose(
    vectors: NDArray[np.float32],
    raw: NDArray[np.float64],
    *,
    budget: int,
    near_duplicate_cosine: float,
    diversity: float = 0.0,
    shares: Shares | None = None,
) -> Chosen:
    """Take up to `budget` of unit rows (n, dim), ranked by raw scores (n,), none a near-duplicate of another.

    Maximal marginal relevance: each step takes the row with the greatest (1 - diversity) · score - diversity · (greatest
    cosine to what is taken), scores scaled to 0..1 within the window. Groups are served their slots first. A row that is
    dropped counts for the most similar row taken. Source: Carbonell & Goldstein, SIGIR 1998.
    """
    slots = shares.slots.copy() if shares else np.zeros(1, dtype=np.int64)
    groups = shares.groups if shares else np.zeros(len(vectors), dtype=np.int64)
    taken: list[int] = []
    closest = np.full(len(vectors), -1, dtype=np.int64)  # the taken row that each dropped row stands behind
    windows = range(0, len(vectors), WINDOW)
    for number, start in enumerate(windows):
        # Each window yields its part of what is left, so that a large batch is not quadratic in the whole ranking.
        left = budget - len(taken)
        quota = left if len(vectors) - start <= WINDOW else min(left, -(-left // (len(windows) - number)))
        quota = left if left <= WINDOW // 4 else quota
        window = _Window(vectors[start : start + WINDOW], raw[start : start + WINDOW], near_duplicate_cosine)
        for place in taken_blocks(taken):
            window.see(vectors[place], np.asarray(place))
        for _ in range(quota):
            best = window.best(diversity, groups[start : start + WINDOW], slots)
            if best is None:
                break
            taken.append(start + best)
            slots[groups[start + best]] = max(0, slots[groups[start + best]] - 1)
            window.take(best, start + best)
        closest[start : start + WINDOW] = window.behind
        if len(taken) == budget:
            break
    places = np.sort(np.asarray(taken, dtype=np.int64))
    reach = int(places[-1]) if len(places) == budget > 0 else len(vectors) * (budget > 0)
    dropped = closest[:reach][closest[:reach] >= 0]
    stands_for = np.bincount(np.searchsorted(places, dropped), minlength=len(places)) if len(places) else places
    return Chosen(places, stands_for.astype(np.int64), len(dropped))


def taken_blocks(taken: list[int]) -> list[list[int]]:
    """Places in blocks that one product can hold."""
    return [taken[start : start + BLOCK] for start in range(0, len(taken), BLOCK)]


class _Window:
    """Ranked rows that compete, and how close each has come to what is taken."""

    def __init__(self, vectors: NDArray[np.float32], raw: NDArray[np.float64], cosine: float) -> None:
        self._vectors, self._cosine = unit(vectors), cosine - ROUNDING
        spread = float(raw.max() - raw.min()) if len(raw) else 0.0
        self._scores = (raw - raw.min()) / spread if spread > 0 else np.zeros(len(raw))
        self._near = np.full(len(vectors), -1.0, dtype=np.float32)
        self._open = np.ones(len(vectors), dtype=np.bool_)
        self.behind = np.full(len(vectors), -1, dtype=np.int64)

    def see(self, references: NDArray[np.float32], places: NDArray[np.int64]) -> None:
        """Remember how close the rows are to rows that were taken, at these places of the ranking."""
        cosines = self._vectors @ unit(references).T
        np.maximum(self._near, cosines.max(axis=1), out=self._near)
        close = self._open & (self._near >= self._cosine)
        self.behind[close] = places[cosines[close].argmax(axis=1)]
        self._open &= ~close

    def take(self, best: int, place: int) -> None:
        """Take one row; its near-duplicates are out."""
        self._open[best] = False
        self.see(self._vectors[best : best + 1], np.asarray([place]))

    def best(self, diversity: float, groups: NDArray[np.int64], slots: NDArray[np.int64]) -> int | None:
        """The row to take next, or None when no row is left."""
        allowed = self._open & (slots[groups] > 0) if slots.any() else self._open
        rows = np.flatnonzero(allowed if allowed.any() else self._open)
        if not len(rows):
            return None
        value = self._scores[rows] if not diversity else self._marginal(rows, diversity)
        return int(rows[value.argmax()])

    def _marginal(self, rows: NDArray[np.int64], diversity: float) -> NDArray[np.float64]:
        near = np.maximum(self._near[rows], 0.0)
        result: NDArray[np.float64] = (1.0 - diversity) * self._scores[rows] - diversity * near
        return result
