"""From an image's bytes to its id and its pixels."""

from __future__ import annotations

import hashlib
import io
import warnings
from enum import StrEnum
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class Reason(StrEnum):
    """Why an image is quarantined. The set is closed, so that counts add up."""

    MISSING = "missing"
    EMPTY = "empty file"
    NOT_AN_IMAGE = "not an image"
    TRUNCATED = "truncated or corrupt"
    TOO_LARGE = "too many pixels"
    NO_VECTOR = "no finite vector"
    NOT_GIVEN = "no vector given"
    OUTSIDE = "box outside the image"


class Unreadable(Exception):
    """An image that cannot be decoded, and why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Decoded(NamedTuple):
    """An image upright and in RGB, with the size of the original."""

    image: Image.Image
    width: int
    height: int


def fingerprint(data: bytes) -> str:
    """The sample id: SHA-256 of the bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, *, max_pixels: int) -> Decoded:
    """Decode the first frame upright and in RGB. Raises Unreadable.

    Only six formats are tried: PIL's rarer decoders have a history of holes and a corpus has no use for them.
    """
    if not data:
        raise Unreadable(Reason.EMPTY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF blocks and bomb warnings; we check the pixels ourselves
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                width, height = opened.size
                if width * height > max_pixels:
                    raise Unreadable(Reason.TOO_LARGE)
                upright = ImageOps.exif_transpose(opened)
                return Decoded(_to_rgb(upright), width, height)
    except UnidentifiedImageError:
        raise Unreadable(Reason.NOT_AN_IMAGE) from None
    except Image.DecompressionBombError:
        raise Unreadable(Reason.TOO_LARGE) from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, MemoryError, OverflowError):
        # PIL's decoders raise any of these on damaged bytes.
        raise Unreadable(Reason.TRUNCATED) from None


def inside(box: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int] | None:
    """The part of a box (x, y, width, height) that lies in an image: left, top, right, bottom. None: there is none.

    Detectors and rounding put boxes a little over the edge; what is left of them is meant.
    """
    x, y, wide, high = box
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + wide, width), min(y + high, height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB: 16-bit greys are scaled to 8 bits, transparency is laid on white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        greys = image.convert("F").point(lambda grey: grey / 257.0 if image.mode != "F" else grey)
        return greys.convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")
