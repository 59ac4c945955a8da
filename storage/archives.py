"""Tars that are read in place: where each member's bytes lie. Nothing is ever unpacked, and nothing in a tar is believed.

The formats are ustar, GNU and pax, as POSIX.1-2001 (pax) and GNU tar's manual ("Basic Tar Format") describe them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from storage.objects import ObjectStore, S3Store

BLOCK = 512
# Of a file, only headers and small texts are read; a request to S3 takes as long as reading a megabyte.
LOOK_BYTES, LOOK_BYTES_S3 = 65_536, 1_048_576
MOST_NAME_BYTES = 65_536  # a name, or a header of pax with one
SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
COMPRESSED_START = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")

IS_COMPRESSED = "compressed tars (decompress them; members are read in place)"
CUT, DAMAGED = "tars that end too early (what is whole is used)", "damaged tars (what comes before is used)"
NOT_PLAIN, BAD_NAME = "members that are no plain files", "members with names that lead out or cannot be read"
TWICE, TOO_LONG = "members named twice (the last is used)", "texts about images that are too long"

PLAIN, FOLDER, LONG_NAME, LONG_LINK, OWN_HEADER, GLOBAL_HEADER = (b"0", b"\0", b"7"), b"5", b"L", b"K", b"x", b"g"
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
SPARSE = b"S"


class Member(NamedTuple):
    """A plain file in a tar."""

    name: str
    offset: int  # of its first byte
    size: int


@dataclass
class Archive:
    """What a tar holds, as far as it can be used."""

    members: dict[str, Member] = field(default_factory=dict)  # images, by name, in the order of the tar
    texts: dict[str, bytes] = field(default_factory=dict)  # small files beside them, by name
    findings: Counter[str] = field(default_factory=Counter)  # what could not be used, by reason


class Damaged(Exception):
    """No header where one should be."""


class _Cut(Exception):
    """The tar ends within a member."""


def scan(store: ObjectStore, key: str, *, images: Sequence[str], texts: Mapping[str, int]) -> Archive:
    """The members whose names end like images, and texts with these endings (of so many bytes at most).

    Only headers and texts are looked at. Raises NotFound and Unavailable.
    """
    window, found = _Window(store, key), Archive()
    if window.at(0, 8).startswith(COMPRESSED_START):
        found.findings[IS_COMPRESSED] += 1
        return found
    try:
        for name, offset, size in _files(window, found.findings):
            low = name.lower()
            if low.endswith(tuple(images)):
                found.findings[TWICE] += name in found.members
                found.members[name] = Member(name, offset, size)
            elif (most := next((most for end, most in texts.items() if low.endswith(end)), None)) is not None:
                if size > most:
                    found.findings[TOO_LONG] += 1
                else:
                    found.texts[name] = window.at(offset, size)
    except _Cut:
        found.findings[CUT] += 1
    except Damaged:
        found.findings[DAMAGED] += 1
    return found


class _Window:
    """Bytes of an object, read some kilobytes at a time."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store, self._key = store, key
        self._step = LOOK_BYTES_S3 if isinstance(store, S3Store) else LOOK_BYTES
        self._start, self._held = 0, b""
        self.size = self._read(0, self._step)

    def _read(self, start: int, length: int) -> int:
        part = self._store.read_part(self._key, start, start + length)
        self._start, self._held = start, part.data
        return part.size

    def at(self, offset: int, length: int) -> bytes:
        """That many bytes from `offset`, less at the end of the object."""
        if not self._start <= offset or offset + length > self._start + len(self._held):
            if offset >= self.size:
                return b""
            self._read(offset, max(length, self._step))
        return self._held[offset - self._start : offset - self._start + length]


class _Said(NamedTuple):
    """What extended headers say of the member after them."""

    name: str | None = None
    size: int | None = None
    plain: bool = True  # neither sparse nor with a header that is too large
    readable: bool = True  # the name is text


def _files(window: _Window, findings: Counter[str]) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every plain file that is whole. Raises _Cut and Damaged."""
    offset, said = 0, _Said()
    while offset < window.size:
        header = window.at(offset, BLOCK)
        if len(header) < BLOCK:
            raise _Cut
        if not header.strip(b"\0"):
            return
        _require_header(header)
        kind, size = header[156:157], _number(header[124:136])
        extended = kind in (LONG_NAME, LONG_LINK, OWN_HEADER, GLOBAL_HEADER)
        if not extended and said.size is not None:
            size = said.size
        start = offset + BLOCK + (_more_headers(window, offset, header) if kind == SPARSE else 0)
        if kind in WITHOUT_DATA:
            size = 0
        if start + size > window.size:
            raise _Cut
        offset = start + -(-size // BLOCK) * BLOCK
        if extended:
            said = _heard(said, kind, window, start, size)
            continue
        name, said_of_it, said = _name(header, said), said, _Said()
        if kind == FOLDER or (kind in PLAIN and name is not None and name.endswith("/")):
            continue
        if kind not in PLAIN or not said_of_it.plain:
            findings[NOT_PLAIN] += 1
        elif name is None:
            findings[BAD_NAME] += 1
        else:
            yield name, start, size


def _require_header(header: bytes) -> None:
    """Raises Damaged unless the checksum is right; old tars summed signed bytes."""
    try:
        told = int(header[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        raise Damaged from None
    rest = header[:148] + b" " * 8 + header[156:]
    unsigned = sum(rest)
    if told != unsigned and told != unsigned - 256 * sum(byte > 127 for byte in rest):
        raise Damaged


def _number(text: bytes) -> int:
    """A number in octal digits, or in base 256 where its first bit is set. Raises Damaged."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    try:
        value = int(text.strip(b" \0") or b"0", 8)
    except ValueError:
        raise Damaged from None
    if value < 0:
        raise Damaged
    return value


def _more_headers(window: _Window, offset: int, header: bytes) -> int:
    """Bytes of the blocks that describe the holes of GNU's sparse files."""
    length, more = 0, header[482]
    while more:
        length += BLOCK
        block = window.at(offset + length, BLOCK)
        if len(block) < BLOCK:
            raise _Cut
        more = block[504]
    return length


def _heard(said: _Said, kind: bytes, window: _Window, start: int, size: int) -> _Said:
    """What a header about the next member adds. One that is too large makes the member unusable."""
    if kind in (LONG_LINK, GLOBAL_HEADER):
        return said
    if size > MOST_NAME_BYTES:
        return said._replace(plain=False)
    data = window.at(start, size)
    if kind == LONG_NAME:
        return _named(said, data.partition(b"\0")[0])
    for key, value in _records(data):
        if key == b"path":
            said = _named(said, value)
        elif key == b"size" and value.isdigit() and len(value) < 19:
            said = said._replace(size=int(value))
        elif key == b"size" or key.startswith(b"GNU.sparse"):
            said = said._replace(plain=False)
    return said


def _named(said: _Said, name: bytes) -> _Said:
    try:
        return said._replace(name=name.decode())
    except UnicodeDecodeError:
        return said._replace(readable=False)


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each record `LENGTH KEY=VALUE\\n` of pax. Raises Damaged."""
    place = 0
    while place < len(data) and data[place]:
        digits, blank, _ = data[place : place + 20].partition(b" ")
        if not blank or not digits.isdigit():
            raise Damaged
        end = place + int(digits)
        record = data[place + len(digits) + 1 : end]
        key, equals, value = record.partition(b"=")
        if end <= place + len(digits) or end > len(data) or not equals or not value.endswith(b"\n"):
            raise Damaged
        yield key, value[:-1]
        place = end


def _name(header: bytes, said: _Said) -> str | None:
    """The member's path in the tar, without a leading ./; None for one that leads out of it or is no text."""
    if said.name is not None:
        name = said.name
    elif not said.readable:
        return None
    else:
        raw = header[:100].partition(b"\0")[0]
        before = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
        try:
            name = (before + b"/" + raw if before else raw).decode()
        except UnicodeDecodeError:
            return None
    while name.startswith("./"):
        name = name[2:].lstrip("/") if name[2:3] == "/" else name[2:]
    leads_out = name.startswith("/") or ".." in name.split("/") or "\0" in name
    return None if leads_out or not name else name
