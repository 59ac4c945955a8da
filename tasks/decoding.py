"""Images to pixels, in order and many at once: processes read, hash, decode, and write into memory that they share."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.elements import Place
from models.settings import Settings
from storage.reading import Access
from tasks.compute.cores import cores
from tasks.compute.frame import Frame
from tasks.decoder import Configured
from tasks.decoding_pool import Pool
from tasks.shared_memory import Segment


class Work(NamedTuple):
    """Consecutive rows of a manifest; the boxes of one image are neighbours. Its pixels are in memory all at once."""

    tag: int  # comes back with the chunk
    places: Sequence[Place]
    etags: Sequence[str]  # as listed; '': unknown


class Seen(NamedTuple):
    """What one read of a row found. Of bytes that could not be read nothing is known."""

    sample_id: str  # of the element: the image, or the box of it
    image_id: str
    width: int  # of the upright image
    height: int
    taken_at: int | None  # microseconds since 1970, UTC
    bytes: int  # that were read for it; 0 for a box of an image that the row before has read
    reason: str  # '': readable


@dataclass
class Chunk:
    """What became of a work."""

    tag: int
    seen: list[Seen]  # a row each
    pixels: NDArray[np.uint8]  # (readable, height, width, 3): shared memory, good until `release`
    read_seconds: float = 0.0  # that the process waited for bytes
    decode_seconds: float = 0.0  # of processor time: reading, hashing and decoding
    segment: Segment | None = None  # of the shared memory that they lie in

    def release(self) -> None:
        """The pixels are not needed any more. From any thread, once."""
        if self.segment:
            self.segment.release()


class Decoders(Protocol):
    """Whoever turns works into chunks."""

    @property
    def workers(self) -> int:
        """Processes that decode at once."""
        ...

    def map(self, works: Iterable[Work], frame: Frame) -> Generator[Chunk]:
        """A chunk for each work, in their order. Works are asked for a few ahead; chunks are to be released soon.

        Raises what reading raises: Unavailable, or NotFound for a bucket.
        """
        ...


class LocalDecoders:
    """Processes on this machine. Two `map`s at once, or one left unfinished, have processes of their own."""

    def __init__(
        self, access: Access, *, workers: int, max_pixels: int = 100_000_000, image_seconds: float = 30.0, nice: int = 0
    ) -> None:
        self.workers = workers
        self._configured, self._image_seconds = Configured(access, max_pixels, nice), image_seconds
        self._idle: list[Pool] = []
        self._all: list[Pool] = []
        self._lock = threading.Lock()

    def map(self, works: Iterable[Work], frame: Frame) -> Generator[Chunk]:
        """See Decoders."""
        pool = self._a_pool()
        found = pool.map(works, frame)
        try:
            for pending in found:
                _, rows, readable, read_seconds, decode_seconds = pending.answer or []
                shape = (readable, frame.height, frame.width, 3)
                memory = np.frombuffer(pending.segment.memory, np.uint8, count=int(np.prod(shape)))
                seen = [Seen(*row) for row in rows]
                yield Chunk(
                    pending.work.tag, seen, memory.reshape(shape), read_seconds, decode_seconds, pending.segment
                )
        finally:
            found.close()
            with self._lock:
                if not pool.closed:
                    self._idle.append(pool)
                elif pool in self._all:
                    self._all.remove(pool)

    def rest(self) -> None:
        """End processes that have nothing to do; they start again when they are needed."""
        with self._lock:
            while self._idle:
                pool = self._idle.pop()
                self._all.remove(pool)
                pool.close()

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            for pool in self._all:
                pool.close()
            self._all, self._idle = [], []

    def _a_pool(self) -> Pool:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            self._all.append(Pool(self._configured, workers=self.workers, image_seconds=self._image_seconds))
            return self._all[-1]


@dataclass
class Kept:
    """What this process keeps, by what it was made for."""

    by_key: dict[Hashable, LocalDecoders] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


KEPT = Kept()


def local_decoders(settings: Settings, *, nice: int = 0) -> LocalDecoders:
    """The decoding processes of this process: kept for its life and ended with it, or when others are asked for."""
    limits = (settings.decoders or cores(), settings.max_pixels, settings.image_seconds, nice)
    access = Access(settings.s3_endpoint, settings.s3_region, settings.max_image_bytes)
    credentials = frozenset(item for item in os.environ.items() if item[0].startswith("AWS_"))  # as they are now
    wanted = (os.getpid(), access, limits, credentials)
    with KEPT.lock:
        for key, decoders in KEPT.by_key.items():
            if key != wanted:
                decoders.rest()
        if wanted not in KEPT.by_key:
            workers, pixels, seconds, nice = limits
            made = LocalDecoders(access, workers=workers, max_pixels=pixels, image_seconds=seconds, nice=nice)
            atexit.register(made.close)
            KEPT.by_key[wanted] = made
        return KEPT.by_key[wanted]
