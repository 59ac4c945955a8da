"""Upper bounds of scores, from products of a quarter or half of fp32's width: few rows then need the exact ones."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any, Protocol

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

_faiss: Any = faiss  # its type stubs lack much of what is used here

PROBES_AT_ONCE = 256
SUMS = 2.0**-22  # relative error of a sum in fp32, for each of its terms
ROUNDED = 1.001  # what is added to a product is itself rounded
STEPS = 127  # of an int8 number, either way
# A float32 of at most 2^22 becomes the nearest whole number when this is added; its lowest bits are that number's.
ROUNDER = 1.5 * 2**23
HALF_ULP = 2.0**-8  # relative error of a number rounded to bfloat16

Bounds = NDArray[np.float32]


class Screen(Protocol):
    """Bounds scores of rows from above."""

    def bounds(self, wide: torch.Tensor, largest: float) -> Bounds:
        """No less than the scores (n,) of rows (n, dim) in fp32; NaN where a row, or any row, is not finite.

        largest: of the rows' numbers, without their signs. The rows may be overwritten.
        """
        ...


def screens(probes: NDArray[np.float32], offsets: NDArray[np.float32]) -> list[Screen]:
    """Those that this processor is quick at, the quickest first; probes (p, dim), offsets (p,)."""
    found: list[Screen] = []
    if hasattr(torch, "_int_mm") and multiplies("avx512_vnni", "avx_vnni", "amx_int8"):
        found.append(Whole(probes, offsets))
    if multiplies("avx512_bf16", "amx_bf16", "sve_bf16"):
        found.append(Brief(probes, offsets))
    return found


@cache
def multiplies(*names: str) -> bool:
    """Whether this processor has one of these products; where they are emulated, they are slower than fp32."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11
    return any(able.get(name, False) for name in names)


class Whole:
    """From products of whole numbers, in int8: the quickest, and good as long as no dimension dwarfs the others.

    With steps s and t, and a and b whole, a row is s·a + e and a probe t·b + f, where each of e is at most s/2. Their
    product is s·t·(a·b) + probe·e + f·(row - e), off by no more than |probe|₁ s/2 + |f| (|row| + √dim s/2).
    """

    def __init__(self, probes: NDArray[np.float32], offsets: NDArray[np.float32]) -> None:
        exact, dim = probes.astype(np.float64), probes.shape[1]
        self._step = max(float(np.abs(exact).max()) / STEPS, 1e-30)
        whole = np.rint(exact / self._step)
        self._probes = _chunks(torch.from_numpy(whole.astype(np.int8)))
        self._offsets = _chunks(torch.from_numpy(offsets.astype(np.float64))[:, None])
        self._shifted = bool(offsets.any())
        missed = float(np.linalg.norm(exact - whole * self._step, axis=1).max())
        self._a_length = missed + SUMS * dim * float(np.linalg.norm(exact, axis=1).max())
        self._a_step = (float(np.abs(exact).sum(axis=1).max()) + missed * dim**0.5) / 2
        self._room = _Room()

    def bounds(self, wide: torch.Tensor, largest: float) -> Bounds:
        """See Screen."""
        if not np.isfinite(largest):
            return np.full(len(wide), np.nan, dtype=np.float32)
        step = max(largest / STEPS, 1e-30)
        slack = self._a_length * norms(wide) + self._a_step * step
        rows = self._room.take("rows", wide.shape, torch.int8)
        torch.add(_rounder(), wide, alpha=1 / step, out=wide)
        rows.copy_(wide.view(torch.int32))

        unit, most = step * self._step, torch.full((len(wide),), -(2**31), dtype=torch.int32)
        for probes, offsets in zip(self._probes, self._offsets, strict=True):
            products = self._room.take("products", (len(probes), len(wide)), torch.int32)
            torch._int_mm(probes, rows.T, out=products)
            if self._shifted:
                products.sub_((offsets / unit).floor().clamp(-(2**30), 2**30).int())  # down: a bound stays one
            torch.maximum(most, products.amax(dim=0), out=most)
        best = most.float().numpy() * np.float32(unit)
        bounds: Bounds = best + ROUNDED * slack + SUMS * np.abs(best)
        return bounds


class Brief:
    """From products in bfloat16: half of fp32's time, and good for vectors with a few large dimensions too.

    With u the relative error of rounding to bfloat16, probes, rows and the product are each off by u, so that a product
    of q and r is off by no more than (3u + 4u² + dim · 2^-22) |q| |r|; the last term is for sums in fp32. Source: Higham,
    Accuracy and Stability of Numerical Algorithms, § 3.1.
    """

    def __init__(self, probes: NDArray[np.float32], offsets: NDArray[np.float32]) -> None:
        self._probes = _chunks(torch.from_numpy(probes).bfloat16())
        self._offsets = _chunks(torch.from_numpy(offsets)[:, None])
        self._shifted = bool(offsets.any())
        longest = float(np.linalg.norm(probes.astype(np.float64), axis=1).max())
        error = 3 * HALF_ULP + 4 * HALF_ULP**2 + probes.shape[1] * SUMS
        self._a_length = ROUNDED * error * longest
        self._room = _Room()

    def bounds(self, wide: torch.Tensor, largest: float) -> Bounds:  # noqa: ARG002  what Screen asks for
        """See Screen."""
        rows = self._room.take("rows", wide.shape, torch.bfloat16).copy_(wide)
        best = torch.full((len(wide),), -torch.inf)
        for probes, offsets in zip(self._probes, self._offsets, strict=True):
            products = self._room.take("products", (len(probes), len(wide)), torch.bfloat16)
            torch.mm(probes, rows.T, out=products)
            shifted = products.float().sub_(offsets) if self._shifted else products
            torch.maximum(best, shifted.amax(dim=0).float(), out=best)
        bounds: Bounds = best.numpy() + self._a_length * norms(wide)
        return bounds


def _chunks(probes: torch.Tensor) -> list[torch.Tensor]:
    return [probes[first : first + PROBES_AT_ONCE] for first in range(0, len(probes), PROBES_AT_ONCE)]


class _Room:
    """Memory of the calling thread's own: what is asked for anew each time is given page by page."""

    def __init__(self) -> None:
        self._own = threading.local()

    def take(self, name: str, shape: tuple[int, ...] | torch.Size, kind: torch.dtype) -> torch.Tensor:
        """A tensor with whatever was in it before."""
        size = int(np.prod(shape))
        held: torch.Tensor | None = getattr(self._own, name, None)
        if held is None or len(held) < size:
            held = torch.empty(size, dtype=kind)
            setattr(self._own, name, held)
        return held[:size].view(shape)


@cache
def _rounder() -> torch.Tensor:
    return torch.tensor(ROUNDER)


def norms(rows: torch.Tensor) -> NDArray[np.float32]:
    """Lengths (n,) of rows (n, dim) in fp32, one after the other in memory; faiss takes half of torch's time."""
    lengths = np.empty(len(rows), dtype=np.float32)
    _faiss.fvec_norms_L2(_faiss.swig_ptr(lengths), _faiss.swig_ptr(rows.numpy()), rows.shape[1], len(rows))
    return lengths


def largest(rows: NDArray[np.float16] | NDArray[np.float32]) -> float:
    """The largest number of rows (n, dim) without its sign, or NaN or infinity where there is one.

    By their bits, whose order without the sign is that of the numbers: the one pass over the stored rows is the quicker
    the narrower they are.
    """
    size = 8 * rows.dtype.itemsize
    signed, unsigned = (np.dtype(f"{kind}{size // 8}") for kind in "iu")
    positive = int(rows.view(signed).max(initial=0))
    negative = int(rows.view(unsigned).max(initial=0)) & ((1 << (size - 1)) - 1)
    return float(np.asarray(max(positive, negative), dtype=unsigned).view(rows.dtype))
