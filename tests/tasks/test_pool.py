"""What filters let through: by time in UTC wherever the machine stands, by metadata that came late, and cheaply."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import BadInput
from models.plans import CampaignPlan, IngestPlan, PoolFilter, SelectionPolicy
from storage import campaigns
from storage.stores import open_stores
from tasks import embedding, ingesting, planning

Draw = Callable[..., Path]

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


def test_a_where_that_holds_a_query_of_its_own_is_refused_by_name(world: Path) -> None:
    for where in ("1=0)) UNION ALL SELECT 99999 WHERE ((1=1", "key IN (SELECT name FROM duckdb_settings())"):
        with pytest.raises(BadInput, match=r"cannot be used|holds a query of its own"):
            planning.plan_run(pool_plan("pool", where))
