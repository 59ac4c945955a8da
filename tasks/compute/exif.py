"""The two things a camera's notes say that we use: which way is up, and when. The bytes are hostile, so nothing raises.

Tags are laid out as TIFF 6.0 has them, and their meaning is that of Exif 2.32.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

ORIENTATION, EXIF_TAGS, GPS_TAGS, INTEROP_TAGS = 0x0112, 0x8769, 0x8825, 0xA005
TAKEN, TAKEN_OFFSET, TAKEN_FRACTION = 0x9003, 0x9011, 0x9291
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
LONGEST_TEXT = 64
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENT = re.compile(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)")
OFFSET = re.compile(r"([+-])(\d\d):(\d\d)")


class Exif(NamedTuple):
    """Orientation 1 to 8 as EXIF numbers them, and when the image was taken."""

    orientation: int = 1
    taken_at: int | None = None  # microseconds since 1970, UTC


class Tag(NamedTuple):
    """An entry of a directory of tags."""

    number: int
    size: int  # in bytes, as the entry claims
    value: bytes  # the value, or where it is
    kind: int


class Layout(NamedTuple):
    """How numbers are written: TIFF, or BigTIFF with its longer fields."""

    order: str
    length: str
    entry: str
    first: int  # offset of the first directory


def read_exif(block: bytes) -> Exif:
    """What a block of EXIF, or a TIFF file, says; nothing where it makes no sense."""
    block = block.removeprefix(b"Exif\x00\x00")
    try:
        layout = _layout(block)
        main = {tag.number: tag for tag in _tags(block, layout, layout.first)}
        inner: dict[int, Tag] = {}
        if EXIF_TAGS in main:
            inner = {tag.number: tag for tag in _tags(block, layout, _number(main[EXIF_TAGS], layout))}
        turned = _number(main[ORIENTATION], layout) if ORIENTATION in main else 1
        texts = {number: _text(block, inner[number], layout) for number in _of_time(inner)}
    except (struct.error, ValueError, OverflowError):
        return Exif()
    return Exif(turned if 1 <= turned <= 8 else 1, _moment(texts))


def claimed_bytes(block: bytes) -> int:
    """Bytes that the tags of a TIFF's first image claim to hold: more than there are is a bomb, as tags may overlap."""
    try:
        layout = _layout(block)
        main = list(_tags(block, layout, layout.first))
        within = [tag for tag in main if tag.number in (EXIF_TAGS, GPS_TAGS, INTEROP_TAGS)]
        inner = [tag for pointer in within for tag in _tags(block, layout, _number(pointer, layout))]
    except (struct.error, ValueError, OverflowError):
        return 0  # no directory: the decoder will say so
    return sum(tag.size for tag in main + inner)


def _layout(block: bytes) -> Layout:
    """Raises ValueError or struct.error for what is no block of tags."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        raise ValueError("no byte order")
    if struct.unpack_from(order + "H", block, 2)[0] == 43:
        return Layout(order, "Q", "HHQ8s", struct.unpack_from(order + "Q", block, 8)[0])
    return Layout(order, "H", "HHL4s", struct.unpack_from(order + "L", block, 4)[0])


def _tags(block: bytes, layout: Layout, start: int) -> Iterator[Tag]:
    """The entries of one directory, as many as lie within the block. Chains of directories are not followed."""
    (count,) = struct.unpack_from(layout.order + layout.length, block, start)
    start += struct.calcsize(layout.order + layout.length)
    entry = struct.Struct(layout.order + layout.entry)
    within = min(count, (len(block) - start) // entry.size)
    for number, kind, length, value in entry.iter_unpack(block[start : start + within * entry.size]):
        yield Tag(number, TYPE_BYTES.get(kind, 0) * length, value, kind)


def _number(tag: Tag, layout: Layout) -> int:
    """A short or a long that stands in the entry itself."""
    code = {3: "H", 4: "L", 13: "L", 16: "Q", 18: "Q"}.get(tag.kind)
    if code is None:
        raise ValueError("no whole number")
    found: int = struct.unpack_from(layout.order + code, tag.value)[0]
    return found


def _of_time(inner: dict[int, Tag]) -> list[int]:
    return [number for number in (TAKEN, TAKEN_OFFSET, TAKEN_FRACTION) if number in inner]


def _text(block: bytes, tag: Tag, layout: Layout) -> str:
    size = min(tag.size, LONGEST_TEXT)
    if tag.size <= len(tag.value):
        raw = tag.value[:size]
    else:
        (start,) = struct.unpack(layout.order + ("L" if len(tag.value) == 4 else "Q"), tag.value)
        raw = block[start : start + size]
    return raw.split(b"\x00")[0].decode("ascii", "replace").strip()


def _moment(texts: dict[int, str]) -> int | None:
    """Microseconds since 1970; a time without an offset is taken for UTC."""
    found = MOMENT.fullmatch(texts.get(TAKEN, ""))
    if found is None:
        return None
    try:
        moment = datetime(*map(int, found.groups()), tzinfo=UTC)  # type: ignore[arg-type,misc]
    except ValueError:
        return None
    micros = (moment - EPOCH) // timedelta(microseconds=1)
    if offset := OFFSET.fullmatch(texts.get(TAKEN_OFFSET, "")):
        ahead = int(offset[2]) * 60 + int(offset[3])
        micros -= (ahead if offset[1] == "+" else -ahead) * 60_000_000
    fraction = texts.get(TAKEN_FRACTION, "")
    if fraction.isascii() and fraction.isdigit():
        micros += int(fraction[:6].ljust(6, "0"))
    return micros
