"""Vectors are mapped while they are held, checked once, and those of S3 pass through a folder that stays small."""

import gc
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from models.corpus import EmbeddedShard
from models.errors import CorruptData, NotFound
from models.settings import load_settings
from storage import cache as caches
from storage import vectors
from storage.cache import Cache
from storage.objects import ObjectStore, open_store
from storage.stores import open_stores

DIM, ROWS = 8, 100


@pytest.fixture
def bucket(s3_endpoint: str, tmp_path: Path) -> ObjectStore:
    return open_store(f"s3://bucket/{tmp_path.name}", endpoint=s3_endpoint)


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", limit=1_000_000)


def shard(store: ObjectStore, cache: Cache, number: int = 0) -> vectors.VectorShard:
    data = vectors.npy_bytes(np.full((ROWS, DIM), number, np.float16))
    row = EmbeddedShard(
        embedding_set_id=1, shard_id=number, read_key="", vectors_key=f"{number}.npy", ids_key="",
        vectors_sha256=store.write(f"{number}.npy", data), ids_sha256="", readable=ROWS,
    )  # fmt: skip
    return vectors.VectorShard(store, row, DIM, cache)


def held_files(cache: Cache) -> list[Path]:
    return [path for path in cache.folder.iterdir() if path.name != caches.SIDECAR]


def count_hashing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were read to check them."""
    read: list[str] = []
    true_digest = hashlib.file_digest

    def digest(handle, kind):  # type: ignore[no-untyped-def]
        read.append(handle.name)
        return true_digest(handle, kind)

    monkeypatch.setattr("storage.cache.hashlib.file_digest", digest)
    return read


@pytest.mark.parametrize("root", ["folder", "bucket"])
def test_a_shard_is_mapped_while_somebody_holds_its_vectors(
    root: str, cache: Cache, request: pytest.FixtureRequest
) -> None:
    one = shard(request.getfixturevalue(root), cache, 3)
    held = one.vectors
    assert isinstance(held, np.memmap)
    assert one.vectors is held
    assert (held == 3).all()
    number = id(held)
    del held
    gc.collect()
    assert one._mapped[0]() is None, number


def test_files_of_s3_are_evicted_least_recently_used_first_and_what_is_mapped_stays_readable(
    bucket: ObjectStore, tmp_path: Path
) -> None:
    size = len(vectors.npy_bytes(np.zeros((ROWS, DIM), np.float16)))
    cache = Cache(tmp_path / "cache", limit=3 * size)
    shards = [shard(bucket, cache, number) for number in range(6)]
    held = []
    for number in (0, 1, 2):
        held.append(shards[number].vectors)
        assert held[-1][0, 0] == number
    del held[0]
    assert shards[0].vectors[0, 0] == 0  # used again: 1 is now the oldest
    held += [shards[number].vectors for number in (3, 4)]
    assert len(held_files(cache)) == 3
    kept = {int(np.load(path)[0, 0]) for path in held_files(cache)}
    assert kept == {0, 3, 4}
    assert [int(rows[-1, -1]) for rows in held] == [1, 2, 3, 4]


def test_an_object_larger_than_the_cache_is_still_usable(bucket: ObjectStore, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit=0)
    for number in (0, 1):
        assert shard(bucket, cache, number).vectors[0, 0] == number
    assert len(held_files(cache)) == 1


def test_bytes_are_hashed_when_they_enter_the_cache_and_not_again(
    bucket: ObjectStore, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count_hashing(monkeypatch)
    one = shard(bucket, cache)
    for _ in range(2):
        assert (one.vectors == 0).all()
    assert (shard(bucket, Cache(cache.folder, cache.limit)).vectors == 0).all()  # another process would do the same
    assert len(read) == 1


def test_files_of_a_directory_are_hashed_once_until_they_change(
    folder: ObjectStore, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count_hashing(monkeypatch)
    one = shard(folder, cache)
    path = Path(folder.uri("0.npy"))
    os.utime(path, ns=(0, 10**18))
    for _ in range(3):
        assert (one.vectors == 0).all()
    again = vectors.VectorShard(folder, one.row, DIM, Cache(cache.folder, cache.limit))
    assert (again.vectors == 0).all()
    assert len(read) == 1
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptData, match="checksum differs"):
        _ = again.vectors


def test_a_file_changed_within_a_tick_of_the_clock_is_not_believed(folder: ObjectStore, cache: Cache) -> None:
    one = shard(folder, cache)
    path = Path(folder.uri("0.npy"))
    stamp = path.stat().st_mtime_ns
    assert (one.vectors == 0).all()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stamp, stamp))
    with pytest.raises(CorruptData, match="checksum differs"):
        _ = one.vectors


def test_a_key_written_anew_is_fetched_anew(bucket: ObjectStore, cache: Cache) -> None:
    one = shard(bucket, cache)
    assert one.vectors[0, 0] == 0
    other = vectors.npy_bytes(np.full((ROWS, DIM), 9, np.float16))
    row = one.row.model_copy(update={"vectors_sha256": bucket.write("0.npy", other)})
    assert vectors.VectorShard(bucket, row, DIM, cache).vectors[0, 0] == 9
    bucket.write("0.npy", b"spoilt")
    lost = row.model_copy(update={"vectors_sha256": "0" * 64})
    with pytest.raises(CorruptData, match="checksum differs"):
        _ = vectors.VectorShard(bucket, lost, DIM, cache).vectors


@pytest.mark.parametrize("root", ["folder", "bucket"])
def test_vectors_that_are_gone_or_of_another_shape_are_told(
    root: str, cache: Cache, request: pytest.FixtureRequest
) -> None:
    one = shard(request.getfixturevalue(root), cache)
    with pytest.raises(CorruptData, match="shape"):
        _ = vectors.VectorShard(one.store, one.row, DIM + 1, cache).vectors
    gone = one.row.model_copy(update={"vectors_key": "gone.npy"})
    with pytest.raises(NotFound):
        _ = vectors.VectorShard(one.store, gone, DIM, cache).vectors


def test_a_download_that_breaks_leaves_nothing_behind(
    bucket: ObjectStore, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.errors import Unavailable

    one = shard(bucket, cache)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("storage.objects.os.fsync", full)
        with pytest.raises(Unavailable, match="No space left"):
            _ = one.vectors
    assert not held_files(cache)
    assert (one.vectors == 0).all()


def test_a_cache_that_cannot_be_written_to_forgets_nothing_but_its_checks(folder: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert (shard(folder, Cache(tmp_path / "file" / "cache", 0)).vectors == 0).all()


def test_what_was_verified_is_kept_small(folder: ObjectStore, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "SIDECAR_BYTES", 10 * caches.LINE_BYTES)
    for number in range(25):
        one = shard(folder, cache, number)
        os.utime(folder.uri(f"{number}.npy"), ns=(0, 10**18))
        assert one.vectors[0, 0] == number
    lines = (cache.folder / caches.SIDECAR).read_text().split()
    assert 5 <= len(lines) <= 10
    assert {len(line) for line in lines} == {64}


def test_a_file_evicted_before_it_was_opened_is_fetched_again(bucket: ObjectStore, cache: Cache) -> None:
    one, tries = shard(bucket, cache), []

    def opened(path: Path) -> bytes:
        tries.append(path)
        if len(tries) == 1:
            path.unlink()  # another process
        return path.read_bytes()

    assert cache.use(bucket, "0.npy", one.row.vectors_sha256, opened)
    assert len(tries) == 2


def test_many_threads_and_a_process_share_a_cache_too_small_for_them(
    bucket: ObjectStore, s3_endpoint: str, tmp_path: Path
) -> None:
    size = len(vectors.npy_bytes(np.zeros((ROWS, DIM), np.float16)))
    cache = Cache(tmp_path / "cache", limit=4 * size)
    shards = [shard(bucket, cache, number) for number in range(12)]
    checks = [one.row.vectors_sha256 for one in shards]
    program = f"""
import sys, numpy as np
from pathlib import Path
from storage.cache import Cache
from storage.objects import open_store
store, cache = open_store({bucket.prefix!r}, endpoint={s3_endpoint!r}), Cache(Path({str(cache.folder)!r}), {4 * size})
for number in list(range(12)) * 2:
    found = cache.use(store, f"{{number}}.npy", {checks!r}[number], lambda path: np.load(path, mmap_mode="r"))
    assert (found == number).all()
"""
    other = subprocess.Popen([sys.executable, "-c", program], cwd=Path(vectors.__file__).parents[1])
    wrong: list[BaseException] = []

    def go_through(step: int) -> None:
        try:
            for number in range(0, 12 * step, step):
                assert (shards[number % 12].vectors == number % 12).all()
        except BaseException as problem:  # noqa: BLE001
            wrong.append(problem)

    threads = [threading.Thread(target=go_through, args=(step,)) for step in (1, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait(60) == 0
    assert not wrong
    assert len(held_files(cache)) <= 4 + 4  # a file of each that was fetched while another evicted


def test_the_room_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().cache_bytes == 20_000_000_000
    monkeypatch.setenv("DIPNET_CACHE_BYTES", "5")
    with open_stores() as stores:
        assert stores.cache.limit == 5
