"""The exact scan: the best rows of many shards for a few probes, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# 8,192 rows × 512 dimensions in fp32 are 16 MB: the block and its scores stay in the caches of a few cores.
BLOCK_ROWS = 8_192


class Ranked(NamedTuple):
    """The best corpus rows and how well each matches, best first; equal scores keep corpus order."""

    rows: NDArray[np.int64]  # (k,) over the shards laid end to end
    scores: NDArray[np.float32]  # (k,)


def best(probes: NDArray[np.float32], shards: Iterable[NDArray[np.float16]], *, keep: int) -> Ranked:
    """The `keep` rows with the greatest max over probes of the inner product.

    probes: (p, dim). shards: (n_i, dim) each, memory-mapped or not. A blocked GEMM, a maximum over the probes, and a
    running top-k: memory is one block of fp32 rows and their scores, whatever the corpus.
    """
    rows: NDArray[np.int64] = np.empty(0, np.int64)
    scores: NDArray[np.float32] = np.empty(0, np.float32)
    offset = 0
    transposed = np.ascontiguousarray(probes.T, dtype=np.float32)
    for shard in shards:
        for start in range(0, len(shard), BLOCK_ROWS):
            block = np.asarray(shard[start : start + BLOCK_ROWS], dtype=np.float32)
            found = (block @ transposed).max(axis=1)
            rows = np.concatenate([rows, np.arange(offset + start, offset + start + len(block))])
            scores = np.concatenate([scores, found])
            if len(rows) > 2 * max(keep, BLOCK_ROWS):
                rows, scores = _top(rows, scores, keep)
        offset += len(shard)
    return Ranked(*_top(rows, scores, keep))


def _top(
    rows: NDArray[np.int64], scores: NDArray[np.float32], keep: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best `keep` in order; ties by row, so that the result does not depend on the blocks."""
    order = np.lexsort((rows, -scores))[:keep]
    return rows[order], scores[order]
