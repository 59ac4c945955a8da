"""The bytes that a URI names, wherever they lie."""

import io
import tarfile
from pathlib import Path

import pytest

from models.elements import Box, Place
from models.errors import BadInput, CorruptData, NotFound
from storage.stores import open_stores

DATA = {"a b.jpg": b"first", "deep/é#1.jpg": b"the second", "empty.jpg": b""}


@pytest.fixture
def members(tmp_path: Path) -> dict[str, Place]:
    """A tar, and where each of its members lies."""
    path = tmp_path / "0001.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in DATA.items():
            told = tarfile.TarInfo(name)
            told.size = len(data)
            archive.addfile(told, io.BytesIO(data))
    with tarfile.open(path) as archive:
        return {one.name: Place(str(path), one.name, one.offset_data, one.size) for one in archive.getmembers()}


def test_a_member_of_a_tar_is_read_where_it_lies(members: dict[str, Place]) -> None:
    with open_stores() as stores:
        assert {name: stores.read_uri(place.uri) for name, place in members.items()} == DATA


def test_a_box_has_the_bytes_of_its_image(members: dict[str, Place], tmp_path: Path) -> None:
    (tmp_path / "whole.jpg").write_bytes(b"whole")
    box = Box(1, 2, 3, 4)
    with open_stores() as stores:
        assert stores.read_uri(Place(str(tmp_path / "whole.jpg"), box=box).uri) == b"whole"
        assert stores.read_uri(members["a b.jpg"]._replace(box=box).uri) == b"first"


def test_a_file_whose_name_looks_like_a_fragment_is_read_as_a_file(tmp_path: Path) -> None:
    for name in ("a#member=b.jpg", "a#xywh=1,2.jpg", "a#b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
        with open_stores() as stores:
            assert stores.read_uri(str(tmp_path / name)) == name.encode()


def test_more_bytes_than_wanted_of_a_member_are_refused_before_reading(members: dict[str, Place]) -> None:
    with open_stores() as stores, pytest.raises(BadInput, match="has 10 bytes, and 9 are read at most"):
        stores.read_uri(members["deep/é#1.jpg"].uri, most=9)


def test_a_tar_that_is_gone_or_was_cut_is_named(members: dict[str, Place], tmp_path: Path) -> None:
    place = members["deep/é#1.jpg"]
    (tmp_path / "0001.tar").write_bytes(b"short")
    with open_stores() as stores, pytest.raises(CorruptData, match=r"0001\.tar' ends before its member"):
        stores.read_uri(place.uri)
    (tmp_path / "0001.tar").unlink()
    with open_stores() as stores, pytest.raises(NotFound, match=r"0001\.tar"):
        stores.read_uri(place.uri)


def test_members_and_boxes_in_s3_are_read_too(
    members: dict[str, Place], tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPNET_S3_ENDPOINT", s3_endpoint)
    uri = f"s3://bucket/{tmp_path.name}/a b/0.tar"
    with open_stores() as stores:
        stores.images(f"s3://bucket/{tmp_path.name}/a b").write("0.tar", (tmp_path / "0001.tar").read_bytes())
        for name, place in members.items():
            assert stores.read_uri(place._replace(object_uri=uri, box=Box(0, 0, 1, 1)).uri) == DATA[name]
        beyond = members["a b.jpg"]._replace(object_uri=uri, offset=10**9)
        with pytest.raises(CorruptData, match="ends before its member"):
            stores.read_uri(beyond.uri)
