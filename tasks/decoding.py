"""Stand-in until the decoding processes land."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.elements import Place, element_id
from models.settings import Settings
from storage.reading import Access, Problem, read_ahead
from tasks.compute import images
from tasks.compute.frame import Frame


class Work(NamedTuple):
    tag: int
    places: Sequence[Place]
    etags: Sequence[str]


class Seen(NamedTuple):
    sample_id: str
    image_id: str
    width: int
    height: int
    taken_at: int | None
    bytes: int
    reason: str


@dataclass
class Chunk:
    tag: int
    seen: list[Seen]
    pixels: NDArray[np.uint8]
    read_seconds: float = 0.0
    decode_seconds: float = 0.0

    def release(self) -> None:
        pass


class Decoders(Protocol):
    @property
    def workers(self) -> int: ...

    def map(self, works: Iterable[Work], frame: Frame) -> Iterator[Chunk]: ...


class Inline:
    workers = 1

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def map(self, works: Iterable[Work], frame: Frame) -> Iterator[Chunk]:
        from tasks.compute.backends import framed

        s = self.settings
        access = Access(s.s3_endpoint, s.s3_region, s.max_image_bytes)
        for work in works:
            started = time.process_time()
            seen, pixels = [], [np.empty((0, frame.height, frame.width, 3), np.uint8)]
            for place, data in zip(work.places, read_ahead(work.places, work.etags, access), strict=True):
                if isinstance(data, Problem):
                    seen.append(Seen("", "", 0, 0, None, 0, data.value))
                    continue
                name = element_id(images.fingerprint(data), place.box)
                try:
                    decoded = images.decode(data, max_pixels=s.max_pixels)
                except images.Unreadable as problem:
                    seen.append(Seen(name, images.fingerprint(data), 0, 0, None, len(data), problem.reason.value))
                    continue
                image = decoded.image
                if place.box:
                    inside = images.inside(place.box, *image.size)
                    if inside is None:
                        whole = images.fingerprint(data)
                        seen.append(Seen(name, whole, 0, 0, None, len(data), images.Reason.OUTSIDE.value))
                        continue
                    image = image.crop(inside)
                seen.append(Seen(name, images.fingerprint(data), decoded.width, decoded.height, None, len(data), ""))
                pixels.append(framed(image, frame)[None])
            yield Chunk(work.tag, seen, np.concatenate(pixels), 0.0, time.process_time() - started)


def local_decoders(settings: Settings) -> Decoders:
    return Inline(settings)
