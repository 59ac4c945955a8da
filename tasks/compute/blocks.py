"""Stored rows as kernels take them: a cacheful at a time, in memory that is asked for once."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# 2,048 rows × 512 dimensions in fp32 are 4 MB: still within the caches, and few enough calls that threads seldom wait for
# Python's lock, which each call gives back and asks for again.
PART_ROWS = 2_048
STEPS = 127  # of an int8 number, either way, to which rows and probes are narrowed

Rows = NDArray[np.float16] | NDArray[np.float32]


def parts(rows: Rows) -> Iterator[slice]:
    """Places of rows (n, dim), part by part."""
    for start in range(0, len(rows), PART_ROWS):
        yield slice(start, min(start + PART_ROWS, len(rows)))


class Room:
    """Memory of the calling thread's own: what is asked for anew each time is given page by page."""

    def __init__(self) -> None:
        self._own = threading.local()

    def take(self, name: str, shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
        """A tensor with whatever was in it before."""
        views: dict[tuple[int, ...], torch.Tensor] = self._own.__dict__.setdefault(name, {})
        found = views.get(shape)
        if found is None:
            size, held = math.prod(shape), max((view.numel() for view in views.values()), default=0)
            if size > held:
                views.clear()
                found = torch.empty(shape, dtype=kind)
            else:
                found = next(view for view in views.values() if view.numel() == held).view(-1)[:size].view(shape)
            views[shape] = found
        return found

    def wide(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (n, dim) in fp32, as a copy; torch widens them ten times as fast as numpy."""
        return self.take("wide", tuple(rows.shape), torch.float32).copy_(rows)


class _Readable:
    """An array's memory without its read-only mark, which torch would warn of. Nothing here writes to it."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array  # kept alive with the view
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def as_tensor(rows: Rows) -> torch.Tensor:
    """The same memory as a tensor."""
    return torch.from_numpy(np.asarray(_Readable(rows)))
