"""From an image's bytes to its id and its pixels. Quick to import, without torch: decoding processes start with it."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tasks.compute.exif import Exif, claimed_bytes, read_exif
from tasks.compute.fitting import Picture, Region, eighths, fit, turned
from tasks.compute.frame import Frame

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
    b"MM\x00+": "TIFF",
}
BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes, by version
MOST_SEGMENTS = 4_096  # of a JPEG before its pixels; real ones have tens
MOST_SCANS = 100  # of a progressive JPEG, each as long as a decode; real ones have about ten
SOS, EOI, APP0, APP14, APP1, APP15 = 0xDA, 0xD9, 0xE0, 0xEE, 0xE1, 0xEF
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
DAMAGED = (  # what PIL's decoders raise on damaged bytes
    *(UnidentifiedImageError, OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, EOFError),
    *(RuntimeError, AttributeError, AssertionError, struct.error, zlib.error),
)
TAGS_TO_BYTES = 4  # tags that claim more times the bytes of their file are a bomb

Box = tuple[int, int, int, int]  # x, y, width, height, in pixels of the upright image


class Reason(StrEnum):
    """Why an image is quarantined. The set is closed, so that counts add up."""

    MISSING = "missing"
    NO_PERMISSION = "no permission"
    CHANGED = "changed since it was listed"
    EMPTY = "empty file"
    NOT_AN_IMAGE = "not an image"
    TRUNCATED = "truncated or corrupt"
    TOO_LARGE = "too many pixels"
    TOO_MANY_BYTES = "too many bytes"
    TOO_SLOW = "took too long"
    CRASHED = "crashed the decoder"
    OUTSIDE = "box outside the image"
    NOT_FINITE = "no finite vector"
    NO_VECTOR = "no vector given"


class Unreadable(Exception):
    """An image that cannot be decoded, and why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Limits(NamedTuple):
    """What an image may cost. Its time is limited by whoever can end the process: see tasks.decoding."""

    pixels: int
    scans: int = MOST_SCANS


class Decoded(NamedTuple):
    """An image upright and in RGB, with its width and height."""

    image: Image.Image
    width: int
    height: int


class Looked(NamedTuple):
    """What one decode of an image gave. Width and height are those of the upright image."""

    width: int
    height: int
    taken_at: int | None  # microseconds since 1970, UTC
    pixels: list[NDArray[np.uint8] | Reason]  # by box: (frame height, frame width, 3), or why that box has none


def fingerprint(data: bytes) -> str:
    """The sample id: SHA-256 of the bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def look(data: bytes, frame: Frame, boxes: Sequence[Box | None], limits: Limits) -> Looked:
    """Decode an image once and fit each box of it (None: the whole) to a frame. Raises Unreadable.

    What of a box juts out is cut off. A JPEG is decoded no larger than its smallest box needs; everything else is decoded
    whole, and resized as open_clip and torchvision do it, through PIL.
    """
    kind = _kind(data)
    notes = _notes_of_jpeg(data, limits) if kind == "JPEG" else None
    size = _jpeg_size(data, limits) if notes else None
    if notes and size:
        upright = size[::-1] if notes.orientation >= 5 else size
        regions = [inside(box, *upright) for box in boxes]
        image, scale = _scaled_jpeg(data, size, eighths([region for region in regions if region], frame))
        if image is not None:
            return _fitted(turned(image, notes.orientation, size, scale), notes.taken_at, regions, frame)
    picture, taken_at = _whole(data, kind, notes, limits)
    return _fitted(picture, taken_at, [inside(box, picture.width, picture.height) for box in boxes], frame)


def decode(data: bytes, *, max_pixels: int) -> Decoded:
    """Decode the first frame upright and in RGB, at its full size. Raises Unreadable."""
    limits, kind = Limits(max_pixels), _kind(data)
    picture, _ = _whole(data, kind, _notes_of_jpeg(data, limits) if kind == "JPEG" else None, limits)
    return Decoded(picture.image, picture.width, picture.height)


def inside(box: Box | None, width: int, height: int) -> Region | None:
    """The part of a box that lies in an image: left, top, right, bottom. None: there is none. No box: the whole image.

    Detectors and rounding put boxes a little over the edge; what is left of them is meant.
    """
    x, y, wide, high = box or (0, 0, width, height)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + wide, width), min(y + high, height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _fitted(picture: Picture, taken_at: int | None, regions: Sequence[Region | None], frame: Frame) -> Looked:
    pixels = [Reason.OUTSIDE if region is None else fit(picture, region, frame) for region in regions]
    return Looked(picture.width, picture.height, taken_at, pixels)


def _kind(data: bytes) -> str:
    """Which of six formats the first bytes are of. PIL's rarer decoders have a history of holes, and no use here."""
    if not data:
        raise Unreadable(Reason.EMPTY)
    for magic, kind in MAGIC.items():
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in BMP_HEADERS:
        return "BMP"
    raise Unreadable(Reason.NOT_AN_IMAGE)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of a JPEG up to its first scan; a segment starts with its marker."""
    place = 2
    for _ in range(MOST_SEGMENTS):
        if data[place : place + 2] == b"\xff\xff":  # filling is allowed before a marker
            place += 1
            continue
        if data[place : place + 1] != b"\xff" or place + 4 > len(data):
            return
        marker, end = data[place + 1], place + 2 + max(int.from_bytes(data[place + 2 : place + 4]), 2)
        yield marker, place, end
        if marker in (SOS, EOI):
            return
        place = end


def _notes_of_jpeg(data: bytes, limits: Limits) -> Exif:
    """What a JPEG's EXIF says. Raises Unreadable for one with so many scans that it was made to keep us busy."""
    notes, progressive = Exif(), False
    for marker, start, end in _segments(data):
        if marker == APP1 and notes == Exif() and data[start + 4 : start + 10] == b"Exif\x00\x00":
            notes = read_exif(data[start + 4 : end])
        progressive |= marker in PROGRESSIVE
        if marker == SOS and progressive:  # what follows an image may hold anything, such as a film
            last = data.find(b"\xff\xd9", end)
            if data.count(b"\xff\xda", start, last if last > 0 else len(data)) > limits.scans:
                raise Unreadable(Reason.TOO_SLOW)
    return notes


def _jpeg_size(data: bytes, limits: Limits) -> tuple[int, int] | None:
    """Width and height as stored; None: turbojpeg cannot read it into RGB, and PIL has its say. Raises Unreadable."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, RuntimeError):
        return None
    if width * height > limits.pixels:
        raise Unreadable(Reason.TOO_LARGE)
    return None if space in ("CMYK", "YCCK") else (width, height)


def _scaled_jpeg(data: bytes, size: tuple[int, int], eighths: int) -> tuple[Image.Image | None, float]:
    """A JPEG at n/8 of its size, and n/8; no image where turbojpeg meets anything odd, which PIL may forgive."""
    width, height = (math.ceil(side * eighths / 8) for side in size)
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except (ValueError, RuntimeError):
        return None, 1.0
    return (Image.fromarray(pixels), eighths / 8) if pixels.shape[:2] == (height, width) else (None, 1.0)


def _whole(data: bytes, kind: str, notes: Exif | None, limits: Limits) -> tuple[Picture, int | None]:
    """An image at its full size through PIL, and when it was taken. Raises Unreadable."""
    if kind == "TIFF" and claimed_bytes(data) > TAGS_TO_BYTES * len(data):
        raise Unreadable(Reason.TRUNCATED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF blocks and bomb warnings; we check the pixels ourselves
            with Image.open(io.BytesIO(_bare(data) if kind == "JPEG" else data), formats=(kind,)) as opened:
                if opened.width * opened.height > limits.pixels:
                    raise Unreadable(Reason.TOO_LARGE)
                opened.load()
                notes = notes or read_exif(data if kind == "TIFF" else opened.info.get("exif", b""))
                image = _to_rgb(opened)
    except (Image.DecompressionBombError, MemoryError):
        raise Unreadable(Reason.TOO_LARGE) from None
    except DAMAGED:
        raise Unreadable(Reason.TRUNCATED) from None
    up = 1 if kind == "TIFF" else notes.orientation  # PIL turns TIFFs itself
    return turned(image, up, image.size), notes.taken_at


def _bare(data: bytes) -> bytes:
    """A JPEG without the notes of cameras and programs, which PIL would parse: they are where bombs hide."""
    parts, end = [data[:2]], 2
    for marker, start, end in _segments(data):
        if not APP0 <= marker <= APP15 or marker == APP14:  # the last says how colours are coded
            parts.append(data[start:end])
    return b"".join([*parts, data[end:]])


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB: 16-bit greys and floats are scaled to 8 bits, transparency is laid on white."""
    if image.mode.startswith("I;16"):
        sixteen = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((sixteen + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _to_bytes(greys: NDArray[np.int32] | NDArray[np.float32]) -> NDArray[np.uint8]:
    """Greys of 32 bits have no agreed white: it is the least of 1, 255 and 65,535 that holds all, or their maximum."""
    finite = np.nan_to_num(greys.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(finite.max(initial=0.0))
    whites = (1.0, 255.0, 65_535.0) if greys.dtype.kind == "f" else (255.0, 65_535.0)
    white = next((white for white in whites if top <= white), top)
    scaled: NDArray[np.uint8] = np.clip(np.rint(finite * (255.0 / white)), 0, 255).astype(np.uint8)
    return scaled
