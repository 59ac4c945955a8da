"""How a network wants its pixels. Nothing heavy is imported: decoding processes start with this."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Frame(NamedTuple):
    """Bytes (height, width, 3) of an upright RGB image; mean and deviation are applied where the network runs.

    crop: the shorter side is resized to `resize`, and the middle is cut out. pad: the longer side is resized to the
    frame, and the rest is filled. squash: both sides are resized to the frame.
    """

    height: int
    width: int
    fit: Literal["crop", "pad", "squash"] = "crop"
    resize: int = 0  # of the shorter side before cropping, in pixels; 0: the frame itself
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: tuple[int, int, int] = (0, 0, 0)
