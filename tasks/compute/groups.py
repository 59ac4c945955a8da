"""Which images belong together, and what a group that grows passes on to those who join it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

TILE_ROWS = 2_048  # cosines of two tiles are 16 MB in fp32
# A product in fp32 differs with the machine's BLAS by up to 6e-5 at 1,024 dimensions; what is closer than this to the
# threshold is computed again in fp64, where products and sums of fp16 numbers below 1 are exact in any order.
DOUBT = 2e-4
PAIRS = 4_096  # computed again at a time

Edges = NDArray[np.int64]  # (m, 2) pairs of rows, the earlier one first


def near_duplicates(vectors: NDArray[np.float32], *, cosine: float) -> Edges:
    """A spanning forest of the rows (n, dim) that are at least so similar: at most n − 1 of all such pairs.

    Two rows are connected in it exactly when a chain of such pairs connects them, and so among the first k rows for every
    k, since no pair is kept whose later row could be an earlier one. Rows of zeros are similar to nothing. Exact; memory is
    that of two tiles of cosines and the forest. For vectors that were stored as fp16 the same on every machine.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    seen = np.flatnonzero(lengths > 0)
    unit = (vectors[seen] / lengths[seen, None]).astype(np.float32)
    edges: Edges = np.empty((0, 2), np.int64)
    for left, right in _tiles(len(unit)):
        found = _pairs(unit, vectors, seen, (left, right), cosine)
        if len(found):
            edges = _forest(len(vectors), np.concatenate([edges, found]))
    return edges


def joined(values: Sequence[Sequence[str]]) -> Edges:
    """Edges that connect the rows that share a value; a row may have several, or none."""
    first: dict[str, int] = {}
    pairs = {(first.setdefault(value, row), row) for row, held in enumerate(values) for value in held}
    found: Edges = np.asarray(sorted(pair for pair in pairs if pair[0] != pair[1]), np.int64).reshape(-1, 2)
    return found


def united(one: Edges, other: Edges) -> Edges:
    """All edges of both, each once."""
    found: Edges = np.unique(np.concatenate([one, other]), axis=0)
    return found


def components(count: int, edges: Edges) -> NDArray[np.int64]:
    """The number of each row's group (count,); rows that nothing connects are groups of their own."""
    _, found = connected_components(_graph(count, edges), directed=False)
    numbers: NDArray[np.int64] = found.astype(np.int64)
    return numbers


def handed_down(edges: Edges, own: NDArray[np.int8]) -> NDArray[np.int8]:
    """The rank (n,) of each row's group, when rows come one after the other in their order.

    A row that is connected to nothing before it brings its own rank; one that joins a group takes the group's, whatever
    its own; where it connects several, the highest holds for all. So later rows change the rank of earlier ones only
    where groups merge, and then only upwards.
    """
    earlier: defaultdict[int, list[int]] = defaultdict(list)
    for before, after in edges.tolist():
        earlier[after].append(before)
    leader, rank = list(range(len(own))), own.tolist()
    for row in range(len(own)):
        roots = {_root(leader, before) for before in earlier[row]}
        if roots:
            first = min(roots)
            rank[first] = max(rank[root] for root in roots)
            for root in (*roots, row):
                leader[root] = first
    return np.asarray([rank[_root(leader, row)] for row in range(len(own))], np.int8)


def _root(leader: list[int], row: int) -> int:
    while leader[row] != row:
        leader[row] = leader[leader[row]]
        row = leader[row]
    return row


def _tiles(rows: int) -> Iterator[tuple[slice, slice]]:
    """Every pair of tiles once."""
    starts = range(0, rows, TILE_ROWS)
    for left in starts:
        for right in starts[left // TILE_ROWS :]:
            yield slice(left, left + TILE_ROWS), slice(right, right + TILE_ROWS)


def _pairs(
    unit: NDArray[np.float32],
    vectors: NDArray[np.float32],
    seen: NDArray[np.int64],
    tiles: tuple[slice, slice],
    cosine: float,
) -> Edges:
    """Pairs of two tiles that are at least so similar, as rows of `vectors`."""
    left, right = tiles
    cosines = unit[left] @ unit[right].T
    near = np.argwhere(cosines >= cosine - DOUBT)
    near = near[(near[:, 0] + left.start) < (near[:, 1] + right.start)]
    if not len(near):
        return np.empty((0, 2), np.int64)
    doubtful = cosines[near[:, 0], near[:, 1]] < cosine + DOUBT
    pairs = seen[near + np.asarray([left.start, right.start])]
    unsure = pairs[doubtful]
    kept = [unsure[start : start + PAIRS] for start in range(0, len(unsure), PAIRS)]
    sure = [some[_exactly(vectors, some) >= cosine] for some in kept]
    return np.concatenate([pairs[~doubtful], *sure])


def _exactly(vectors: NDArray[np.float32], pairs: Edges) -> NDArray[np.float64]:
    """Cosines (m,) of pairs of rows."""
    one, other = vectors[pairs[:, 0]].astype(np.float64), vectors[pairs[:, 1]].astype(np.float64)
    products = [np.einsum("nd,nd->n", a, b) for a, b in ((one, other), (one, one), (other, other))]
    found: NDArray[np.float64] = products[0] / np.sqrt(products[1] * products[2])
    return found


def _forest(count: int, edges: Edges) -> Edges:
    """As few of these edges as connect the same rows, and the same of the first k for every k."""
    # The lightest tree by later row: for each k, its edges of weight up to k connect what all such edges connect.
    found = coo_matrix(minimum_spanning_tree(_graph(count, edges)))
    order = np.lexsort((found.row, found.col))
    kept: Edges = np.stack([found.row[order], found.col[order]], axis=1).astype(np.int64)
    return kept


def _graph(count: int, edges: Edges) -> csr_matrix:
    """The rows as a sparse graph; an edge, which must not be named twice, weighs one more than its later row."""
    weights = edges[:, 1].astype(np.float64) + 1
    return csr_matrix((weights, (edges[:, 0], edges[:, 1])), shape=(count, count))
