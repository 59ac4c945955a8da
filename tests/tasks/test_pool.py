"""What filters let through: by time in UTC wherever the machine stands, by metadata that came late, and cheaply."""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.errors import BadInput
from models.plans import CampaignPlan, IngestPlan, PoolFilter, SelectionPolicy
from storage import campaigns, corpora, tables
from storage.stores import open_stores
from tasks import embedding, ingesting, planning, views

Draw = Callable[..., Path]
UTC_TIME = pa.timestamp("us", tz="UTC")

IN_NEW_YORK = """
import sys
from models.plans import PoolFilter
from storage import tables
for rows in (b"a,2026-11-01T00:30:00Z\\nb,2026-11-01T05:30:00Z\\n", b"a,2026-11-01T00:30:00\\nb,2026-11-01T05:30:00\\n",
             b"a,2026-11-01T00:30:00Z\\nb,2026-11-01T00:30:00-05:00\\nc,no time\\n"):
    table = tables.read_metadata(b"file_name,t\\n" + rows, source="here")
    print(*(tables.matching(table, PoolFilter(time_column="t", since=since).condition) for since in sys.argv[1:]))
"""


def test_times_are_utc_in_every_time_zone_unless_an_offset_says_otherwise() -> None:
    asked = ["2026-11-01T01:00", "2026-11-01", "2026-11-01T01:00+05:00", "2026-11-01T00:29-05:00"]
    command = [sys.executable, "-c", IN_NEW_YORK, *asked]
    env = {**os.environ, "TZ": "America/New_York", "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=env).stdout
    assert found.splitlines() == [
        "[1] [0, 1] [0, 1] [1]",
        "[1] [0, 1] [0, 1] [1]",
        "[1] [0, 1] [0, 1] [1]",
    ]


@pytest.mark.parametrize("where", ["true) OR (true", "tone = 'light' --", "((true)", "true /* ) */"])
def test_a_where_cannot_get_out_of_the_time_window_beside_it(where: str) -> None:
    with pytest.raises(BadInput, match="parentheses do not match, or it holds a comment"):
        _ = PoolFilter(where=where, time_column="t", since="2026-11-01").condition
    assert PoolFilter(where="tone = ')' AND \"a--(\" = '('").condition == "(tone = ')' AND \"a--(\" = '(')"


def pool_plan(corpus: str, where: str) -> CampaignPlan:
    policy = SelectionPolicy(budget=5, near_duplicate_cosine=1.0, leak_cosine=1.0)
    return CampaignPlan(campaign="c", issue="light-bar", corpora=[corpus], policy=policy, pool=PoolFilter(where=where))


def test_metadata_that_came_with_a_later_ingest_can_be_filtered_by(world: Path, draw: Draw) -> None:
    folder = draw("late", 20, seed=9)
    (folder / "metadata.csv").unlink()
    ingesting.ingest(IngestPlan(corpus="late", prefix=str(folder)))
    names = [f"new-{number:04d}.png" for number in range(20)]
    for name, file in zip(names, sorted(draw("more", 20, seed=10).glob("*.png")), strict=True):
        file.rename(folder / name)
    (folder / "metadata.csv").write_text("file_name,tone\n" + "".join(f"{name},light\n" for name in names))
    ingesting.ingest(IngestPlan(corpus="late", prefix=str(folder)))
    embedding.embed_shards(embedding.pending_shards("late", ""), "", 16)
    run_id = planning.plan_run(pool_plan("late", "tone = 'light'"))
    with open_stores() as stores:
        pool = planning.pool_of(stores, campaigns.get_run(stores.db, run_id=run_id))
    assert pool.sizes.tolist() == [0, 20]


def test_a_filter_keeps_no_table_of_ids(world: Path) -> None:
    run_id = planning.plan_run(pool_plan("pool", "tone = 'light'"))
    with open_stores() as stores:
        pool = planning.pool_of(stores, campaigns.get_run(stores.db, run_id=run_id))
    assert pool.sizes.tolist() == [30]
    assert not [shard for shard in pool.shards if "ids" in vars(shard)]


def sizes(corpus: str, where: str = "") -> list[int]:
    """How many may be chosen, by shard."""
    run_id = planning.plan_run(pool_plan(corpus, where))
    with open_stores() as stores:
        found: list[int] = planning.pool_of(stores, campaigns.get_run(stores.db, run_id=run_id)).sizes.tolist()
        return found


def test_what_reading_found_of_an_image_can_be_filtered_by(world: Path) -> None:
    days = pa.array([None, *(datetime(2026, 1, 1 + number % 28, tzinfo=UTC) for number in range(59))], UTC_TIME)
    with open_stores() as stores:
        (row,) = corpora.read_shards(stores.db, corpus_id=corpora.get_corpus(stores.db, name="pool").id or 0)
        read = tables.read(stores.objects, row.read_key, row.read_sha256)
        there = [name for name in ("taken_at",) if name in read.column_names]
        table = read.drop_columns(there).append_column("taken_at", days)
        row.read_sha256 = stores.objects.write(row.read_key, tables.to_bytes(table))
    assert sizes("pool", "width = 28 AND height >= 28") == [60]
    with pytest.raises(BadInput, match="no image of the pool meets the filter"):
        sizes("pool", "width > 28")
    assert sizes("pool", "taken_at > '2026-01-20' AND tone = 'light'") == [8]
    assert sizes("pool", "taken_at IS NULL OR taken_at < '2026-01-05'") == [12]
    assert {"tone", "width", "height", "taken_at"} < set(views.corpus_record("pool")["columns"])


def test_a_column_that_a_person_named_like_ours_is_theirs(world: Path, draw: Draw) -> None:
    folder = draw("own", 10, seed=9)
    (folder / "metadata.csv").write_text("file_name,width\n" + "".join(f"{n:04d}.png,{n}\n" for n in range(10)))
    ingesting.ingest(IngestPlan(corpus="own", prefix=str(folder)))
    embedding.embed_shards(embedding.pending_shards("own", ""), "", 16)
    assert sizes("own", "width >= 4 AND height = 28") == [6]


def test_what_vanished_is_chosen_no_more_until_it_is_back(world: Path) -> None:
    folder, plan = world / "images" / "pool", IngestPlan(corpus="pool", prefix=str(world / "images" / "pool"))
    moved = [(folder / f"{number:04d}.png", world / f"{number}.png") for number in (1, 2, 5)]
    for file, away in moved:
        file.rename(away)
    assert ingesting.ingest(plan).vanished == 3
    assert sizes("pool") == [57]
    assert sizes("pool", "tone = 'light'") == [29]
    run_id = planning.plan_run(pool_plan("pool", ""))
    with open_stores() as stores:
        pool = planning.pool_of(stores, campaigns.get_run(stores.db, run_id=run_id))
        gone = np.asarray([1, 2, 5])
        assert pool.allows(np.arange(60)).tolist() == [row not in gone for row in range(60)]
        assert set(pool.draw(60, seed=0).tolist()) == set(range(60)) - set(gone.tolist())
    for file, away in moved:
        away.rename(file)
    assert ingesting.ingest(plan).vanished == 0
    assert sizes("pool") == [60]


def test_a_where_that_holds_a_query_of_its_own_is_refused_by_name(world: Path) -> None:
    for where in ("1=0)) UNION ALL SELECT 99999 WHERE ((1=1", "key IN (SELECT name FROM duckdb_settings())"):
        with pytest.raises(BadInput, match=r"cannot be used|holds a query of its own"):
            planning.plan_run(pool_plan("pool", where))
