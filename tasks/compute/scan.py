"""The exact scan: the best rows of many shards for a few probes, in bounded memory, with all cores or a GPU."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tasks.compute.blocks import Rows, as_tensor
from tasks.compute.cores import cores
from tasks.compute.kernels import Kernel, Kernels, Scores

# What a thread takes at a time. Long enough that waiting for Python's lock between blocks does not show, short enough
# that the cores end together.
BLOCK_ROWS = 16_384
LIKE_ROWS = 2_048  # of the first block, to know what rows are like
# A GPU wants more at a time: 131,072 × 512 in fp32 are 256 MB of its memory.
DEVICE_ROWS = 131_072


class Ranked(NamedTuple):
    """The best corpus rows and how well each matches, best first; equal scores keep corpus order."""

    rows: NDArray[np.int64]  # (k,) over the shards laid end to end
    scores: NDArray[np.float32]  # (k,)


class Block(NamedTuple):
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
    top = Top(keep)
    masks = repeat(None) if allowed is None else allowed
    blocks = blocks_of(
        shards, masks, first_row, dim=probes.shape[1], size=BLOCK_ROWS if device == "cpu" else DEVICE_ROWS
    )
    first = next(blocks, None)
    kernels = Kernels(probes, offsets, like=None if first is None else first.vectors[:LIKE_ROWS])
    blocks = blocks if first is None else chain([first], blocks)
    if device == "cpu":
        on_all_cores(lambda block: _score(block, kernels.of(block.vectors, top.least), top), blocks, top.rise)
    else:
        _on_device(blocks, kernels, top, torch.device(device))
    return top.ranked()


def merge(parts: Iterable[Ranked], keep: int) -> Ranked:
    """The best `keep` of parts that were scanned apart, as if they had been scanned together."""
    top = Top(keep)
    for part in parts:
        top.add(part.rows, part.scores)
    return top.ranked()


def scores(probes: NDArray[np.float32], rows: Rows, *, offsets: NDArray[np.float32] | None = None) -> Scores:
    """Max over probes (p, dim) of (row · probe - offset) for a few rows (n, dim), in the calling thread; NaN for NaN."""
    return Kernels(probes, offsets).of(rows)(rows)


class Top:
    """A running top-k that any thread may add to. Once it is full, a row that does not get in costs one comparison."""

    def __init__(self, keep: int) -> None:
        if keep < 0:
            raise ValueError(f"cannot keep {keep} rows; give 0 or more")
        self._keep = keep
        self._held = Ranked(np.empty(0, np.int64), np.empty(0, np.float32))
        self._waiting: list[Ranked] = []
        self._lock = threading.Lock()
        self.least = -np.inf  # no row below it can still get in

    def add(self, rows: NDArray[np.int64], scores: Scores) -> None:
        """Take part in the ranking; rows (n,), scores (n,)."""
        with self._lock:
            self._waiting.append(Ranked(rows, scores))
            if sum(len(part.rows) for part in self._waiting) > max(self._keep, BLOCK_ROWS):
                self._settle()

    def rise(self) -> None:
        """Know what can no longer get in."""
        with self._lock:
            self._settle()
            if len(self._held.scores) == self._keep:
                self.least = float(self._held.scores.min(initial=np.inf))

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
            rows, scores = rows[chosen], scores[chosen]
        self._held, self._waiting = Ranked(rows, scores), []


def blocks_of(
    shards: Iterable[Rows], allowed: Iterable[NDArray[np.bool_] | None], first_row: int, *, dim: int, size: int
) -> Iterator[Block]:
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
                yield Block(block, first_row + start, inside)
        first_row += len(shard)


def _score(block: Block, kernel: Kernel, top: Top) -> None:
    """Score one block and keep what may be among the best."""
    scores = block.scored(kernel)
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        _refuse(block, int(wrong[0]))
    places = np.flatnonzero(scores >= top.least)
    if len(places):
        top.add(block.rows(places), scores[places])


def _refuse(block: Block, place: int) -> None:
    row = int(block.rows(np.asarray([place]))[0])
    raise ValueError(f"row {row} has a score that is not finite; its vector holds NaN or infinity")


def on_all_cores(work: Callable[[Block], None], blocks: Iterator[Block], rise: Callable[[], None]) -> None:
    """Work on blocks in as many threads as there are cores, few blocks ahead, so that few shards are open at once.

    Threads over blocks, each with single-threaded kernels, keep 90 % of the cores' speed; a GEMM that is threaded
    inside waits at a barrier every millisecond, and falls to a tenth when another process uses a core. `rise` is called
    each time that twice as many rows are done: what they tell of the ranking is known to the blocks that follow, and to
    no others, so that the same scan takes the same ways, to the last bit, whatever the threads.
    """
    workers = cores()
    ahead: deque[Future[None]] = deque()
    rows, due = 0, BLOCK_ROWS
    with ThreadPoolExecutor(workers, thread_name_prefix="scan", initializer=_one_thread_each) as pool:
        try:
            for block in blocks:
                ahead.append(pool.submit(work, block))
                rows += len(block.vectors)
                doubled = rows >= due
                while len(ahead) > (0 if doubled else 2 * workers):
                    ahead.popleft().result()
                if doubled:
                    rise()
                    due = 2 * rows
            while ahead:
                ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def _one_thread_each() -> None:
    """Let torch use the calling thread alone. OpenMP's limit belongs to a thread, so nobody else is slowed down."""
    torch.get_num_threads()  # torch sets the limit of a thread when it is first asked there; ours must come later
    threadpool_limits(1, user_api="openmp")


def _on_device(blocks: Iterator[Block], kernels: Kernels, top: Top, device: torch.device) -> None:
    """The same on a GPU: only what may be among the best comes back."""
    for block in blocks:
        vectors = block.vectors if block.inside is None else block.vectors[block.inside]
        rows = as_tensor(vectors).to(device)
        longest = float(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).max())
        found = kernels.on_device(rows, top.least, longest)
        wrong = torch.nonzero(~torch.isfinite(found)).flatten()
        if len(wrong):
            _refuse(block, int(wrong[0]))
        places = torch.nonzero(found >= top.least).flatten()
        if len(places):
            top.add(block.rows(places.cpu().numpy()), found[places].cpu().numpy())
            top.rise()
