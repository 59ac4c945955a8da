"""Upper bounds of scores from products of whole numbers of eight bits, so that few rows need the exact ones in fp32."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.compute import blocks
from tasks.compute.blocks import STEPS, Room, Rows

PROBES_AT_ONCE = 256
SUMS = 2.0**-22  # relative error of a sum in fp32, for each of its terms
ROUNDED = 1.001  # what is added to a product is itself rounded
CENTRED_FROM = 256  # rows whose mean says where the others lie


@cache
def quick() -> bool:
    """Whether this processor has products of int8; where they are emulated, they are slower than those of fp32."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11
    named = any(able.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    return named and hasattr(torch, "_int_mm")


class Screen:
    """Bounds of max over probes of (row · probe - offset).

    With c some centre of the rows, steps s and t, and a and b whole: row - c = s·a + e and probe = t·b + f, where each of
    e is at most s/2. So row · probe = s·t·(a·b) + c · probe + probe · e + f · (row - c - e), of which the last two are no
    more than |probe|₁ s/2 + |f| (|row - c| + √dim s/2). The centre keeps s small where a few dimensions are large in all
    rows, as those of CLIP are.
    """

    def __init__(self, probes: NDArray[np.float32], offsets: NDArray[np.float32], like: Rows) -> None:
        """probes (p, dim), offsets (p,); like (n, dim): some of the rows to come."""
        exact, dim = probes.astype(np.float64), probes.shape[1]
        steps = np.maximum(np.abs(exact).max(axis=1, keepdims=True) / STEPS, 1e-30)
        whole = np.rint(exact / steps)
        missed = np.linalg.norm(exact - whole * steps, axis=1)
        lengths = np.linalg.norm(exact, axis=1)
        centre = like.mean(axis=0, dtype=np.float64) if len(like) >= CENTRED_FROM else np.zeros(dim)
        self._centre = np.where(np.isfinite(centre), centre, 0).astype(np.float32)
        shifts = exact @ self._centre.astype(np.float64) - offsets
        self._a_length = float(missed.max() + SUMS * dim * lengths.max())
        self._a_step = float((np.abs(exact).sum(axis=1) + missed * dim**0.5).max()) / 2
        self._at_all = SUMS * dim * float(lengths.max() * np.linalg.norm(self._centre) + np.abs(shifts).max(initial=0))
        self._chunks = [
            (
                torch.from_numpy(whole[few].astype(np.int8)),
                torch.from_numpy(steps[few].astype(np.float32)),
                torch.from_numpy(shifts[few, None].astype(np.float32)),
            )
            for few in (slice(first, first + PROBES_AT_ONCE) for first in range(0, len(probes), PROBES_AT_ONCE))
        ]
        self._room = Room()

    def bounds(self, rows: Rows) -> NDArray[np.float32]:
        """No less than the scores (n,) of rows (n, dim); NaN for a row that is not finite."""
        from tasks.compute.narrowing import narrow  # compiled: half a second that few scans need

        found: NDArray[np.float32] = np.empty((3, len(rows)), dtype=np.float32)
        best, steps, lengths = found
        for place in blocks.parts(rows):
            whole = self._room.take("whole", rows[place].shape, torch.int8)
            narrow(rows[place], self._centre, whole.numpy(), steps[place], lengths[place])
            self._best(whole, torch.from_numpy(steps[place]), torch.from_numpy(best[place]))
        slack = self._a_length * lengths + self._a_step * steps + self._at_all
        bounds: NDArray[np.float32] = best + ROUNDED * slack + SUMS * np.abs(best)
        return bounds

    def _best(self, whole: torch.Tensor, steps: torch.Tensor, best: torch.Tensor) -> None:
        """The greatest product plus its shift, to `best` (n,)."""
        best.fill_(-torch.inf)
        for probes, probe_steps, shifts in self._chunks:
            shape = len(probes), len(whole)
            products = self._room.take("products", shape, torch.int32)
            torch._int_mm(probes, whole.T, out=products)
            scores = self._room.take("scores", shape, torch.float32)
            torch.mul(products, probe_steps, out=scores)
            scores.mul_(steps).add_(shifts)
            torch.maximum(best, scores.amax(dim=0), out=best)
