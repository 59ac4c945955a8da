"""An index is built once for the vectors there are, goes on after a kill, tells its recall, and finds what a scan finds."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.corpus import Corpus, EmbeddedShard, EmbeddingSet, EncoderSpec, Shard
from models.errors import BadInput, CorruptData, Incompatible, NotFound
from storage import vectors
from storage.stores import open_stores
from tasks import indexing
from tasks.compute import index, scan

DIM, ENCODER = 16, "tiny/one"


def clustered(count: int, seed: int) -> NDArray[np.float16]:
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(20, DIM))
    rows = centres[generator.integers(0, 20, count)] + 0.4 * generator.normal(size=(count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def add_shard(corpus: str, number: int, rows: NDArray[np.float16]) -> None:
    """A shard of a corpus with its vectors, as embedding leaves it."""
    with open_stores() as stores:
        found = indexing.corpora.find_corpus(stores.db, name=corpus) or Corpus(name=corpus, prefix="nowhere")
        encoder = indexing.corpora.find_encoder(stores.db, key="k" * 64) or EncoderSpec(
            key="k" * 64, name=ENCODER, dim=DIM, weights_sha256="", preprocessing=""
        )
        stores.db.add_all([found, encoder])
        stores.db.flush()
        held = indexing.corpora.embedding_set(stores.db, corpus_id=found.id or 0, encoder_id=encoder.id or 0)
        assert isinstance(held, EmbeddingSet)
        shard = Shard(
            corpus_id=found.id or 0, number=number, key=f"{number:064d}", images=len(rows), manifest_key="",
            manifest_sha256="",
        )  # fmt: skip
        stores.db.add(shard)
        stores.db.flush()
        read_key, vectors_key, ids_key = vectors.keys(corpus, encoder.key, shard, read_sha256="", vectors_sha256="")
        stores.db.add(
            EmbeddedShard(
                embedding_set_id=held.id or 0, shard_id=shard.id or 0, read_key=read_key, vectors_key=vectors_key,
                ids_key=ids_key, ids_sha256="", readable=len(rows),
                vectors_sha256=stores.objects.write(vectors_key, vectors.npy_bytes(rows)),
            )
        )  # fmt: skip


@pytest.fixture
def pool(house: Path) -> NDArray[np.float16]:
    """A corpus of five shards, one of them empty; its rows."""
    house.mkdir(parents=True, exist_ok=True)
    sizes = [700, 900, 0, 800, 600]
    parts = [clustered(size, seed) for seed, size in enumerate(sizes)]
    for number, rows in enumerate(parts):
        add_shard("pool", number, rows)
    return np.concatenate(parts)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "PART_ROWS", 1_000)
    monkeypatch.setattr(indexing, "QUERIES", 40)


def kept(house: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (house / "indexes").rglob("*") if path.is_file()}


def test_an_index_finds_what_a_scan_finds_and_tells_its_recall(house: Path, pool: NDArray[np.float16]) -> None:
    report = indexing.build_index(["pool"], ENCODER)
    assert report.vectors == len(pool) == 3_000
    assert report.recall > 0.94
    assert report.recall_low <= report.recall <= report.recall_high
    assert sorted(kept(house)) == ["index.faiss", "lists.ivfdata", "report.json"]
    probes = pool[[3, 2_999]].astype(np.float32)
    with open_stores() as stores:
        found = indexing.open_index(stores, ["pool"], ENCODER).search(probes, keep=10)
    expected = scan.best(probes, [pool], keep=10)
    assert len(set(found.rows.tolist()) & set(expected.rows.tolist())) >= 9
    assert found.rows[0] == expected.rows[0]


def test_building_twice_builds_once(house: Path, pool: NDArray[np.float16], monkeypatch: pytest.MonkeyPatch) -> None:
    first = indexing.build_index(["pool"], ENCODER)
    monkeypatch.setattr(indexing, "_build", None)
    assert indexing.build_index(["pool", "pool"], ENCODER) == first


class Killed(BaseException):
    """Not an error that anybody catches."""


def kills() -> Iterator[tuple[str, int]]:
    yield from (("train", 0), ("fill", 0), ("fill", 1), ("merge", 0), ("tune", 0), ("mean_recall", 0))


@pytest.mark.parametrize(("function", "times"), list(kills()))
def test_a_build_that_was_killed_goes_on_and_comes_out_the_same(
    function: str, times: int, house: Path, pool: NDArray[np.float16], monkeypatch: pytest.MonkeyPatch
) -> None:
    true, left = getattr(index, function), [times]

    def dying(*args: object, **kwargs: object) -> object:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return true(*args, **kwargs)

    with monkeypatch.context() as broken:
        broken.setattr(index, function, dying)
        with pytest.raises(Killed):
            indexing.build_index(["pool"], ENCODER)
    assert "report.json" not in kept(house)
    with open_stores() as stores, pytest.raises(NotFound, match="dipnet index pool"):
        indexing.open_index(stores, ["pool"], ENCODER)
    made = {name for name in kept(house) if name != "index.faiss"}

    redone = [0]

    def counted(*args: object, **kwargs: object) -> object:
        redone[0] += 1
        return true(*args, **kwargs)

    if function == "fill":
        monkeypatch.setattr(index, "fill", counted)
    after = indexing.build_index(["pool"], ENCODER)
    assert "trained.faiss" in made or function == "train"
    if function == "fill":
        assert redone[0] == 2 - times  # parts of 1,000 rows and more
    straight = house.parent / "straight"
    (house / "indexes").rename(straight)
    again = indexing.build_index(["pool"], ENCODER)
    vague = {"seconds", "index_sha256"}  # the header names the folder that the lists were merged in
    assert after.model_dump(exclude=vague) == again.model_dump(exclude=vague)


def test_a_corpus_that_grew_needs_an_index_of_its_own(house: Path, pool: NDArray[np.float16]) -> None:
    first = indexing.build_index(["pool"], ENCODER)
    add_shard("pool", 5, clustered(300, 9))
    with open_stores() as stores, pytest.raises(NotFound, match="as they are now"):
        indexing.open_index(stores, ["pool"], ENCODER)
    assert indexing.build_index(["pool"], ENCODER).vectors == first.vectors + 300


def test_several_corpora_make_one_index(pool: NDArray[np.float16]) -> None:
    add_shard("other", 0, clustered(50, 8))
    report = indexing.build_index(["pool", "other"], ENCODER)
    assert (report.corpora, report.vectors) == (["other", "pool"], 3_050)


def test_an_index_that_was_changed_on_disk_is_refused(house: Path, pool: NDArray[np.float16]) -> None:
    indexing.build_index(["pool"], ENCODER)
    file = next((house / "indexes").rglob(index.LISTS))
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(bytes(data))
    with open_stores() as stores, pytest.raises(CorruptData, match="index cannot be used"):
        indexing.open_index(stores, ["pool"], ENCODER)


def test_what_cannot_be_indexed_is_told(pool: NDArray[np.float16]) -> None:
    with pytest.raises(BadInput, match="name it"):
        indexing.build_index([], ENCODER)
    with pytest.raises(NotFound, match="no vectors of encoder"):
        indexing.build_index(["pool"], "other/encoder")
    add_shard("empty", 0, clustered(0, 0))
    with pytest.raises(BadInput, match="no readable image"):
        indexing.build_index(["empty"], ENCODER)
    with open_stores() as stores:
        stores.db.add(Corpus(name="bare", prefix="nowhere"))
    with pytest.raises(Incompatible, match="no vectors yet"):
        indexing.build_index(["bare"], ENCODER)


def test_an_index_in_s3_is_opened_through_the_cache(
    pool: NDArray[np.float16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        endpoint = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="bucket")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("DIPNET_DATABASE_URL", f"sqlite:///{tmp_path / 's3.db'}")
        monkeypatch.setenv("DIPNET_ROOT", "s3://bucket/root")
        monkeypatch.setenv("DIPNET_S3_ENDPOINT", endpoint)
        monkeypatch.setenv("DIPNET_CACHE_BYTES", "30000")  # less than any two files
        add_shard("pool", 0, pool[:1_500])
        add_shard("pool", 1, pool[1_500:])
        assert indexing.build_index(["pool"], ENCODER).recall > 0.94
        with open_stores() as stores:
            opened = indexing.open_index(stores, ["pool"], ENCODER)
            found = opened.search(pool[7:8].astype(np.float32), keep=3)
            assert found.rows[0] == 7
            names = {item.key.rsplit("/", 1)[-1] for item in stores.objects.list("indexes")}
        assert names == {"index.faiss", "lists.ivfdata", "report.json"}
        held = [path for path in (tmp_path / "home" / "dipnet").iterdir() if path.name != "verified"]
        assert len(held) <= 2
    finally:
        server.stop()
