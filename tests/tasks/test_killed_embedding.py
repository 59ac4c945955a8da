"""Embedding that is killed, shared or mended: the set is what an undisturbed run gives, and each shard is made once."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.corpus import embed_corpus
from models.plans import EmbedPlan
from tests.tasks.killed_embedding import (
    Nursery,
    Run,
    campaign,
    corpus_of,
    gone,
    labels,
    made,
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
