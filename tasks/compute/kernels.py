"""Ways to score rows against a few probes, at the speed of memory or of the processor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from tasks.compute import blocks, screens
from tasks.compute.blocks import Room, Rows, as_tensor
from tasks.compute.screens import PROBES_AT_ONCE, Screen

_faiss: Any = faiss  # its type stubs lack much of what is used here

FUSED_MULTIPLE = 16  # dimensions that faiss's AVX code for float16 takes at a time; others go one by one
SCREENED_FROM = 24  # probes from which narrower products pay, the bound and a second look included
HALF_ERROR = 2.0**-8  # of a product in half precision: eight roundings of 2^-11
SCREENED_OUT = 0.6  # share of rows that must be screened out for it to pay

Scores = NDArray[np.float32]
Kernel = Callable[[Rows], Scores]


class Kernels:
    """Ways to score rows against the same probes: which is fastest depends on their number and on how rows are stored."""

    def __init__(
        self, probes: NDArray[np.float32], offsets: NDArray[np.float32] | None, like: Rows | None = None
    ) -> None:
        """probes (p, dim), offsets (p,); like (n, dim): some of the rows to come, where there are many."""
        self.probes = np.ascontiguousarray(probes, dtype=np.float32)
        self.offsets = np.zeros(len(probes), np.float32) if offsets is None else np.asarray(offsets, dtype=np.float32)
        if probes.ndim != 2 or not probes.size or self.offsets.shape != (len(probes),):
            raise ValueError(f"probes are {probes.shape} and offsets {self.offsets.shape}; give (p, dim) and (p,)")
        finite = np.isfinite(self.probes).all(axis=1) & np.isfinite(self.offsets)
        if not finite.all():
            raise ValueError(f"probe {int(np.argmin(finite))} holds NaN or infinity; make it from other exemplars")
        self._shifted = bool(self.offsets.any())
        self._screen: Screen | None = None
        if like is not None and len(probes) >= SCREENED_FROM and screens.quick():
            self._screen = Screen(self.probes, self.offsets, like)
        self._room = Room()

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
        bounds[left] = self._exact(rows[left])
        return bounds

    def _bounds(self, screen: Screen, rows: Rows, least: float) -> Scores | None:
        """No less than the scores (n,); None where too few of the first rows are below `least` for that to pay."""
        first = screen.bounds(rows[: blocks.PART_ROWS])
        if np.mean(first < least) < SCREENED_OUT:
            return None
        return np.concatenate([first, screen.bounds(rows[blocks.PART_ROWS :])])

    def _exact(self, rows: Rows) -> Scores:
        """Scores (n,)."""
        scores = np.empty(len(rows), dtype=np.float32)
        stored = as_tensor(rows)
        for place in blocks.parts(rows):
            part = stored[place]
            wide = part.contiguous() if part.dtype == torch.float32 else self._room.wide(part)
            scores[place] = self._multiply(wide).numpy()
        return scores

    def _multiply(self, part: torch.Tensor) -> torch.Tensor:
        """Scores (n,) of widened rows (n, dim)."""
        found = torch.full((len(part),), -torch.inf)
        for first in range(0, len(self.probes), PROBES_AT_ONCE):
            probes, offsets = self.some(first)
            out = self._room.take("products", (len(probes), len(part)), torch.float32)
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

    def on_device(self, rows: torch.Tensor, least: float = -np.inf, longest: float = np.inf) -> torch.Tensor:
        """Scores (n,) of rows (n, dim) where they lie; `longest` of the rows' lengths.

        Rows in half precision are multiplied as they are, so that their bytes are read once, and again in fp32 only where
        they may score `least`; those below it may come out higher than they are, but still below it.
        """
        if rows.dtype != torch.float16 or not np.isfinite(least + longest):
            return self._wide(rows)
        bounds = self._half(rows).float() + self._half_slack(longest)
        left = torch.nonzero(~(bounds < least)).flatten()
        if len(left) > len(rows) * (1 - SCREENED_OUT):
            return self._wide(rows)
        bounds[left] = self._wide(rows[left])
        return bounds

    def _half(self, rows: torch.Tensor) -> torch.Tensor:
        """Scores (n,) as half precision has them."""
        found = torch.full((len(rows),), -torch.inf, device=rows.device, dtype=rows.dtype)
        for first in range(0, len(self.probes), PROBES_AT_ONCE):
            probes, offsets = (part.to(rows.dtype) for part in self.some(first, rows.device))
            products = torch.addmm(-offsets.T, rows, probes.T) if self._shifted else rows @ probes.T
            found = torch.maximum(found, products.amax(dim=1))
        return found

    def _half_slack(self, longest: float) -> float:
        """How far half precision may be off; libraries add up parts of a product in half precision, too."""
        lengths = np.linalg.norm(self.probes.astype(np.float64), axis=1)
        return HALF_ERROR * float(lengths.max() * longest + np.abs(self.offsets).max())

    def _wide(self, rows: torch.Tensor) -> torch.Tensor:
        wide = rows.float()
        found = torch.full((len(rows),), -torch.inf, device=rows.device)
        for first in range(0, len(self.probes), PROBES_AT_ONCE):
            probes, offsets = self.some(first, rows.device)
            found = torch.maximum(found, (probes @ wide.T).sub_(offsets).amax(dim=0))
        return found
