"""The pixels of an element, as its URI says: a whole image, wherever it lies, or a box of one."""

from __future__ import annotations

from PIL import Image

from models.elements import Box, element_id, place_of
from storage.stores import Stores
from tasks.compute import images


def image_of(stores: Stores, uri: str, *, most: int | None = None) -> Image.Image:
    """The upright pixels that a URI names, in RGB. Raises Unreadable, or what reading raises."""
    return cut(stores.read_uri(uri, most=most), place_of(uri).box, max_pixels=stores.settings.max_pixels)


def cut(data: bytes, box: Box | None, *, max_pixels: int) -> Image.Image:
    """An image's upright pixels in RGB, or those of a box of it. Raises Unreadable."""
    whole = images.decode(data, max_pixels=max_pixels).image
    if box is None:
        return whole
    inside = images.inside(box, *whole.size)
    if inside is None:
        raise images.Unreadable(images.Reason.OUTSIDE)
    return whole.crop(inside)


def id_of(data: bytes, uri: str) -> str:
    """The sample id of what a URI names, where these are its image's bytes."""
    return element_id(images.fingerprint(data), place_of(uri).box)
