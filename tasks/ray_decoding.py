"""Ray's workers as decoders. Imported where Ray is asked for, and by the workers: so nothing here takes long to import."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from models.errors import DipnetError
from models.settings import Settings, load_settings
from tasks.compute.frame import Frame
from tasks.compute.images import Reason
from tasks.decoding import Chunk, Seen, Work, local_decoders

AHEAD = 2  # works a decoder that are under way or wait to be encoded
TRIES = 2  # of a work whose worker dies, before its images are looked at one by one
DIED = (WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)


class Looked(NamedTuple):
    """What a decoder found of a work's rows: a chunk as it travels."""

    seen: list[Seen]
    pixels: NDArray[np.uint8]  # (readable, height, width, 3)
    read_seconds: float
    decode_seconds: float


class Arrived(Chunk):
    """Parts of one work as one chunk. A single part's pixels lie in Ray's object store for as long as they are looked at."""

    def __init__(self, tag: int, parts: Sequence[Looked]) -> None:
        self.tag = tag
        self.seen = [seen for part in parts for seen in part.seen]
        self.pixels = parts[0].pixels if len(parts) == 1 else np.concatenate([part.pixels for part in parts])
        self.read_seconds = sum(part.read_seconds for part in parts)
        self.decode_seconds = sum(part.decode_seconds for part in parts)

    def release(self) -> None:
        """Ray counts references."""
        self.pixels = self.pixels[:0].copy()


Look = Callable[[Mapping[str, str], Work, Frame], Looked]


def look(environment: Mapping[str, str], work: Work, frame: Frame) -> Looked:
    """Read and decode one work, here. The process that does it is a child of this one, and watched as it always is."""
    decoders = local_decoders(settle(tuple(environment.items())).model_copy(update={"decoders": 1}))
    (chunk,) = decoders.map([work], frame)
    try:
        return Looked(chunk.seen, np.array(chunk.pixels), chunk.read_seconds, chunk.decode_seconds)
    finally:
        chunk.release()


@cache
def settle(environment: Sequence[tuple[str, str]]) -> Settings:
    """The settings of this process, which it keeps."""
    os.environ.update(environment)
    return load_settings()


class RayDecoders:
    """Ray's workers as decoders: works in order, a bounded number ahead, pixels straight from the object store.

    A work whose worker dies is looked at again, and if that one dies too, image by image, so that only those are set
    aside that no worker survives.
    """

    def __init__(self, environment: Mapping[str, str], workers: int, look: Look = look) -> None:
        self.workers = workers
        self._environment = ray.put(dict(environment))
        self._task: Any = ray.remote(num_cpus=1, max_retries=0)(look)

    def map(self, works: Iterable[Work], frame: Frame) -> Generator[Chunk]:
        """A chunk a work. Raises what reading raises, such as Unavailable."""
        under_way: deque[tuple[Work, Any]] = deque()
        try:
            for work in works:
                under_way.append((work, self._start(work, frame)))
                if len(under_way) >= AHEAD * self.workers:
                    yield self._finish(*under_way[0], frame)
                    under_way.popleft()
            while under_way:
                yield self._finish(*under_way[0], frame)
                under_way.popleft()
        finally:
            for _, reference in under_way:
                ray.cancel(reference)

    def _start(self, work: Work, frame: Frame) -> Any:
        return self._task.remote(self._environment, work, frame)

    def _finish(self, work: Work, reference: Any, frame: Frame) -> Chunk:
        for left in reversed(range(TRIES)):
            try:
                return Arrived(work.tag, [Looked(*ray.get(reference))])
            except DIED:
                if left:
                    reference = self._start(work, frame)
            except RayTaskError as error:
                raise_inside(error)
        if len(work.places) == 1:
            seen = Seen("", "", 0, 0, None, 0, Reason("crashed the decoder").value)
            return Arrived(work.tag, [Looked([seen], np.empty((0, frame.height, frame.width, 3), np.uint8), 0.0, 0.0)])
        ones = [Work(work.tag, [place], [etag]) for place, etag in zip(work.places, work.etags, strict=True)]
        references = [self._start(one, frame) for one in ones]
        chunks = [self._finish(one, found, frame) for one, found in zip(ones, references, strict=True)]
        return Arrived(work.tag, [Looked(one.seen, one.pixels, one.read_seconds, one.decode_seconds) for one in chunks])


def raise_inside(error: RayTaskError) -> None:
    """Raise what was raised on another machine: an error of ours as such, another one with its traceback."""
    if isinstance(error.cause, DipnetError):
        raise error.cause from None
    raise error
