"""Two embedders on PostgreSQL share the shards of one corpus, as they do on SQLite."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tasks.killed_embedding import Nursery, corpus_of, labels, made, result, strike

SHARDS, OF = 6, 20


def test_two_embedders_share_the_shards_and_a_third_takes_over(
    postgres: str, draw: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPNET_SHARD_SIZE", str(OF))
    folder = draw("pool", SHARDS * OF)
    corpus_of(folder, "pool")
    with Nursery() as nursery:
        with nursery.embedding("pool") as run:
            assert run.outcome()["shards_done"] == SHARDS
        alone = result(made())
        monkeypatch.setenv("DIPNET_DATABASE_URL", postgres)
        corpus_of(folder, "pool")
        assert not made()
        with nursery.embedding("pool") as one, nursery.embedding("pool") as other:
            told = [one.outcome(), other.outcome()]
        assert sum(found["shards_done"] for found in told) == SHARDS
        assert [found["vectors"] for found in told] == [SHARDS * OF] * 2
        assert list(result(made()).values()) == list(alone.values())
        assert set(labels().values()) == {1}
        corpus_of(folder, "again")
        with nursery.embedding("again") as one, nursery.embedding("again") as other:
            while len(made()) <= SHARDS:
                assert one.running()
            strike(one.pid)
            assert other.outcome()["vectors"] == SHARDS * OF
