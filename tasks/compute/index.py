"""An approximate index for corpora too large to scan at each query: trained once, filled in parts, merged on disk.

OPQ turns and shortens the vectors, an inverted file whose lists are found through a graph (IVF_HNSW) holds 64-byte
product codes, and the best candidates are scored again from the stored vectors, so that scores are exact and only
recall is not. Faiss reads and writes its files itself: functions here take paths of local files.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from faiss.contrib.ondisk import merge_ondisk
from numpy.typing import NDArray

from tasks.compute import scan
from tasks.compute.blocks import Rows
from tasks.compute.scan import Ranked

Maker = Callable[[Path], None]  # writes a file

_faiss: Any = faiss  # its type stubs lack much of what is used here

INDEX, LISTS = "index.faiss", "lists.ivfdata"

POINTS_A_LIST = 40  # faiss asks for 39 at least to place a centroid
CODE_POINTS = 10_000  # and for 39 × 256 to learn a product code
CODE_ROWS = 100_000  # fewer rows need no product codes: at a byte a dimension they take 100 MB
CODE_ROUNDS = 10  # of k-means, for each of the code's bytes
TRAIN_BYTES = 4_000_000_000
MOST_LISTS = 65_536
OPQ_ROUNDS = 8  # of faiss's 50; the others cost minutes, and what they would gain is refined anyway
# To read a candidate and score it again costs as much as to scan so many codes, at 64 bytes and 512 dimensions.
# Effort is counted rather than timed, so that a build tunes alike wherever it runs.
REFINED_CODES = 8
SMALL = 4_000_000  # numbers: below that threads wait for each other more than they help
FEW = 8  # queries that one thread answers sooner than several
HELD_SHARDS = 8_192  # mapped at once by an open index; Linux allows a process 65,530 maps


class Shape(NamedTuple):
    """What an index is made of."""

    lists: int
    dim: int  # of the vectors
    turned: int  # dimensions after OPQ; 0: left as they are
    code_bytes: int

    @property
    def description(self) -> str:
        """For faiss's index factory."""
        turn = f"OPQ{self.code_bytes}_{self.turned}," if self.turned else ""
        code = f"PQ{self.code_bytes}" if self.turned else "SQ8"
        return f"{turn}IVF{self.lists}_HNSW32,{code}"

    @property
    def train_rows(self) -> int:
        """How many rows to learn from."""
        wanted = max(self.lists * POINTS_A_LIST, 2 * CODE_POINTS)
        return min(wanted, TRAIN_BYTES // (4 * self.dim))


class Effort(NamedTuple):
    """How hard to look: lists probed, and candidates scored again."""

    nprobe: int
    depth: int


class Recall(NamedTuple):
    """Share of the true nearest that were found, mean over queries, with a 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


class Truth(NamedTuple):
    """Queries and the scores of their true nearest rows."""

    queries: NDArray[np.float32]  # (q, dim)
    scores: NDArray[np.float32]  # (q, k), best first


def shape_for(rows: int, dim: int) -> Shape:
    """A good shape for a number of rows: about 4·√rows lists; codes of 64 bytes, or of dim / 4 where that is less.

    Few rows, or few dimensions, are not worth a product code; they get a byte a dimension.
    """
    lists = 2 ** int(np.ceil(np.log2(max(1.0, 4 * np.sqrt(rows)))))
    lists = int(min(lists, MOST_LISTS, max(1, rows // POINTS_A_LIST)))
    if rows < CODE_ROWS or dim < 32:
        return Shape(lists, dim, 0, dim)
    code_bytes = min(64, dim // 4)
    return Shape(lists, dim, min(256, dim // code_bytes * code_bytes), code_bytes)


def train(shape: Shape, sample: NDArray[np.float32], to: Path, *, seed: int) -> None:
    """Write an empty index that knows its lists and codes; sample (n, dim). The same sample and seed give the same."""
    index = _faiss.index_factory(shape.dim, shape.description, _faiss.METRIC_INNER_PRODUCT)
    ivf = _faiss.extract_index_ivf(index)
    turned = sample
    if shape.turned:
        turn = _faiss.downcast_VectorTransform(index.chain.at(0))
        turn.niter, turn.niter_pq_0, turn.niter_pq, turn.max_train_points = OPQ_ROUNDS, 8, 2, CODE_POINTS
        codes = _faiss.downcast_index(ivf)
        codes.pq.cp.niter = CODE_ROUNDS
        codes.do_polysemous_training = False  # takes most of the time of training, for a way to search not used here
        with _one_thread():  # 64 small problems: threads only wait for each other
            turn.train(sample)
        turned = turn.apply(sample)
    kmeans = _faiss.Kmeans(
        turned.shape[1], shape.lists, niter=10, seed=seed, spherical=True,
        min_points_per_centroid=1, max_points_per_centroid=4 * POINTS_A_LIST,
    )  # fmt: skip
    with nullcontext() if turned.size > SMALL else _one_thread():
        kmeans.train(turned)
    with _one_thread():
        ivf.quantizer.add(kmeans.centroids)
        ivf.train(turned)
    index.is_trained = True
    _faiss.write_index(index, str(to))


def fill(trained: Path, shards: Iterable[Rows], first_row: int, to: Path) -> int:
    """Write a part: the index with the rows of some shards (n_i, dim), counted from `first_row`; return how many."""
    index = _faiss.read_index(str(trained))
    done = 0
    for shard in shards:
        if len(shard):
            rows = _wide(shard)
            index.add_with_ids(rows, np.arange(first_row + done, first_row + done + len(rows)))
            done += len(rows)
    _faiss.write_index(index, str(to))
    return done


def merge(trained: Path, parts: Sequence[Path], into: Path) -> None:
    """Write INDEX and LISTS of all parts into a folder, through the disk: memory holds none of the lists."""
    (into / LISTS).unlink(missing_ok=True)  # of a merge that was killed
    index = _faiss.read_index(str(trained))
    with _chatter_to_stderr():
        merge_ondisk(index, [str(part) for part in parts], str(into / LISTS))
    _faiss.write_index(index, str(into / INDEX))


@contextmanager
def _chatter_to_stderr() -> Iterator[None]:
    """Faiss prints what it does with files of lists; stdout may carry somebody's JSON."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    stdout = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        libc.fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One query is work for one thread: to wake others takes longer. A graph built by several differs each time."""
    threads = _faiss.omp_get_max_threads()
    _faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        _faiss.omp_set_num_threads(threads)


class Opened:
    """An index mapped from its two files, and the shards that it was filled from."""

    def __init__(
        self, index: Path, lists: Path, shards: Sequence[Callable[[], Rows]], starts: NDArray[np.int64]
    ) -> None:
        """shards: each opens one; starts: (shards + 1,) corpus rows that they begin at, and the end of the last.

        The files may have any names, and may be deleted once this returns: what is mapped stays.
        """
        # Plain arrays: numpy's memmap class makes each of a thousand small reads three times as long.
        self._shard = lru_cache(HELD_SHARDS)(lambda owner: np.asarray(shards[owner]()))
        self._starts = starts
        with tempfile.TemporaryDirectory() as folder:  # faiss looks for the lists beside the index, by name
            Path(folder, INDEX).symlink_to(index.absolute())
            Path(folder, LISTS).symlink_to(lists.absolute())
            flags = _faiss.IO_FLAG_ONDISK_SAME_DIR | _faiss.IO_FLAG_READ_ONLY
            with _chatter_to_stderr():
                self._index = _faiss.read_index(str(Path(folder, INDEX)), flags)
        self._ivf = _faiss.extract_index_ivf(self._index)
        self._graph = _faiss.downcast_index(self._ivf.quantizer).hnsw
        self.lists, self.rows = int(self._ivf.nlist), int(self._index.ntotal)

    def search(
        self,
        probes: NDArray[np.float32],
        *,
        keep: int,
        effort: Effort,
        offsets: NDArray[np.float32] | None = None,
    ) -> Ranked:
        """The best rows found for max over probes (p, dim) of (row · probe - offset), with exact scores."""
        depth = max(effort.depth, keep)
        found = np.unique(self.candidates(probes, depth=depth, nprobe=effort.nprobe))
        rows = found[found >= 0]
        found_scores = scan.scores(probes, self.vectors(rows), offsets=offsets)
        order = np.lexsort((rows, -found_scores))[:keep]
        return Ranked(rows[order], found_scores[order])

    def candidates(self, probes: NDArray[np.float32], *, depth: int, nprobe: int) -> NDArray[np.int64]:
        """Corpus rows (p, depth) by the likeness of their codes, best first; -1 where the lists held fewer."""
        self._ivf.nprobe = min(nprobe, self.lists)
        self._graph.efSearch = max(16, 2 * self._ivf.nprobe)
        wanted = np.ascontiguousarray(probes, dtype=np.float32)
        with nullcontext() if len(wanted) > FEW else _one_thread():
            _, rows = self._index.search(wanted, min(depth, self.rows))
        found: NDArray[np.int64] = rows
        return found

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Stored vectors (n, dim) of corpus rows (n,) in rising order."""
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        cuts = np.flatnonzero(np.diff(owners)) + 1
        found = np.empty((len(rows), self._index.d), dtype=np.float16)
        for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True):
            if stop > start:
                owner = int(owners[start])
                found[start:stop] = self._shard(owner)[rows[start:stop] - self._starts[owner]]
        return found


def _wide(rows: Rows) -> NDArray[np.float32]:
    """The same in fp32; numpy's own conversion takes ten times as long."""
    wide: NDArray[np.float32] = torch.tensor(np.asarray(rows)).float().numpy()
    return wide


def truth_of(queries: NDArray[np.float32], shards: Iterable[Rows], *, k: int) -> Truth:
    """The true nearest of each query (q, dim), by a scan of all shards."""
    heap = _faiss.ResultHeap(len(queries), k, keep_max=True)
    first = 0
    for shard in shards:
        if len(shard):
            rows = _wide(shard)
            scores, places = _faiss.knn(queries, rows, min(k, len(rows)), metric=_faiss.METRIC_INNER_PRODUCT)
            heap.add_result(scores, places + first)
            first += len(rows)
    heap.finalize()
    return Truth(queries, heap.D[:, : min(k, first)])


def recalls(opened: Opened, truth: Truth, effort: Effort) -> NDArray[np.float64]:
    """Share of the k nearest that a search finds, a query; a row that scores as high as the k-th is one of them."""
    return np.asarray([_shares(opened, query, nearest, effort.nprobe, [effort.depth])[0]
                       for query, nearest in zip(*truth, strict=True)])  # fmt: skip


def _shares(
    opened: Opened, query: NDArray[np.float32], nearest: NDArray[np.float32], nprobe: int, depths: Sequence[int]
) -> list[float]:
    """Recall of one query at several depths, by one search of the deepest."""
    rows = opened.candidates(query[None], depth=max(depths), nprobe=nprobe)[0]
    rows = rows[rows >= 0]
    order = np.argsort(rows)
    scores = np.empty(len(rows), dtype=np.float32)
    scores[order] = scan.scores(query[None], opened.vectors(rows[order]))
    right = scores >= nearest[-1] - 1e-5 * max(1.0, abs(float(nearest[0])))  # fp32 sums differ by their order
    return [min(1.0, float(right[:depth].sum()) / len(nearest)) for depth in depths]


def tune(opened: Opened, truth: Truth, *, target: float) -> Effort:
    """The least effort with that mean recall; all there is, if nothing less will do."""
    k = truth.scores.shape[1]
    depths = [k * factor for factor in (1, 2, 3, 4, 6, 8, 12, 16, 32)]
    codes_a_list = opened.rows / opened.lists
    found: list[tuple[float, Effort]] = []
    nprobe = 1
    while True:
        shares = [_shares(opened, query, nearest, nprobe, depths) for query, nearest in zip(*truth, strict=True)]
        for depth, mean in zip(depths, np.mean(shares, axis=0).tolist(), strict=True):
            if mean >= target:
                found.append((nprobe * codes_a_list + depth * REFINED_CODES, Effort(nprobe, depth)))
        least = min(found)[0] if found else np.inf
        if nprobe >= opened.lists or nprobe * codes_a_list + k * REFINED_CODES > least:
            return min(found)[1] if found else Effort(opened.lists, depths[-1])
        nprobe = min(opened.lists, nprobe + max(1, nprobe // 5))


def mean_recall(shares: NDArray[np.float64], *, seed: int) -> Recall:
    """Mean of the queries' recalls (q,) and its interval over 2,000 resamples of the queries."""
    drawn = np.random.default_rng(seed).integers(0, len(shares), (2_000, len(shares)))
    low, high = np.quantile(shares[drawn].mean(axis=1), [0.025, 0.975])
    return Recall(float(shares.mean()), float(low), float(high))
