"""From a decoded image, perhaps smaller than it was, to the pixels a network wants, by the same rules as open_clip's.

A JPEG is decoded at n/8 of its size, and its last row and column may then hold less than a pixel. Sizes are therefore
fractions here: taking whole pixels for them would shift the image by half a pixel, and cost 15 dB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.compute.frame import Frame

EIGHTHS = (1, 2, 3, 4, 5, 6, 8)  # seven is slower than eight: only whole blocks have fast transforms
# Times the frame that a smaller decode must have at least. Near one bilinear filters hardly smooth, and a network trained
# on smoothed images sees others: with 1.0 a MobileNet's vectors of 500×375 photographs have cosines from 0.984.
SPARE = {"bicubic": 1.0, "bilinear": 1.5}
MOST_WASTED = 8  # times the frame, that resizing first and cropping then may compute
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
TO_THE_LEFT, TO_THE_TOP = (2, 3, 6, 7), (3, 4, 7, 8)  # where the last column, the last row comes first

Region = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the upright original


class Picture(NamedTuple):
    """An upright RGB image as decoded; width and height are those of the original, upright."""

    image: Image.Image
    width: int
    height: int
    scale: float = 1.0  # decoded pixels to a pixel of the original
    left: float = 0.0  # decoded pixels before the first that counts
    top: float = 0.0


class Span(NamedTuple):
    """One axis: `pixels` from `first` of the resized image, `start` to `end` of the original, come after `before` fills."""

    start: float
    end: float
    first: int
    pixels: int
    before: int


def eighths(regions: Sequence[Region], frame: Frame) -> int:
    """The least n such that an image decoded at n/8 of its size has pixels enough for each of its regions."""
    needed = 0.0
    for left, top, right, bottom in regions:
        width, height = right - left, bottom - top
        across, down = resized(width, height, frame)
        needed = max(needed, across / width, down / height)
    return next((n for n in EIGHTHS if n >= 8 * needed * SPARE[frame.interpolation]), 8)


def turned(image: Image.Image, orientation: int, size: tuple[int, int], scale: float = 1.0) -> Picture:
    """An image as stored, set upright. size: width and height of the original, as stored."""
    spare_x, spare_y = image.width - size[0] * scale, image.height - size[1] * scale
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    if orientation >= 5:
        size, spare_x, spare_y = (size[1], size[0]), spare_y, spare_x
    left = spare_x if orientation in TO_THE_LEFT else 0.0
    top = spare_y if orientation in TO_THE_TOP else 0.0
    return Picture(image, *size, scale, left, top)


def fit(picture: Picture, region: Region, frame: Frame) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) of one region of an image, which lies within it."""
    width, height, scale = region[2] - region[0], region[3] - region[1], picture.scale
    image, left, top = picture.image, picture.left + region[0] * scale, picture.top + region[1] * scale
    if (width, height) != (picture.width, picture.height):  # what surrounds a crop must not bleed into it
        corner = math.floor(left), math.floor(top)
        right, bottom = math.ceil(left + width * scale), math.ceil(top + height * scale)
        image = image.crop((*corner, min(right, image.width), min(bottom, image.height)))
        left, top = left - corner[0], top - corner[1]

    new_width, new_height = resized(width, height, frame)
    across, down = span(width, new_width, frame.width), span(height, new_height, frame.height)
    if scale == 1.0 and new_width * new_height <= MOST_WASTED * frame.width * frame.height:
        large = image.resize((new_width, new_height), FILTERS[frame.interpolation])  # to the bit as open_clip has it
        corner = across.first, down.first
        small = np.asarray(large.crop((*corner, corner[0] + across.pixels, corner[1] + down.pixels)))
    else:
        source = (
            left + across.start * scale,
            top + down.start * scale,
            min(left + across.end * scale, image.width),
            min(top + down.end * scale, image.height),
        )
        small = np.asarray(image.resize((across.pixels, down.pixels), FILTERS[frame.interpolation], box=source))
    if small.shape[:2] == (frame.height, frame.width):
        return small
    filled = np.empty((frame.height, frame.width, 3), np.uint8)
    filled[:] = frame.fill
    filled[down.before : down.before + down.pixels, across.before : across.before + across.pixels] = small
    return filled


def resized(width: int, height: int, frame: Frame) -> tuple[int, int]:
    """Width and height of the whole image before its middle is cut out, or its rest is filled."""
    if frame.fit == "squash":
        return frame.width, frame.height
    by_width, by_height = width / frame.width, height / frame.height
    if frame.fit == "pad":
        ratio = max(by_width, by_height)
    elif frame.resize or frame.width == frame.height:
        short = frame.resize or frame.width  # torchvision's rule for the longer side: rounded down
        return (short, short * height // width) if width <= height else (short * width // height, short)
    else:
        ratio = min(by_width, by_height)
    return max(round(width / ratio), 1), max(round(height / ratio), 1)


def span(size: int, resized_to: int, wanted: int) -> Span:
    """What to resize along one axis. Only what stays is computed: an image of 1 × 10,000 pixels must not grow huge."""
    if resized_to <= wanted:
        return Span(0.0, float(size), 0, resized_to, (wanted - resized_to) // 2)
    first = round((resized_to - wanted) / 2)
    return Span(first * size / resized_to, (first + wanted) * size / resized_to, first, wanted, 0)
