"""Ways to score rows against a few probes, at the speed of memory or of the processor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from tasks.compute import screens
from tasks.compute.screens import PROBES_AT_ONCE, Screen

_faiss: Any = faiss  # its type stubs lack much of what is used here

# 2,048 rows × 512 dimensions in fp32 are 4 MB: few calls, and still converted, multiplied and reduced within the caches.
GEMM_ROWS = 2_048
FUSED_MULTIPLE = 16  # dimensions that faiss's AVX code for float16 takes at a time; others go one by one
SCREENED_FROM = 24  # probes from which narrower products pay, the bound and a second look included
SCREENED_OUT = 0.75  # share of rows that must be screened out for it to pay

Rows = NDArray[np.float16] | NDArray[np.float32]
Scores = NDArray[np.float32]
Kernel = Callable[[Rows], Scores]


class Kernels:
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
        self._screens = screens.screens(self.probes, self.offsets) if len(probes) >= SCREENED_FROM else []
        self._own = threading.local()

    def of(self, rows: Rows, least: float = -np.inf) -> Kernel:
        """The fastest for these rows. Scores below `least` may come out higher than they are, but still below it."""
        if len(self.probes) == 1 and rows.dtype == np.float32:
            return self._dots
        if len(self.probes) == 1 and rows.dtype == np.float16 and rows.shape[1] % FUSED_MULTIPLE == 0:
            return self._fused
        return partial(self._gemm, least=least)

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

    def _gemm(self, rows: Rows, least: float) -> Scores:
        """Many probes: rows that surely score below `least` are spared the exact products, as long as most rows do."""
        for screen in self._screens if np.isfinite(least) else []:
            bounds = self._bounds(screen, rows, least)
            if bounds is not None:
                left = np.flatnonzero(~(bounds < least))  # NaN is left, to be found out
                bounds[left] = self._exact(rows[left])
                return bounds
        return self._exact(rows)

    def _bounds(self, screen: Screen, rows: Rows, least: float) -> Scores | None:
        """No less than the scores (n,); None where too few of the first rows are below `least` for that to pay."""
        bounds = np.empty(len(rows), dtype=np.float32)
        wide, _ = self._buffers()
        for place, part in _parts(rows):
            biggest = screens.largest(part)
            bounds[place] = screen.bounds(wide[: len(part)].copy_(as_tensor(part)), biggest)
            if not place.start and np.mean(bounds[place] < least) < SCREENED_OUT:
                return None
        return bounds

    def _exact(self, rows: Rows) -> Scores:
        """Scores (n,). Torch widens rows ten times as fast as numpy."""
        scores = np.empty(len(rows), dtype=np.float32)
        wide, products = self._buffers()
        for place, part in _parts(rows):
            stored = as_tensor(part)
            whole = stored.contiguous() if stored.dtype == torch.float32 else wide[: len(part)].copy_(stored)
            scores[place] = self._multiply(whole, products).numpy()
        return scores

    def _multiply(self, part: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
        """Scores (n,) of widened rows (n, dim)."""
        found = torch.full((len(part),), -torch.inf)
        for first in range(0, len(self.probes), PROBES_AT_ONCE):
            probes, offsets = self.some(first)
            out = products[: len(probes), : len(part)]
            torch.mm(probes, part.T, out=out)
            if self._shifted:
                out.sub_(offsets)
            torch.maximum(found, out.amax(dim=0), out=found)
        return found

    def some(self, first: int, device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Some probes (p, dim) and their offsets (p, 1)."""
        few = slice(first, first + PROBES_AT_ONCE)
        probes, offsets = torch.from_numpy(self.probes[few]), torch.from_numpy(self.offsets[few, None])
        return probes.to(device), offsets.to(device)

    def _buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Room of the calling thread's own for widened rows and for products."""
        if not hasattr(self._own, "buffers"):
            self._own.buffers = (
                torch.empty(GEMM_ROWS, self.probes.shape[1]),
                torch.empty(min(len(self.probes), PROBES_AT_ONCE), GEMM_ROWS),
            )
        buffers: tuple[torch.Tensor, torch.Tensor] = self._own.buffers
        return buffers

    def on_device(self, rows: torch.Tensor) -> torch.Tensor:
        """Scores (n,) of rows (n, dim) where they lie."""
        wide = rows.float()
        found = torch.full((len(rows),), -torch.inf, device=rows.device)
        for first in range(0, len(self.probes), PROBES_AT_ONCE):
            probes, offsets = self.some(first, rows.device)
            found = torch.maximum(found, (probes @ wide.T).sub_(offsets).amax(dim=0))
        return found


def _parts(rows: Rows) -> Iterator[tuple[slice, Rows]]:
    """Rows a cacheful at a time, and where they are."""
    for start in range(0, len(rows), GEMM_ROWS):
        place = slice(start, min(start + GEMM_ROWS, len(rows)))
        yield place, rows[place]


class _Readable:
    """An array's memory without its read-only mark, which torch would warn of. Nothing here writes to it."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array  # kept alive with the view
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def as_tensor(rows: Rows) -> torch.Tensor:
    """The same memory as a tensor."""
    return torch.from_numpy(np.asarray(_Readable(rows)))
