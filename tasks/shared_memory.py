"""Memory that several processes see: one file without a name, so that nothing of it is left when the last of them ends."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections import deque

KEPT_BYTES = 256_000_000  # of segments that nobody uses


class Segment:
    """A piece of it, to be given back."""

    def __init__(self, arena: Arena, start: int, memory: mmap.mmap) -> None:
        self._arena, self.start, self.memory = arena, start, memory

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.memory)

    def release(self) -> None:
        """Others may write here from now on. From any thread."""
        self._arena.returned.append(self)


class Arena:
    """Hands out segments and takes them back; what is large and idle goes back to the system."""

    def __init__(self, first_bytes: int) -> None:
        self.handle = _nameless_file()
        self.returned: deque[Segment] = deque()
        self._free: list[Segment] = []
        self._end = 0
        self.first = self._grow(first_bytes)

    def segment(self, size: int) -> Segment:
        """A segment of that many bytes or more: the smallest that is free, or a new one."""
        while self.returned:
            self._free.append(self.returned.popleft())
        self._free.sort(key=lambda free: free.size)
        while sum(free.size for free in self._free) > KEPT_BYTES:
            _give_up(self._free.pop())
        for place, free in enumerate(self._free):
            if free.size >= size:
                return self._free.pop(place)
        return self._grow(size)

    def close(self) -> None:
        """Let go of the file; pixels that somebody still looks at stay until they do not."""
        self._free.clear()
        self.returned.clear()
        if self.handle >= 0:
            os.close(self.handle)
        self.handle = -1

    def _grow(self, size: int) -> Segment:
        pages = max(-(-size // mmap.ALLOCATIONGRANULARITY), 1) * mmap.ALLOCATIONGRANULARITY
        os.ftruncate(self.handle, self._end + pages)
        made = Segment(self, self._end, mmap.mmap(self.handle, pages, offset=self._end))
        self._end += pages
        return made


def _give_up(segment: Segment) -> None:
    """The file keeps its length there, but no memory."""
    if hasattr(mmap, "MADV_REMOVE"):
        with contextlib.suppress(OSError):
            segment.memory.madvise(mmap.MADV_REMOVE)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("dipnet-pixels", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
