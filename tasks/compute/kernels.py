"""Ways to score rows against a few probes, at the speed of memory or of the processor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

_faiss: Any = faiss  # its type stubs lack much of what is used here

# 1,024 rows × 512 dimensions in fp32 are 2 MB: converted, multiplied and reduced while they lie in a core's cache.
GEMM_ROWS = 1_024
GEMM_PROBES = 256
FUSED_MULTIPLE = 16  # dimensions that faiss's AVX code for float16 takes at a time; others go one by one
SCREENED_FROM = 16  # probes from which products of half the width pay, the bound and a second look included
SCREENED_OUT = 0.75  # share of rows that must be screened out for it to pay
HALF_ULP = 2.0**-8  # relative error of a number rounded to bfloat16

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
        self._screen = _Screen(self) if len(probes) >= SCREENED_FROM and multiplies_bfloat16() else None
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
        bounds = self._bounds(self._screen, rows, least) if self._screen is not None and np.isfinite(least) else None
        if bounds is None:
            return self._exact(rows)
        left = np.flatnonzero(~(bounds < least))  # NaN is left, to be found out
        if len(left):
            bounds[left] = self._exact(rows[left])
        return bounds

    def _bounds(self, screen: _Screen, rows: Rows, least: float) -> Scores | None:
        """No less than the scores (n,); None where too few of the first rows are below `least` for that to pay."""
        bounds = np.empty(len(rows), dtype=np.float32)
        for place, part in self._parts(rows):
            bounds[place] = screen.bounds(part)
            if not place.start and np.mean(bounds[place] < least) < SCREENED_OUT:
                return None
        return bounds

    def _exact(self, rows: Rows) -> Scores:
        """Scores (n,)."""
        scores = np.empty(len(rows), dtype=np.float32)
        _, products = self._buffers()
        for place, part in self._parts(rows):
            scores[place] = self._multiply(part, products).numpy()
        return scores

    def _parts(self, rows: Rows) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows in fp32, a cacheful at a time; torch widens them ten times as fast as numpy."""
        stored, (wide, _) = as_tensor(rows), self._buffers()
        for start in range(0, len(rows), GEMM_ROWS):
            part = stored[start : start + GEMM_ROWS]
            part = part.contiguous() if part.dtype == torch.float32 else wide[: len(part)].copy_(part)
            yield slice(start, start + len(part)), part

    def _multiply(self, part: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
        """Scores (n,) of widened rows (n, dim)."""
        found = torch.full((len(part),), -torch.inf)
        for first in range(0, len(self.probes), GEMM_PROBES):
            probes, offsets = self.some(first)
            out = products[: len(probes), : len(part)]
            torch.mm(probes, part.T, out=out)
            if self._shifted:
                out.sub_(offsets)
            torch.maximum(found, out.amax(dim=0), out=found)
        return found

    def some(self, first: int, device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Some probes (p, dim) and their offsets (p, 1)."""
        few = slice(first, first + GEMM_PROBES)
        probes, offsets = torch.from_numpy(self.probes[few]), torch.from_numpy(self.offsets[few, None])
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
            probes, offsets = self.some(first, rows.device)
            found = torch.maximum(found, (probes @ wide.T).sub_(offsets).amax(dim=0))
        return found


class _Screen:
    """Upper bounds of scores, from products in bfloat16, which processors that have them make at twice the speed of fp32.

    With u the relative error of rounding to bfloat16, probes, rows and the product are each off by u, so that a product
    of q and r is off by no more than (3u + 4u² + dim · 2^-22) |q| |r|; the last term is for sums in fp32. Source: Higham,
    Accuracy and Stability of Numerical Algorithms, § 3.1.
    """

    def __init__(self, kernels: Kernels) -> None:
        starts = range(0, len(kernels.probes), GEMM_PROBES)
        self._probes = [(probes.bfloat16(), offsets) for probes, offsets in map(kernels.some, starts)]
        self._shifted = bool(kernels.offsets.any())
        longest = float(np.linalg.norm(kernels.probes.astype(np.float64), axis=1).max())
        error = 3 * HALF_ULP + 4 * HALF_ULP**2 + kernels.probes.shape[1] * 2.0**-22
        self._slack = 1.001 * error * longest  # norms are rounded, too
        self._own = threading.local()

    def bounds(self, wide: torch.Tensor) -> Scores:
        """No less than the scores (n,) of rows (n, dim) in fp32; NaN for rows that are not finite."""
        rows, products = self._buffers()
        narrow = rows[: len(wide)].copy_(wide).T
        best = torch.full((len(wide),), -torch.inf)
        for probes, offsets in self._probes:
            out = products[: len(probes), : len(wide)]
            torch.mm(probes, narrow, out=out)
            shifted = out.float().sub_(offsets) if self._shifted else out
            torch.maximum(best, shifted.amax(dim=0).float(), out=best)
        bounds: Scores = best.numpy() + self._slack * norms(wide.numpy())
        return bounds

    def _buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Room of the calling thread's own: memory that is asked for anew each time is given page by page."""
        if not hasattr(self._own, "buffers"):
            probes, dim = max(len(probes) for probes, _ in self._probes), self._probes[0][0].shape[1]
            self._own.buffers = (
                torch.empty(GEMM_ROWS, dim, dtype=torch.bfloat16),
                torch.empty(probes, GEMM_ROWS, dtype=torch.bfloat16),
            )
        buffers: tuple[torch.Tensor, torch.Tensor] = self._own.buffers
        return buffers


def norms(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lengths (n,) of rows (n, dim), which lie one after the other; faiss takes half of torch's time."""
    lengths = np.empty(len(rows), dtype=np.float32)
    _faiss.fvec_norms_L2(_faiss.swig_ptr(lengths), _faiss.swig_ptr(rows), rows.shape[1], len(rows))
    return lengths


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor has products of bfloat16; where they are emulated, they are slower than fp32."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))


class _Readable:
    """An array's memory without its read-only mark, which torch would warn of. Nothing here writes to it."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array  # kept alive with the view
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def as_tensor(rows: Rows) -> torch.Tensor:
    """The same memory as a tensor."""
    return torch.from_numpy(np.asarray(_Readable(rows)))
