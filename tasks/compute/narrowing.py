"""Stored rows as whole numbers of eight bits, in one pass over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from tasks.compute.blocks import STEPS

# A float32 of at most 2^22 becomes the nearest whole number when this is added; its lowest bits are that number's.
ROUNDER = np.float32(1.5 * 2**23)
# A float16's bits, moved to where float32 has them, are short of this factor; those above are infinity and NaN.
SHORT_BY, MOST_FINITE = np.float32(2.0**112), np.uint16(0x7BFF)

# Sums may be added up in any order, as the registers have it; NaN stays NaN.
FAST = {"reassoc", "nsz", "contract", "arcp"}


def narrow(
    rows: NDArray[np.float16] | NDArray[np.float32],
    centre: NDArray[np.float32],
    whole: NDArray[np.int8],
    steps: NDArray[np.float32],
    lengths: NDArray[np.float32],
) -> None:
    """Rows (n, dim) less the centre (dim,) as steps[i] · whole[i], nearest; their lengths |row - centre|.

    whole (n, dim), steps (n,) and lengths (n,) are written. A row that is not finite has a step that is NaN.
    """
    if rows.dtype == np.float16:
        _narrow16(rows.view(np.uint16), centre, whole, steps, lengths)
    else:
        _narrow32(rows, centre, whole, steps, lengths)


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compiled at the first call, and kept on the disk where that can be written to."""
    options: dict[str, Any] = {"nogil": True, "fastmath": FAST, "error_model": "numpy"}
    try:
        made: Callable[..., None] = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache
        made = njit(**options)(function)
    return made


@intrinsic
def _as_float(_, bits):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """The float32 of these 32 bits."""
    return types.float32(types.uint32), lambda _, builder, __, given: builder.bitcast(given[0], ir.FloatType())


@intrinsic
def _as_bits(_, number):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """The 32 bits of this float32."""
    return types.int32(types.float32), lambda _, builder, __, given: builder.bitcast(given[0], ir.IntType(32))


@_compiled
def _narrow16(bits, centre, whole, steps, lengths) -> None:  # type: ignore[no-untyped-def]
    wide = np.empty(bits.shape[1], np.float32)
    for number in range(len(bits)):
        row, most = bits[number], np.uint16(0)
        for place in range(len(row)):
            most = max(most, np.uint16(row[place] & np.uint16(0x7FFF)))
        for place in range(len(row)):
            half = np.uint32(row[place])
            shifted = ((half & np.uint32(0x7FFF)) << np.uint32(13)) | ((half & np.uint32(0x8000)) << np.uint32(16))
            wide[place] = _as_float(shifted) * SHORT_BY - centre[place]
        _round(wide, most <= MOST_FINITE, number, whole, steps, lengths)


@_compiled
def _narrow32(rows, centre, whole, steps, lengths) -> None:  # type: ignore[no-untyped-def]
    wide = np.empty(rows.shape[1], np.float32)
    for number in range(len(rows)):
        for place in range(len(wide)):
            wide[place] = rows[number, place] - centre[place]
        _round(wide, True, number, whole, steps, lengths)


@_compiled
def _round(wide, finite, number, whole, steps, lengths) -> None:  # type: ignore[no-untyped-def]
    out, largest, squares = whole[number], np.int32(0), np.float32(0)
    for place in range(len(wide)):
        # By its bits: whole numbers have no NaN, so that the greatest is found in any order.
        largest = max(largest, _as_bits(wide[place]) & np.int32(0x7FFFFFFF))
        squares += wide[place] * wide[place]
    most = _as_float(np.uint32(largest))
    inverse = np.float32(STEPS) / max(most, np.float32(1e-30))
    for place in range(len(wide)):
        out[place] = np.int8(_as_bits(wide[place] * inverse + ROUNDER))
    steps[number] = most / np.float32(STEPS) if finite else np.float32(np.nan)
    lengths[number] = np.sqrt(squares)
