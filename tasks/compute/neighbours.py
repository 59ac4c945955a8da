"""The nearest rows of several queries at once, for a pool that is restricted to what lies around known hits."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 8_192


def around(
    queries: NDArray[np.float32],
    shards: Iterable[NDArray[np.float16]],
    allowed: Iterable[NDArray[np.bool_] | None],
    *,
    count: int,
) -> NDArray[np.int64]:
    """Rows, ascending, that are among the `count` nearest of any unit query (q, dim); shards (n_i, dim) laid end to end.

    Each query keeps its running best, so memory is q · count whatever the corpus. Source: SEALS (arXiv 2007.00077), whose
    candidates are the neighbours of what is labelled.
    """
    best: NDArray[np.float32] = np.full((len(queries), count), -np.inf, dtype=np.float32)
    rows: NDArray[np.int64] = np.full((len(queries), count), -1, dtype=np.int64)
    first = 0
    for shard, mask in zip(shards, allowed, strict=True):
        for start in range(0, len(shard), BLOCK_ROWS):
            block = np.asarray(shard[start : start + BLOCK_ROWS], dtype=np.float32)
            cosines = queries @ block.T
            if mask is not None:
                cosines[:, ~mask[start : start + BLOCK_ROWS]] = -np.inf
            if not (cosines > best[:, -1:]).any():
                continue
            both = np.hstack([best, cosines])
            numbers = np.hstack([rows, np.broadcast_to(first + start + np.arange(len(block)), cosines.shape)])
            order = np.argsort(-both, axis=1, kind="stable")[:, :count]
            best, rows = np.take_along_axis(both, order, 1), np.take_along_axis(numbers, order, 1)
        first += len(shard)
    found: NDArray[np.int64] = np.unique(rows[np.isfinite(best)])
    return found
