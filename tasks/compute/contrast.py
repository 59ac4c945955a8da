"""A second opinion on the top of a ranking: is a row nearer to what is shown than to what lies around it?

Probes look along directions, which finds a class among others. A concept that is a small ball, such as a part of a class,
is found better by distance, as long as rows in crowded places, which are near to everything, are held back. Which of the
two suits an issue is told by its exemplars: each is held out and ranked among the background in both ways.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tasks.compute import selection

Matrix = NDArray[np.float64]

# Tuned on the pilot's seeds 0 to 5 (classes, pairs of classes, sub-slices), on its vectors and on pixels.
AROUND = 0.01  # share of the background that lies around a row
AROUND_AT_LEAST = 10
HELD_BACK = 1.5  # weight of the mean cosine to what lies around, against twice that to what is shown
MOST, EVEN, SPREAD = 2.0, 0.4, 0.15  # the weight: at most; the lead in mean log ranks at half of it; how fast it grows
HELD_OUT = 200  # of what is shown, to find the weight


class Contrast(NamedTuple):
    """What rows are compared with, and how much that counts beside their raw scores, both in standard deviations."""

    shown: NDArray[np.float32]  # (p, dim) unit rows
    behind: NDArray[np.float32]  # (m, dim) unit rows
    weight: float

    def of(self, vectors: NDArray[np.float32]) -> Matrix:
        """Twice the mean cosine to what is shown, less 1.5 times that to what lies around; vectors (n, dim) → (n,).

        Source: cross-domain similarity local scaling (Conneau et al., ICLR 2018), with another factor.
        """
        towards = (vectors @ self.shown.mean(axis=0)).astype(np.float64)
        return _contrasts(towards, _local(vectors @ self.behind.T))


def contrast(
    shown: NDArray[np.float32], behind: NDArray[np.float32], whitened: Matrix, whitened_behind: Matrix
) -> Contrast:
    """Of shown (p, dim) against the background (m, dim), with the weight that held-out ranks ask for.

    whitened (p, dim), whitened_behind (m, dim): the same in the space in which the background is round.
    """
    if len(shown) < 2:
        return Contrast(shown, behind, 0.0)
    out = np.sort(np.random.default_rng(0).permutation(len(shown))[:HELD_OUT])
    by_probe = _mean_log_rank(*_without_own(whitened, whitened_behind, out))
    own, others = _without_own(shown.astype(np.float64), behind.astype(np.float64), out)
    local = _local(behind @ behind.T, own=True)
    by_contrast = _mean_log_rank(_contrasts(own, _local(shown[out] @ behind.T)), _contrasts(others, local[:, None]))
    return Contrast(shown, behind, MOST * float(expit((by_probe - by_contrast - EVEN) / SPREAD)))


def merits(vectors: NDArray[np.float32], raw: Matrix, second: Contrast | None) -> Matrix:
    """What ranked rows (n, dim) with raw scores (n,), best first, are ordered by: both opinions, evened out by neighbours."""
    if second is None or len(raw) < 2:
        return selection.agreed(vectors, raw)
    return selection.agreed(vectors, _in_deviations(raw) + second.weight * _in_deviations(second.of(vectors)))


def _contrasts(towards: Matrix, local: Matrix) -> Matrix:
    return 2 * towards - HELD_BACK * local


def _local(cosines: NDArray[np.float32], *, own: bool = False) -> Matrix:
    """Mean cosine (n,) of rows to the nearest of the background; cosines (n, m). With `own`, rows are of the background."""
    count = min(max(AROUND_AT_LEAST, int(AROUND * cosines.shape[1])) + own, cosines.shape[1])
    top = np.partition(cosines, -count, axis=1)[:, -count:].astype(np.float64)
    found: Matrix = (top.sum(axis=1) - own * cosines.max(axis=1)) / max(1, count - own)
    return found


def _without_own(shown: Matrix, behind: Matrix, out: NDArray[np.int64]) -> tuple[Matrix, Matrix]:
    """Products with the mean of what is shown but for one: of that one (k,), and of the background (m, k)."""
    total, count = shown.sum(axis=0), len(shown) - 1
    held = shown[out]
    own = ((held @ total) - (held * held).sum(axis=1)) / count
    others = ((behind @ total)[:, None] - behind @ held.T) / count
    return own, others


def _mean_log_rank(own: Matrix, others: Matrix) -> float:
    """Of each value (k,) among its column of others (m, k)."""
    above = (others >= own).sum(axis=0)
    return float(np.log((above + 1) / (len(others) + 1)).mean())


def _in_deviations(values: Matrix) -> Matrix:
    spread = float(values.std())
    result: Matrix = (values - values.mean()) / (spread if spread > 0 else 1.0)
    return result
