"""Images of a listing as pixels of one size: each is read once, and what cannot be read is counted."""

from __future__ import annotations

import tempfile
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from models.elements import place_of
from models.errors import CorruptData, NotFound
from storage.stores import Stores
from tasks import elements
from tasks.compute import images
from tasks.compute.cores import cores
from tasks.steps import counting

IN_MEMORY_BYTES = 4_000_000_000
AHEAD = 64  # images that are being read while the one before is put in its place
CHANGED = "other bytes than were listed"


class Pixels(NamedTuple):
    """A listing's images, and the reason for each row that has none (zeros stand there)."""

    images: NDArray[np.uint8]  # (n, 3, size, size)
    reasons: dict[int, str]

    @property
    def readable(self) -> NDArray[np.int64]:
        """Rows that have an image."""
        return np.asarray([row for row in range(len(self.images)) if row not in self.reasons], dtype=np.int64)

    @property
    def counted(self) -> dict[str, int]:
        """Rows without one, by reason."""
        return dict(Counter(self.reasons.values()))


def of_listing(stores: Stores, listing: pa.Table, *, size: int) -> Pixels:
    """The images of a listing's rows, squeezed to size × size in RGB. Over 4 GB they lie in a temporary file.

    Squeezed, not cropped: a failure at the edge is not cut off. A file whose bytes have changed since it was listed is
    no image of that sample.
    """
    found = _room(listing.num_rows, size)
    reasons: dict[int, str] = {}
    done = counting(listing.num_rows, "reading images")
    for row, read in enumerate(_reads(stores, listing, size)):
        if isinstance(read, str):
            reasons[row] = read
        else:
            found[row] = read
        done(1)
    return Pixels(found, reasons)


def _room(rows: int, size: int) -> NDArray[np.uint8]:
    shape = (rows, 3, size, size)
    if rows * 3 * size * size <= IN_MEMORY_BYTES:
        return np.zeros(shape, np.uint8)
    with tempfile.TemporaryFile(prefix="dipnet-pixels-") as handle:  # without a name: gone when it is no longer mapped
        return np.memmap(handle, np.uint8, "w+", shape=shape)


def _reads(stores: Stores, listing: pa.Table, size: int) -> Iterator[NDArray[np.uint8] | str]:
    """Each row's pixels (3, size, size), or why there are none, in order; threads read ahead."""
    waiting: deque[Future[NDArray[np.uint8] | str]] = deque()
    with ThreadPoolExecutor(max_workers=min(32, 2 * cores())) as pool:
        for sample_id, uri in zip(
            listing.column("sample_id").to_pylist(), listing.column("uri").to_pylist(), strict=True
        ):
            waiting.append(pool.submit(_read, stores, sample_id, uri, size))
            if len(waiting) >= AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(stores: Stores, sample_id: str, uri: str, size: int) -> NDArray[np.uint8] | str:
    try:
        data = stores.read_uri(uri)
    except NotFound:
        return images.Reason.MISSING.value
    except CorruptData:  # a tar that ends before its member
        return CHANGED
    if elements.id_of(data, uri) != sample_id:
        return CHANGED if data else images.Reason.EMPTY.value
    try:
        image = elements.cut(data, place_of(uri).box, max_pixels=stores.settings.max_pixels)
    except images.Unreadable as problem:
        return problem.reason.value
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
