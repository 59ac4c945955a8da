"""A hostile tar gives what is whole, its oddities are counted, and nothing is unpacked."""

import os
import tracemalloc
from pathlib import Path

import pytest

from storage import archives
from storage.objects import DirectoryStore


def header(name: bytes = b"a.jpg", size: bytes = b"3", kind: bytes = b"0", **more: bytes) -> bytes:
    raw = bytearray(512)
    raw[: len(name)] = name
    raw[124 : 124 + len(size)] = size
    raw[156:157] = kind
    raw[257:265] = more.get("magic", b"ustar\x0000")
    prefix = more.get("prefix", b"")
    raw[345 : 345 + len(prefix)] = prefix
    raw[148:156] = b" " * 8
    raw[148:156] = more.get("checksum", f"{sum(raw):06o}\0 ".encode())
    return bytes(raw)


def block(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 512)


GOOD = header(b"good.jpg") + block(b"yes")
LINKS = b"".join(header(f"{kind}.jpg".encode(), b"0", str(kind).encode()) for kind in (1, 2, 3, 4, 6))
SPARSE = header(b"s.jpg", b"3", b"S", magic=b"ustar  \0") + block(b"xxx")


def pax(record: bytes) -> bytes:
    return header(b"pax", f"{len(record):o}".encode(), b"x") + block(record)


@pytest.mark.parametrize(
    ("data", "findings", "good"),
    [
        (LINKS + GOOD, {archives.NOT_PLAIN: 5}, True),
        (SPARSE + GOOD, {archives.NOT_PLAIN: 1}, True),
        (header(b"/etc/a.jpg") + block(b"xxx") + GOOD, {archives.BAD_NAME: 1}, True),
        (header(b"../a.jpg", b"0") + header(b"x.jpg", b"0", prefix=b"a/../..") + GOOD, {archives.BAD_NAME: 2}, True),
        (header(b"\xff.jpg") + block(b"xxx") + GOOD, {archives.BAD_NAME: 1}, True),
        (header(b"") + block(b"xxx") + header(b"././") + block(b"xxx") + GOOD, {archives.BAD_NAME: 2}, True),
        (pax(b"18 path=../../a.jp\n"[:17] + b"\n") + GOOD + GOOD, {archives.BAD_NAME: 1}, True),
        (pax(b"22 GNU.sparse.major=1\n") + header(b"s.jpg") + block(b"xxx") + GOOD, {archives.NOT_PLAIN: 1}, True),
        (header(b"x", b"300000000", b"x") + GOOD, {archives.CUT: 1}, False),
        (header(b"x", b"2000000", b"x") + b"\0" * 0o2000000 + header() + block(b"xxx") + GOOD, {archives.NOT_PLAIN: 1}, True),
        (pax(b"99999999999999999 path=a\n") + GOOD, {archives.DAMAGED: 1}, False),
        (pax(b"x path=a\n") + GOOD, {archives.DAMAGED: 1}, False),
        (pax(b"28 size=9223372036854775808\n") + GOOD + GOOD, {archives.NOT_PLAIN: 1}, True),
        (pax(b"28 size=9999999999999999999\n") + GOOD + GOOD, {archives.NOT_PLAIN: 1}, True),
        (header(b"g", b"3", b"g") + block(b"xyz") + GOOD, {}, True),
        (GOOD + header(size=b"77777777777") + b"xxx", {archives.CUT: 1}, True),
        (GOOD + header(size=b"\x80" + b"\xff" * 11) + b"xxx", {archives.CUT: 1}, True),
        (GOOD + header(size=b"\xff" * 12) + b"xxx", {archives.DAMAGED: 1}, True),
        (GOOD + header(size=b"-7") + b"xxx", {archives.DAMAGED: 1}, True),
        (GOOD + header(size=b"9x9") + b"xxx", {archives.DAMAGED: 1}, True),
        (GOOD + header()[:300], {archives.CUT: 1}, True),
        (GOOD + header() + b"x", {archives.CUT: 1}, True),
        (GOOD + header(checksum=b"0000001\0") + block(b"xxx"), {archives.DAMAGED: 1}, True),
        (GOOD + os.urandom(2048), {archives.DAMAGED: 1}, True),
        (GOOD + b"\0" * 1024 + b"whatever comes after the end", {}, True),
        (header(b"good.jpg") + block(b"old") + GOOD, {archives.TWICE: 1}, True),
        (header(b"S.jpg", b"0", b"S") [:482] + b"\1" + header(b"S.jpg", b"0", b"S")[483:] + GOOD, {archives.DAMAGED: 1}, False),
        (header(b"folder.jpg/", b"0") + header(b"f.jpg", b"0", b"5") + GOOD, {}, True),
        (header(b"good.json", b"1000001") + b"x" * 0o1000001 + b"\0" * 511 + GOOD, {archives.TOO_LONG: 1}, True),
    ],
)  # fmt: skip
def test_a_hostile_tar_gives_what_is_whole_and_its_oddities_are_counted(
    tmp_path: Path, data: bytes, findings: dict[str, int], good: bool
) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    found = archives.scan(DirectoryStore(tmp_path), "x.tar", images=[".jpg"], texts={".json": 1000})
    assert +found.findings == findings
    assert [data[one.offset : one.offset + one.size] for one in found.members.values()] == [b"yes"][:good]
    assert list(found.members) == ["good.jpg"][:good]
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_a_header_that_claims_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "x.tar").open("wb") as handle:
        handle.write(header(b"x", b"20000000000", b"x"))
        handle.truncate(512 + 0o20000000000)  # two sparse gigabytes
        handle.seek(512 + 0o20000000000)
        handle.write(header() + block(b"xxx") + GOOD)
    tracemalloc.start()
    found = archives.scan(DirectoryStore(tmp_path), "x.tar", images=[".jpg"], texts={})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (list(found.members), peak < 1_000_000) == (["good.jpg"], True)
