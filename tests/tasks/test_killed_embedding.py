"""Embedding that is killed, shared or mended: the set is what an undisturbed run gives, and each shard is made once."""

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlmodel import select

from flows.corpus import embed_corpus
from models.corpus import EmbeddedShard
from models.plans import EmbedPlan
from storage import tables, vectors
from storage.objects import verified
from storage.stores import open_stores
from tests.tasks.killed_embedding import (
    Nursery,
    Rows,
    Run,
    campaign,
    corpus_of,
    gone,
    labels,
    made,
    ray_campaign,
    redone,
    strike,
    undisturbed,
)

SHARDS, OF = 8, 30
PLAN = EmbedPlan(corpora=["pool"])


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def pool(draw: Callable[..., Path], house: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a corpus of eight shards, in which two images cannot be read."""
    monkeypatch.setenv("DIPNET_SHARD_SIZE", str(OF))
    folder = draw("pool", SHARDS * OF, seed=3)
    (folder / "0007.png").write_bytes(b"")
    (folder / "0100.png").write_bytes((folder / "0101.png").read_bytes()[:300])
    corpus_of(folder, "pool")
    return folder


def until(run: Run, shards: int) -> None:
    """Wait for so many shards."""
    deadline = time.monotonic() + 120
    while len(made()) < shards:
        assert run.running() and time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_and_run_again_it_goes_on_where_it_was(pool: Path, nursery: Nursery) -> None:
    with nursery.embedding("pool") as run:
        until(run, 2)
        strike(run.pid)
        run.wait()
        assert gone(run)
    before = made()
    assert len(before) >= 2
    (told,) = embed_corpus.fn(PLAN)
    assert told.shards_done == SHARDS - len(before)
    assert told.vectors == SHARDS * OF - 2
    assert not redone(before)
    assert set(labels().values()) == {1}


def test_two_embedders_share_the_shards_and_make_each_once(pool: Path, nursery: Nursery, scratch: Path) -> None:
    whole = undisturbed(nursery, "pool", scratch)
    with nursery.embedding("pool") as one, nursery.embedding("pool") as other:
        told = [one.outcome(), other.outcome()]
    assert sum(found["shards_done"] for found in told) == SHARDS == len(made())
    assert [found["vectors"] for found in told] == [SHARDS * OF - 2] * 2
    assert not whole.differs()


def test_the_last_of_two_embedders_takes_over_what_a_killed_one_had(pool: Path, nursery: Nursery) -> None:
    with nursery.embedding("pool") as one, nursery.embedding("pool") as other:
        until(one, 1)
        strike(one.pid)
        assert other.outcome()["vectors"] == SHARDS * OF - 2
    assert set(labels().values()) == {1}


@pytest.mark.kills
def test_killed_twenty_times_at_random_instants_it_gives_the_same(pool: Path, nursery: Nursery, scratch: Path) -> None:
    found = campaign(nursery, "pool", scratch, 20, ["group", "parent", "worker"])
    assert not found.wrong
    assert found.kills.total() == 20
    assert set(labels().values()) == {1}


@pytest.mark.kills
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: uv sync --extra ray")
def test_with_five_workers_of_ray_killed_it_gives_the_same(pool: Path, nursery: Nursery, scratch: Path) -> None:
    found = ray_campaign(nursery, "pool", scratch, 5)
    assert not found.wrong
    assert found.kills.total() == 5


def vectors_of() -> dict[str, bytes]:
    """The vector of each image, by its name."""
    with open_stores() as stores:
        found = {}
        for row in stores.db.exec(select(EmbeddedShard)).all():
            ids = tables.read(stores.objects, row.ids_key, row.ids_sha256)
            rows = vectors.from_npy(verified(stores.objects, row.vectors_key, row.vectors_sha256))
            names = [Path(uri).name for uri in ids.column("uri").to_pylist()]
            found |= {name: vector.tobytes() for name, vector in zip(names, rows, strict=True)}
        return found


def test_images_that_are_mended_get_vectors_on_request_and_others_keep_theirs(pool: Path, nursery: Nursery) -> None:
    away = [pool / f"{number:04d}.png" for number in (3, 31, 32, 200)]
    for file in away:
        file.rename(file.with_suffix(".away"))
    (told,) = embed_corpus.fn(PLAN)
    assert told.quarantined == {"missing": 4, "empty file": 1, "truncated or corrupt": 1}
    before, rows = vectors_of(), made()
    for file in away:
        file.with_suffix(".away").rename(file)  # its time of modification is as it was listed
    with nursery.embedding("pool", "--retry") as run:  # killed before, while or after one of three shards is mended
        until_other(run, rows)
        strike(run.pid)
        run.wait()
    while_mending = vectors_of()
    assert before.items() <= while_mending.items()
    (told,) = embed_corpus.fn(PLAN.model_copy(update={"retry": True}))
    after = vectors_of()
    assert told.quarantined == {"empty file": 1, "truncated or corrupt": 1}
    assert before.items() <= after.items()
    assert sorted(after.keys() - before.keys()) == [file.name for file in away]
    assert set(labels().values()) == {1} and len(labels()) == SHARDS * OF - 2
    untouched = [shard for shard in rows if shard not in (1, 2, 4, 7)]
    assert {shard: made()[shard] for shard in untouched} == {shard: rows[shard] for shard in untouched}


def until_other(run: Run, rows: Rows) -> None:
    """Wait until a shard is another one."""
    deadline = time.monotonic() + 120
    while made() == rows:
        assert run.running() and time.monotonic() < deadline
        time.sleep(0.01)
