"""Which rows have the same name, or names of which one is the end of the other. Names are kept as digests of 16 bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

ABSENT, SEVERAL = -1, -2
DEEPEST = 64  # parts of a path that are told apart
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
Digests = NDArray[np.bytes_]


def digests(names: Iterable[str]) -> Digests:
    """(n,) of 16 bytes each."""
    return np.asarray([hashlib.blake2b(name.encode(), digest_size=16).digest() for name in names], "S16")


class Names:
    """Rows by name; what is named '' cannot be found."""

    def __init__(self, names: Iterable[str], *, first: bool = False) -> None:
        """`first`: of rows with the same name the first stands for all; otherwise such a name stands for none."""
        found = digests(names)
        known = np.flatnonzero(found != digests([""])[0])
        order = known[np.argsort(found[known], kind="stable")]
        self._digests, self._rows, self._first = found[order], order, first

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The row (n,) of each name; ABSENT, or SEVERAL where it is not one."""
        wanted = digests(names)
        start, stop = (np.searchsorted(self._digests, wanted, side) for side in ("left", "right"))
        found = np.full(len(wanted), ABSENT, np.int64)
        there = stop > start
        found[there] = self._rows[start[there]]
        if not self._first:
            found[stop - start > 1] = SEVERAL
        return found


class Paths:
    """Rows by path, as much of it as both sides know: one path may be the end of the other.

    Paths without the suffix of an image, such as webdataset's keys, fit whatever suffix the other has.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = [plain(path) for path in paths]
        self._whole = Names(self._paths)
        depths = {path.count("/") + 1 for path in self._paths if path}
        self._depths = sorted((depth for depth in depths if depth <= DEEPEST), reverse=True)
        self._bare = any(path and stem(path) == path for path in self._paths)
        self._ends: dict[int, Names] = {}

    def find(self, paths: Sequence[str], below: Sequence[str]) -> NDArray[np.int64]:
        """The row (n,) whose path is the longest end of each of `paths`, or ends with the one in `below`, its own end.

        ABSENT where there is none, SEVERAL where several rows have that path.
        """
        full, short = [plain(path) for path in paths], [plain(path) for path in below]
        found = np.full(len(full), ABSENT, np.int64)
        for depth in self._depths:
            ends = [end(path, depth) for path in full]
            _fill(found, self._whole, ends)
            if self._bare:
                _fill(found, self._whole, [stem(path) for path in ends])
        counts = np.asarray([path.count("/") + 1 for path in short])
        for depth in np.unique(counts).tolist():
            if depth <= DEEPEST:
                if depth not in self._ends:
                    self._ends[depth] = Names(end(path, depth) for path in self._paths)
                _fill(
                    found,
                    self._ends[depth],
                    [path if count == depth else "" for path, count in zip(short, counts, strict=True)],
                )
        return found


def _fill(found: NDArray[np.int64], names: Names, wanted: Sequence[str]) -> None:
    """Look for what is not found yet."""
    missing = np.flatnonzero(found == ABSENT)
    if len(missing):
        found[missing] = names.find([wanted[place] for place in missing.tolist()])


def plain(path: str) -> str:
    """A path without what the same file may or may not be written with."""
    path = path.removeprefix("file://").removeprefix("./")
    return path.replace("\\", "/").strip("/")


def end(path: str, depth: int) -> str:
    """The last parts of a path; '' where it has fewer."""
    parts = path.rsplit("/", depth)
    if len(parts) > depth:
        return "/".join(parts[1:])
    return path if len(parts) == depth else ""


def stem(path: str) -> str:
    """A path without the suffix of an image."""
    head, dot, tail = path.rpartition(".")
    return head if dot and f".{tail.lower()}" in SUFFIXES else path
