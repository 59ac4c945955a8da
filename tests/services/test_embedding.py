"""Embedding beside real servers: PostgreSQL, which two embedders share, and Prefect, which sees what Ray does."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from flows.corpus import embed_corpus
from models.plans import EmbedPlan
from tests.tasks.killed_embedding import Nursery, corpus_of, labels, made, result

SHARDS, OF = 6, 20


def test_two_embedders_share_the_shards_and_make_what_one_alone_makes(
    postgres: str, draw: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPNET_SHARD_SIZE", str(OF))
    folder = draw("pool", SHARDS * OF)
    corpus_of(folder, "pool")
    with Nursery() as nursery:
        with nursery.embedding("pool") as run:
            assert run.outcome()["shards_done"] == SHARDS
        alone = result(made())
        with psycopg.connect(postgres, autocommit=True) as server:  # other tests have used the one that is there
            server.execute("CREATE DATABASE embedding")
        monkeypatch.setenv("DIPNET_DATABASE_URL", postgres.replace("/postgres?", "/embedding?"))
        corpus_of(folder, "pool")
        assert not made()
        with nursery.embedding("pool") as one, nursery.embedding("pool") as other:
            told = [one.outcome(), other.outcome()]
        assert sum(found["shards_done"] for found in told) == SHARDS
        assert [found["vectors"] for found in told] == [SHARDS * OF] * 2
        assert sorted(result(made()).values()) == sorted(alone.values())  # who is done first is chance
        assert set(labels().values()) == {1}


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: uv sync --extra ray")
def test_on_ray_a_group_of_shards_is_a_task_run(
    prefect_server: None, draw: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPNET_SHARD_SIZE", "20")
    corpus_of(draw("pool", 60), "pool")
    state = embed_corpus(EmbedPlan(corpora=["pool"], runner="ray"), return_state=True)
    (told,) = state.result()
    assert (told.shards_done, told.vectors) == (3, 60)
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        names = [run.name.rpartition("-")[0] for run in client.read_task_runs(flow_run_filter=wanted)]
    assert sorted(names) == ["count_embedded", *["embed_shards_on_ray"] * 3, "pending_shards"]
