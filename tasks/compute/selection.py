"""From ranked rows to a batch: what is excluded, what stands for what."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Chosen(NamedTuple):
    """Places among the ranked rows that were chosen, best first, and how many near-duplicates each one stands for."""

    places: NDArray[np.int64]  # (k,)
    stands_for: NDArray[np.int64]  # (k,)
    near_duplicates: int


def too_close(vectors: NDArray[np.float32], references: NDArray[np.float32], *, cosine: float) -> NDArray[np.bool_]:
    """For each unit row of vectors (n, dim) whether any unit row of references (m, dim) is at least that similar."""
    if len(references) == 0 or len(vectors) == 0:
        return np.zeros(len(vectors), dtype=np.bool_)
    close = np.zeros(len(vectors), dtype=np.bool_)
    for start in range(0, len(references), 8_192):
        close |= (vectors @ references[start : start + 8_192].T).max(axis=1) >= cosine
    return close


def choose(vectors: NDArray[np.float32], *, budget: int, near_duplicate_cosine: float) -> Chosen:
    """Walk down unit rows (n, dim), best first, and take up to `budget` that are near-duplicates of none taken before.

    A row that is dropped counts for the most similar row taken.
    """
    taken = np.empty((min(budget, len(vectors)), vectors.shape[1]), dtype=np.float32)
    places: list[int] = []
    stands_for = np.zeros(len(taken), dtype=np.int64)
    dropped = 0
    for place, vector in enumerate(vectors):
        if len(places) == budget:
            break
        similarity = taken[: len(places)] @ vector
        if len(places) and similarity.max() >= near_duplicate_cosine:
            stands_for[int(similarity.argmax())] += 1
            dropped += 1
            continue
        taken[len(places)] = vector
        places.append(place)
    return Chosen(np.asarray(places, dtype=np.int64), stands_for[: len(places)], dropped)
