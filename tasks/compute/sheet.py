"""A contact sheet: rows of small pictures with a line under each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

THUMBNAIL, GAP, LINE, HEADING = 96, 8, 14, 22  # pixels
INK, PAPER, BLANK = (30, 30, 30), (255, 255, 255), (215, 215, 215)


class Picture(NamedTuple):
    """An image, or None where it could not be read, and a short line."""

    image: Image.Image | None
    line: str


class Strip(NamedTuple):
    """A heading and pictures, as many as are to stand in one row."""

    heading: str
    pictures: Sequence[Picture]


def contact_sheet(strips: Sequence[Strip]) -> Image.Image:
    """The strips one below the other. An image that could not be read is a grey square, so that nothing is missing."""
    columns = max([len(strip.pictures) for strip in strips] + [1])
    cell, row = THUMBNAIL + GAP, HEADING + THUMBNAIL + LINE + GAP
    sheet = Image.new("RGB", (GAP + columns * cell, GAP + len(strips) * row), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for number, strip in enumerate(strips):
        top = GAP + number * row
        pen.text((GAP, top), strip.heading, INK, font)
        for column, picture in enumerate(strip.pictures):
            left, upper = GAP + column * cell, top + HEADING
            sheet.paste(_thumbnail(picture.image), (left, upper))
            pen.text((left, upper + THUMBNAIL + 1), picture.line, INK, font)
    return sheet


def _thumbnail(image: Image.Image | None) -> Image.Image:
    """The image inside a grey square."""
    square = Image.new("RGB", (THUMBNAIL, THUMBNAIL), BLANK)
    if image is not None:
        small = image.convert("RGB")
        ratio = THUMBNAIL / max(small.size)
        small = small.resize((max(1, round(small.width * ratio)), max(1, round(small.height * ratio))))
        square.paste(small, ((THUMBNAIL - small.width) // 2, (THUMBNAIL - small.height) // 2))
    return square
