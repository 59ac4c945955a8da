"""The exact scan: the best rows of many shards for a few probes, in bounded memory, with all cores or a GPU."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

_faiss: Any = faiss  # its type stubs lack much of what is used here

# What a thread takes at a time. Long enough that waiting for Python's lock between blocks does not show, short enough
# that the cores end together.
BLOCK_ROWS = 16_384
# 1,024 rows × 512 dimensions in fp32 are 2 MB: converted, multiplied and reduced while they lie in a core's cache.
GEMM_ROWS = 1_024
GEMM_PROBES = 256
# A GPU wants more at a time: 131,072 × 512 in fp32 are 256 MB of its memory.
DEVICE_ROWS = 131_072
FUSED_MULTIPLE = 16  # dimensions that faiss's AVX code for float16 takes at a time; others go one by one

Rows = NDArray[np.float16] | NDArray[np.float32]
Scores = NDArray[np.float32]
Kernel = Callable[[Rows], Scores]


class Ranked(NamedTuple):
    """The best corpus rows and how well each matches, best first; equal scores keep corpus order."""

    rows: NDArray[np.int64]  # (k,) over the shards laid end to end
    scores: NDArray[np.float32]  # (k,)


class _Block(NamedTuple):
    """Consecutive rows of a shard, and which of them are to be scored."""

    vectors: Rows  # (n, dim)
    first: int  # the corpus row of the first
    inside: NDArray[np.int64] | None  # (m,) rows counted from `first`; None: all

    def scored(self, kernel: Kernel) -> Scores:
        """(m,). Where few rows are to be scored, only those are read."""
        if self.inside is None:
            return kernel(self.vectors)
        if 2 * len(self.inside) < len(self.vectors):
            return kernel(self.vectors[self.inside])
        return kernel(self.vectors)[self.inside]

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Corpus rows of some scores."""
        return self.first + (places if self.inside is None else self.inside[places])


def best(
    probes: NDArray[np.float32],
    shards: Iterable[Rows],
    *,
    keep: int,
    offsets: NDArray[np.float32] | None = None,
    allowed: Iterable[NDArray[np.bool_] | None] | None = None,
    first_row: int = 0,
    device: str = "cpu",
) -> Ranked:
    """The `keep` rows with the greatest max over probes of (row · probe - offset), exactly.

    probes: (p, dim). offsets: (p,); none: zeros. shards: (n_i, dim) each, memory-mapped or not, taken one by one, so
    that an iterator need not hold them all. allowed: a mask (n_i,) a shard, or None for all of it; other rows are
    never returned. first_row: the corpus row that the first shard begins at; parts scanned apart go to `merge`.
    Memory is a few blocks, whatever the corpus. Raises ValueError for a row or probe that has NaN or infinity in it.
    """
    kernels = _Kernels(probes, offsets)
    top = _Top(keep)
    masks = repeat(None) if allowed is None else allowed
    blocks = _blocks(shards, masks, first_row, dim=probes.shape[1], size=BLOCK_ROWS if device == "cpu" else DEVICE_ROWS)
    if device == "cpu":
        _on_all_cores(lambda block: _score(block, kernels.of(block.vectors), top), blocks)
    else:
        _on_device(blocks, kernels, top, torch.device(device))
    return top.ranked()


def merge(parts: Iterable[Ranked], keep: int) -> Ranked:
    """The best `keep` of parts that were scanned apart, as if they had been scanned together."""
    top = _Top(keep)
    for part in parts:
        top.add(part.rows, part.scores)
    return top.ranked()


def scores(probes: NDArray[np.float32], rows: Rows, *, offsets: NDArray[np.float32] | None = None) -> Scores:
    """Max over probes (p, dim) of (row · probe - offset) for a few rows (n, dim), in the calling thread; NaN for NaN."""
    return _Kernels(probes, offsets).of(rows)(rows)


class _Top:
    """A running top-k that any thread may add to. Once it is full, a row that does not get in costs one comparison."""

    def __init__(self, keep: int) -> None:
        if keep < 0:
            raise ValueError(f"cannot keep {keep} rows; give 0 or more")
        self._keep = keep
        self._held = Ranked(np.empty(0, np.int64), np.empty(0, np.float32))
        self._waiting: list[Ranked] = []
        self._lock = threading.Lock()
        self.least = -np.inf  # no row below it can still get in. It only rises: to read an old value is safe

    def add(self, rows: NDArray[np.int64], scores: Scores) -> None:
        """Take part in the ranking; rows (n,), scores (n,)."""
        with self._lock:
            self._waiting.append(Ranked(rows, scores))
            if sum(len(part.rows) for part in self._waiting) > max(self._keep, BLOCK_ROWS):
                self._settle()

    def ranked(self) -> Ranked:
        """The best so far, in order."""
        with self._lock:
            self._settle()
            order = np.lexsort((self._held.rows, -self._held.scores))
            return Ranked(self._held.rows[order], self._held.scores[order])

    def _settle(self) -> None:
        """Keep the best of what is held and what waits. Ties go by row, whatever the order that blocks came in."""
        parts = [self._held, *self._waiting]
        rows, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
        if len(rows) > self._keep:
            least = np.partition(scores, -self._keep)[-self._keep] if self._keep else np.float32(np.inf)
            above, ties = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
            ties = ties[np.argsort(rows[ties])][: self._keep - len(above)]
            chosen = np.concatenate([above, ties])
            rows, scores, self.least = rows[chosen], scores[chosen], float(least)
        self._held, self._waiting = Ranked(rows, scores), []


def _blocks(
    shards: Iterable[Rows], allowed: Iterable[NDArray[np.bool_] | None], first_row: int, *, dim: int, size: int
) -> Iterator[_Block]:
    """What is to be scored, block by block; blocks without an allowed row are passed over."""
    for shard, mask in zip(shards, allowed, strict=False):  # `allowed` may be endless
        if shard.ndim != 2 or shard.shape[1] != dim:
            raise ValueError(f"rows are {shard.shape}, the probes have {dim} dimensions; use vectors of one encoder")
        if mask is not None and mask.shape != (len(shard),):
            raise ValueError(f"a mask of {mask.shape} does not fit {len(shard)} rows; give one value a row")
        for start in range(0, len(shard), size):
            block = shard[start : start + size]
            inside = None if mask is None or mask.all() else np.flatnonzero(mask[start : start + size])
            if inside is None or len(inside):
                yield _Block(block, first_row + start, inside)
        first_row += len(shard)


def _score(block: _Block, kernel: Kernel, top: _Top) -> None:
    """Score one block and keep what may be among the best."""
    scores = block.scored(kernel)
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        _refuse(block, int(wrong[0]))
    places = np.flatnonzero(scores >= top.least)
    if len(places):
        top.add(block.rows(places), scores[places])


def _refuse(block: _Block, place: int) -> None:
    row = int(block.rows(np.asarray([place]))[0])
    raise ValueError(f"row {row} has a score that is not finite; its vector holds NaN or infinity")


def _on_all_cores(work: Callable[[_Block], None], blocks: Iterator[_Block]) -> None:
    """Work on blocks in as many threads as there are cores, few blocks ahead, so that few shards are open at once.

    Threads over blocks, each with single-threaded kernels, keep 90 % of the cores' speed; a GEMM that is threaded
    inside waits at a barrier every millisecond, and falls to a tenth when another process uses a core.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ahead: deque[Future[None]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="scan", initializer=_one_thread_each) as pool:
        try:
            for block in blocks:
                ahead.append(pool.submit(work, block))
                if len(ahead) > 2 * workers:
                    ahead.popleft().result()
            while ahead:
                ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def _one_thread_each() -> None:
    """Let torch use the calling thread alone. OpenMP's limit belongs to a thread, so nobody else is slowed down."""
    torch.get_num_threads()  # torch sets the limit of a thread when it is first asked there; ours must come later
    threadpool_limits(1, user_api="openmp")


class _Kernels:
    """Ways to score rows against the same probes: which is fastest depends on their number and on how rows are stored."""

    def __init__(self, probes: NDArray[np.float32], offsets: NDArray[np.float32] | None) -> None:
        self.probes = np.ascontiguousarray(probes, dtype=np.float32)
        self.offsets = np.zeros(len(probes), np.float32) if offsets is None else np.asarray(offsets, dtype=np.float32)
        if probes.ndim != 2 or not probes.size or self.offsets.shape != (len(probes),):
            raise ValueError(f"probes are {probes.shape} and offsets {self.offsets.shape}; give (p, dim) and (p,)")
        finite = np.isfinite(self.probes).all(axis=1) & np.isfinite(self.offsets)
        if not finite.all():
            raise ValueError(f"probe {int(np.argmin(finite))} holds NaN or infinity; make it from other exemplars")
        self._shifted = bool(self.offsets.any())
        self._own = threading.local()

    def of(self, rows: Rows) -> Kernel:
        """The fastest for these rows."""
        if len(self.probes) == 1 and rows.dtype == np.float32:
            return self._dots
        if len(self.probes) == 1 and rows.dtype == np.float16 and rows.shape[1] % FUSED_MULTIPLE == 0:
            return self._fused
        return self._gemm

    def _dots(self, rows: Rows) -> Scores:
        """One probe, fp32 rows: faiss's dot products run at the speed of memory, BLAS's GEMV at a third of it."""
        vectors, scores = np.ascontiguousarray(rows), np.empty(len(rows), dtype=np.float32)
        pointers = (_faiss.swig_ptr(array) for array in (scores, self.probes[0], vectors))
        _faiss.fvec_inner_products_ny(*pointers, vectors.shape[1], len(vectors))
        scores -= self.offsets[0]
        return scores

    def _fused(self, rows: Rows) -> Scores:
        """One probe, float16 rows: faiss widens them in registers, so that nothing but the stored bytes moves.

        To widen into a buffer and multiply that takes twice as long. A scanner's range search returns what is above a
        radius, in order: with -∞ every row but those that score NaN or -∞, which get NaN here.
        """
        vectors = np.ascontiguousarray(rows)
        quantizer = _faiss.ScalarQuantizer(vectors.shape[1], _faiss.ScalarQuantizer.QT_fp16)
        scanner = quantizer.select_InvertedListScanner(_faiss.METRIC_INNER_PRODUCT, None, True, None)
        scanner.set_query(_faiss.swig_ptr(self.probes[0]))
        scanner.set_list(0, 0.0)
        result = _faiss.RangeSearchResult(1)
        partial = _faiss.RangeSearchPartialResult(result)
        found = partial.new_result(0)
        scanner.scan_codes_range(len(vectors), _faiss.swig_ptr(vectors.view(np.uint8)), None, -np.inf, found)
        number = found.nres
        partial.finalize()
        scores = np.full(len(vectors), np.nan, dtype=np.float32)
        if number:
            scores[_faiss.rev_swig_ptr(result.labels, number)] = _faiss.rev_swig_ptr(result.distances, number)
        scores -= self.offsets[0]
        return scores

    def _gemm(self, rows: Rows) -> Scores:
        """Many probes: rows are widened a cacheful at a time (torch converts ten times as fast as numpy), then a GEMM."""
        scores = np.full(len(rows), -np.inf, dtype=np.float32)
        stored, best_of = _as_tensor(rows), torch.from_numpy(scores)
        wide, products = self._buffers()
        for start in range(0, len(rows), GEMM_ROWS):
            part = stored[start : start + GEMM_ROWS]
            if part.dtype is not torch.float32:
                part = wide[: len(part)].copy_(part)
            into = best_of[start : start + GEMM_ROWS]
            for first in range(0, len(self.probes), GEMM_PROBES):
                probes, offsets = self._torch(first)
                out = products[: len(probes), : len(part)]
                torch.mm(probes, part.T, out=out)
                if self._shifted:
                    out.sub_(offsets)
                torch.maximum(into, out.amax(dim=0), out=into)
        return scores

    def _torch(self, first: int, device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Some probes (p, dim) and their offsets (p, 1)."""
        some = slice(first, first + GEMM_PROBES)
        probes, offsets = torch.from_numpy(self.probes[some]), torch.from_numpy(self.offsets[some, None])
        return probes.to(device), offsets.to(device)

    def _buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Room of the calling thread's own for widened rows and for products."""
        if not hasattr(self._own, "buffers"):
            self._own.buffers = (
                torch.empty(GEMM_ROWS, self.probes.shape[1]),
                torch.empty(min(len(self.probes), GEMM_PROBES), GEMM_ROWS),
            )
        buffers: tuple[torch.Tensor, torch.Tensor] = self._own.buffers
        return buffers

    def on_device(self, rows: torch.Tensor) -> torch.Tensor:
        """Scores (n,) of rows (n, dim) where they lie."""
        wide = rows.float()
        found = torch.full((len(rows),), -torch.inf, device=rows.device)
        for first in range(0, len(self.probes), GEMM_PROBES):
            probes, offsets = self._torch(first, rows.device)
            found = torch.maximum(found, (probes @ wide.T).sub_(offsets).amax(dim=0))
        return found


def _on_device(blocks: Iterator[_Block], kernels: _Kernels, top: _Top, device: torch.device) -> None:
    """The same on a GPU: only what may be among the best comes back."""
    for block in blocks:
        vectors = block.vectors if block.inside is None else block.vectors[block.inside]
        found = kernels.on_device(_as_tensor(vectors).to(device))
        wrong = torch.nonzero(~torch.isfinite(found)).flatten()
        if len(wrong):
            _refuse(block, int(wrong[0]))
        places = torch.nonzero(found >= top.least).flatten()
        if len(places):
            top.add(block.rows(places.cpu().numpy()), found[places].cpu().numpy())


class _Readable:
    """An array's memory without its read-only mark, which torch would warn of. Nothing here writes to it."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array  # kept alive with the view
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def _as_tensor(rows: Rows) -> torch.Tensor:
    """The same memory as a tensor."""
    return torch.from_numpy(np.asarray(_Readable(rows)))
