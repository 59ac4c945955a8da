"""Where an element's pixels lie, as one URI, and what identifies it.

An image is a whole object (`/data/a.jpg`, `s3://bucket/a.jpg`) or a member of a tar that is read in place
(`/data/0001.tar#member=a.jpg&bytes=512+10240`). A crop is a box of one: `#xywh=x,y,w,h` is added, as W3C's Media
Fragments have it, in pixels of the upright image.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple
from urllib.parse import quote, unquote

FRAGMENT = re.compile(
    r"(?P<object>.*)#(?=member=|xywh=)(?:member=(?P<member>[^&#]*)&bytes=(?P<offset>\d{1,18})\+(?P<length>\d{1,18}))?&?"
    r"(?:xywh=(?P<box>\d{1,9},\d{1,9},\d{1,9},\d{1,9}))?",
    re.DOTALL,
)


class Box(NamedTuple):
    """A rectangle of an upright image, in whole pixels."""

    x: int
    y: int
    width: int
    height: int


class Place(NamedTuple):
    """An object, a member of it, or a box of the image there."""

    object_uri: str  # path or s3://bucket/key
    member: str = ""  # name within a tar; '': the object is the image
    offset: int = 0  # of the member's first byte
    length: int = 0  # of the member, in bytes
    box: Box | None = None

    @property
    def image(self) -> Place:
        """Where the whole image lies."""
        return self._replace(box=None)

    @property
    def uri(self) -> str:
        """The place as text; `place_of` reads it."""
        parts = []
        if self.member:
            parts.append(f"member={quote(self.member)}&bytes={self.offset}+{self.length}")
        if self.box:
            parts.append("xywh=" + ",".join(map(str, self.box)))
        return self.object_uri + ("#" + "&".join(parts) if parts else "")


def place_of(uri: str) -> Place:
    """The place that a URI names. What has no fragment of ours is an object, whatever its name."""
    found = FRAGMENT.fullmatch(uri)
    if found is None:
        return Place(uri)
    box = Box(*map(int, found["box"].split(","))) if found["box"] else None
    if found["offset"] is None:
        return Place(found["object"], box=box)
    return Place(found["object"], unquote(found["member"]), int(found["offset"]), int(found["length"]), box)


def apart(sample_id: str, image_id: str) -> str:
    """The image's id where the sample is a box of it; empty where the sample is the image."""
    return "" if image_id == sample_id else image_id


def element_id(image_id: str, box: Box | None) -> str:
    """The sample id of an image, or that of a box of it: 64 hexadecimal digits that follow from the bytes and the box."""
    if box is None:
        return image_id
    return hashlib.sha256(f"{image_id}#xywh={','.join(map(str, box))}".encode()).hexdigest()
