"""The nearest rows of several queries at once, for a pool that is restricted to what lies around known hits."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.compute.blocks import Room, Rows, as_tensor, parts
from tasks.compute.scan import BLOCK_ROWS, Block, Top, blocks_of, on_all_cores


def around(
    queries: NDArray[np.float32],
    shards: Iterable[NDArray[np.float16]],
    allowed: Iterable[NDArray[np.bool_] | None],
    *,
    count: int,
) -> NDArray[np.int64]:
    """Rows, ascending, that are among the `count` nearest of any unit query (q, dim); shards (n_i, dim) laid end to end.

    Rows as near as one another go by corpus order. Each query keeps its running best and what waits to get in, so memory
    is q · (count + a block) whatever the corpus. Source: SEALS (arXiv 2007.00077), whose candidates are the neighbours of
    what is labelled.
    """
    nearest = _Nearest(queries, count)
    blocks = blocks_of(shards, allowed, 0, dim=queries.shape[1], size=BLOCK_ROWS)
    on_all_cores(nearest.look_at, blocks, nearest.rise)
    found: NDArray[np.int64] = np.unique(np.concatenate([top.ranked().rows for top in nearest.tops]))
    return found


class _Nearest:
    """A running best for each query, which any thread may add to."""

    def __init__(self, queries: NDArray[np.float32], count: int) -> None:
        self.tops = [Top(count) for _ in queries]
        self._queries = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))  # (q, dim)
        self._least: NDArray[np.float32] = np.full((len(queries), 1), -np.inf, dtype=np.float32)
        self._room = Room()

    def look_at(self, block: Block) -> None:
        """Multiply a block, a cacheful at a time; only what may be among a query's best is looked at again."""
        inside = block.inside
        vectors = block.vectors if inside is None else block.vectors[inside]
        found = [self._near(vectors[part], part.start) for part in parts(vectors)]
        asking, places, cosines = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(asking, kind="stable")
        ends = np.cumsum(np.bincount(asking, minlength=len(self.tops)))[:-1]
        for top, mine in zip(self.tops, np.split(order, ends), strict=True):
            if len(mine):
                top.add(block.rows(places[mine]), cosines[mine])

    def _near(self, rows: Rows, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """(n,) queries, places counted on from `first`, and cosines of the pairs that may be among a query's best."""
        wide = self._room.wide(as_tensor(rows))
        product = self._room.take("cosines", (len(self.tops), len(wide)), torch.float32)
        cosines: NDArray[np.float32] = torch.mm(self._queries, wide.T, out=product).numpy()  # (q, n)
        near = np.flatnonzero(cosines >= self._least)  # never so for NaN; numpy looks through one dimension much faster
        asking, places = np.divmod(near, len(wide))
        return asking, places + first, cosines.ravel()[near]

    def rise(self) -> None:
        """Know what can no longer get in."""
        for query, top in enumerate(self.tops):
            top.rise()
            self._least[query] = top.least
