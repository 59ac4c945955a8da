"""Objects are whole or absent, keys stay inside, and checksums are believed."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from models.errors import BadInput, CorruptData, NotFound, Unavailable
from storage.objects import DirectoryStore, ObjectStore, open_store, verified


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "directory":
        (tmp_path / "store").mkdir()
        return open_store(str(tmp_path / "store"))
    return open_store(f"s3://bucket/{tmp_path.name}", endpoint=request.getfixturevalue("s3_endpoint"))


def test_what_is_written_is_read_and_listed_in_order(store: ObjectStore) -> None:
    for key in ("b/2", "a/1", "b/1"):
        store.write(key, key.encode())
    assert [item.key for item in store.list()] == ["a/1", "b/1", "b/2"]
    assert [item.key for item in store.list("b")] == ["b/1", "b/2"]
    assert store.read("b/2") == b"b/2"
    assert store.exists("b/2")
    assert not store.exists("b/3")


def test_writing_again_replaces_and_changes_the_etag(store: ObjectStore) -> None:
    store.write("k", b"one")
    before = next(iter(store.list())).etag
    store.write("k", b"another")
    after = next(iter(store.list()))
    assert store.read("k") == b"another"
    assert after.etag != before
    assert after.bytes == 7


def test_a_missing_object_is_named(store: ObjectStore) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        store.read("nowhere")


def test_more_than_may_be_read_is_refused(store: ObjectStore) -> None:
    store.write("k", b"four")
    assert store.read("k", most=4) == b"four"
    with pytest.raises(BadInput, match="has 4 bytes, and 3 are read at most"):
        store.read("k", most=3)


def test_bytes_that_changed_are_refused(store: ObjectStore) -> None:
    checksum = store.write("k", b"right")
    assert verified(store, "k", checksum) == b"right"
    store.write("k", b"wrong")
    with pytest.raises(CorruptData, match="checksum differs"):
        verified(store, "k", checksum)


def test_a_local_path_holds_the_objects_bytes(store: ObjectStore, tmp_path: Path) -> None:
    store.write("deep/k", b"bytes")
    assert store.local_path("deep/k", tmp_path / "cache").read_bytes() == b"bytes"


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc/passwd", "", "."])
def test_a_key_never_leads_out_of_the_directory(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadInput, match="leads out"):
        DirectoryStore(tmp_path).read(key)


def test_a_link_to_a_file_outside_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "own.png").write_bytes(b"x")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    assert [item.key for item in DirectoryStore(tmp_path / "in").list()] == ["own.png"]


def test_a_write_that_fails_leaves_the_old_object_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path)
    store.write("k", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.objects.os.fsync", full)
    with pytest.raises(Unavailable, match="No space left on device"):
        store.write("k", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["k"]
    assert store.read("k") == b"old"


def test_a_server_that_is_down_and_a_bucket_that_is_not_there_are_named(s3_endpoint: str) -> None:
    with pytest.raises(NotFound, match="bucket 'other' does not exist"):
        open_store("s3://other/x", endpoint=s3_endpoint).read("k")
    with pytest.raises(Unavailable, match="DIPNET_S3_ENDPOINT"):
        open_store("s3://bucket/x", endpoint="http://127.0.0.1:9").read("k")


@pytest.mark.parametrize("prefix", ["s3://", "gs://bucket/x", "http://host/x"])
def test_a_prefix_of_no_known_kind_is_refused(prefix: str) -> None:
    with pytest.raises(BadInput):
        open_store(prefix)


@pytest.mark.parametrize(
    ("start", "stop", "found"),
    [
        (10, 13, [10, 11, 12]),
        (0, 100, range(100)),
        (99, 101, [99]),
        (100, 101, []),
        (5_000, 5_010, []),
        (0, 10**15, range(100)),
    ],
)
def test_some_bytes_of_an_object_are_read_alone(
    store: ObjectStore, start: int, stop: int, found: Sequence[int]
) -> None:
    store.write("k", bytes(range(100)))
    part = store.read_part("k", start, stop)
    assert (part.data, part.size, part.etag) == (bytes(found), 100, next(iter(store.list())).etag)


def test_a_part_of_a_missing_object_is_named(store: ObjectStore) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        store.read_part("nowhere", 0, 1)
