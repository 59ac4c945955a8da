"""Images to vectors, overlapped: processes read and decode ahead, one thread encodes, one puts finished shards away.

Every hand-over is bounded, so that memory stays flat whatever the corpus: decoders fill so many slots and wait, the
encoder has two batches, and shards wait for the disk two at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.elements import Place
from tasks.compute import cores
from tasks.compute.frame import Frame
from tasks.decoding import Chunk, Decoders, Seen, Work

CHUNK_ROWS = 64
AHEAD = 2  # shards that may wait to be put away


class ImageEncoder(Protocol):
    """What the pipeline needs of an encoder."""

    @property
    def frame(self) -> Frame:
        """How it wants its pixels."""
        ...

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, height, width, 3) → unit rows (n, dim)."""
        ...


@dataclass
class Meter:
    """What stages did, in seconds of this run; shared cores are counted in seconds of processor time."""

    workers: int
    cores: int = field(default_factory=cores.cores)
    started: float = 0.0
    images: int = 0
    bytes: int = 0
    read_seconds: float = 0.0  # that decoders waited for bytes, all together
    decode_seconds: float = 0.0  # of processor time
    encode_seconds: float = 0.0  # that the encoder was busy
    used_before: float = 0.0  # of processor time by this process

    def begin(self) -> None:
        """Now, unless it has begun: loading the network is not what a run is measured by."""
        if not self.started:
            self.started, self.used_before = time.monotonic(), time.process_time()

    def add(self, chunk: Chunk) -> None:
        """A chunk was decoded."""
        self.images += len(chunk.seen)
        self.bytes += sum(seen.bytes for seen in chunk.seen)
        self.read_seconds += chunk.read_seconds
        self.decode_seconds += chunk.decode_seconds

    @property
    def seconds(self) -> float:
        """Since it has begun."""
        return time.monotonic() - self.started if self.started else 0.0

    def processor_seconds(self) -> float:
        """That this process has used since the start: on a CPU, what encoding took."""
        return time.process_time() - self.used_before if self.started else 0.0


@dataclass
class Job:
    """Some rows of one shard on their way through; `sink` gets it back when the last one has its vector."""

    tag: int
    places: Sequence[Place]
    etags: Sequence[str]
    started: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    parts: list[Future[NDArray[np.float16]]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every row was looked at."""
        return len(self.seen) == len(self.places)

    def works(self) -> Iterator[Work]:
        """Its rows in chunks; the boxes of one image stay together, so that it is decoded once."""
        self.started = time.monotonic()
        start = 0
        while start < len(self.places):
            end = min(start + CHUNK_ROWS, len(self.places))
            while (
                end < len(self.places) and self.places[end].box and self.places[end].image == self.places[end - 1].image
            ):
                end += 1
            yield Work(self.tag, self.places[start:end], self.etags[start:end])
            start = end

    def vectors(self, dim: int) -> NDArray[np.float16]:
        """(readable, dim), when the encoder is done with the last of them."""
        return np.concatenate([np.empty((0, dim), np.float16), *(part.result() for part in self.parts)])


class Batches:
    """Pixels in two buffers that take turns: one is filled while the other is encoded."""

    def __init__(self, encoder: ImageEncoder, size: int, meter: Meter) -> None:
        self._encoder, self._meter = encoder, meter
        shape = (size, encoder.frame.height, encoder.frame.width, 3)
        self._buffers = deque([np.empty(shape, np.uint8), np.empty(shape, np.uint8)])
        self._busy: deque[Future[NDArray[np.float16]]] = deque()
        self._filled = 0
        self._thread = ThreadPoolExecutor(1, "encoder")

    def add(self, job: Job, pixels: NDArray[np.uint8]) -> None:
        """Copy a chunk's pixels (n, height, width, 3) in; what fills a buffer goes to the encoder."""
        while len(pixels):
            buffer = self._buffers[0]
            count = min(len(buffer) - self._filled, len(pixels))
            buffer[self._filled : self._filled + count] = pixels[:count]
            self._filled, pixels = self._filled + count, pixels[count:]
            if self._filled == len(buffer):
                self.flush(job)

    def flush(self, job: Job) -> None:
        """Encode what there is. Each shard ends with one, so that its batches are the same in every run."""
        if not self._filled:
            return
        future = self._thread.submit(self._encode, self._buffers[0][: self._filled])
        job.parts.append(future)
        self._busy.append(future)
        self._filled = 0
        self._buffers.rotate()
        if len(self._busy) == len(self._buffers):
            self._busy.popleft().result()

    def close(self) -> None:
        """Wait for the thread; what was not begun is not done."""
        self._thread.shutdown(cancel_futures=True)

    def _encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        started = time.monotonic()
        found = self._encoder.encode_pixels(pixels).astype(np.float16)
        self._meter.encode_seconds += time.monotonic() - started
        return found


def decoded(jobs: Iterable[Job], decoders: Decoders, frame: Frame) -> Generator[tuple[Job, Chunk]]:
    """Chunks as they are decoded, each with its job, which knows by then what was seen. Whoever takes one releases it."""
    under_way: dict[int, Job] = {}

    def works() -> Iterator[Work]:
        for job in jobs:
            under_way[job.tag] = job
            yield from job.works()

    with closing(decoders.map(works(), frame)) as chunks:
        for chunk in chunks:
            job = under_way[chunk.tag]
            job.seen.extend(chunk.seen)
            if job.complete:
                del under_way[chunk.tag]
            yield job, chunk


def run(
    jobs: Iterable[Job],
    decoders: Decoders,
    batches: Batches,
    *,
    frame: Frame,
    sink: Callable[[Job], None],
    watch: Callable[[Chunk], None],
) -> None:
    """Take every job through. `sink` runs in a thread of its own, a job at a time, in their order; `watch` in this one."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, "writer") as writer, closing(decoded(jobs, decoders, frame)) as chunks:
        for job, chunk in chunks:
            batches.add(job, chunk.pixels)
            chunk.release()
            watch(chunk)
            if job.complete:
                batches.flush(job)
                waiting.append(writer.submit(sink, job))
            while waiting and (len(waiting) > AHEAD or waiting[0].done()):
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()
