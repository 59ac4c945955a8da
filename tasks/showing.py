"""From a signed link to the image behind it: only what annotators were asked about, and only as it was then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import NamedTuple

from sqlmodel import Session

from models.corpus import Sample
from models.elements import place_of
from models.errors import BadInput, CorruptData, NotFound
from models.settings import Settings
from storage import shown
from storage.stores import Stores, open_stores
from tasks import elements
from tasks.compute import browsers, images

MOST_BYTES = 200_000_000
ANY = "*"
# Decoding changes the filters of warnings, which threads share; and a hundred million pixels take 300 MB each time.
ONE_AT_A_TIME = threading.Lock()


class Changed(CorruptData):
    """The bytes are not those that were chosen: another image would be labelled."""


class NotShowable(BadInput):
    """A file that no browser shows and that does not become a PNG either."""


class Shown(NamedTuple):
    """An image for a browser. Without data when the browser has it already: an id stands for the same bytes forever."""

    sample_id: str
    data: bytes
    media_type: str


def image_of_request(settings: Settings, key: str, *, known: Collection[str] = ()) -> Shown:
    """The image of a label request. Raises NotFound, Changed, NotShowable or Unavailable."""
    return _image(settings, lambda db: shown.sample_of_request(db, key=key), known)


def image_of_example(settings: Settings, project_id: int, sample_id: str, *, known: Collection[str] = ()) -> Shown:
    """An exemplar, to the annotators of a project. Raises the same."""
    find = shown.sample_of_example
    return _image(settings, lambda db: find(db, project_id=project_id, sample_id=sample_id), known)


def _image(settings: Settings, find: Callable[[Session], Sample | None], known: Collection[str]) -> Shown:
    with open_stores(settings) as stores:
        sample = find(stores.db)
        if sample is None:
            raise NotFound("nobody was asked about this image, or it was taken back")
        if sample.id in known or ANY in known:
            return Shown(sample.id, b"", "")
        data = _read(stores, sample)
    box = place_of(sample.uri).box
    if not box and (kind := browsers.media_type(data)):
        return Shown(sample.id, data, kind)
    try:
        with ONE_AT_A_TIME:
            image = elements.cut(data, box, max_pixels=settings.max_pixels)
            return Shown(sample.id, browsers.as_png(image), "image/png")
    except images.Unreadable as problem:
        raise NotShowable(f"'{sample.uri}' cannot be shown ({problem.reason}); discard it") from None


def _read(stores: Stores, sample: Sample) -> bytes:
    try:
        data = stores.read_uri(sample.uri, most=MOST_BYTES)
    except NotFound:
        raise
    except BadInput as error:
        raise NotShowable(str(error)) from None
    except CorruptData:  # a tar that ends before its member
        raise Changed(_changed(sample)) from None
    if elements.id_of(data, sample.uri) != sample.id:
        raise Changed(_changed(sample))
    return data


def _changed(sample: Sample) -> str:
    return f"'{sample.uri}' has changed since it was chosen; put back what it was"
