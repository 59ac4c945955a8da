"""Parts of a scan are taken up after a kill, never for anything else than what they were made of, and are not left behind."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.errors import BadInput, NotFound
from models.plans import CampaignPlan, IngestPlan, PoolFilter
from models.states import CandidateState
from storage import campaigns
from storage.stores import Stores, open_stores
from tasks import embedding, indexing, ingesting, mining, planning, previewing, scanning
from tasks.compute import scan
from tests.tasks.test_campaigns import candidates, plan

Draw = Callable[..., Path]


def add(world: Path, draw: Draw, name: str, count: int, seed: int) -> None:
    """New images in a corpus that sorts before the pool."""
    folder = world / "images" / "apool"
    folder.mkdir(exist_ok=True)
    for number, file in enumerate(sorted(draw(name, count, seed=seed).glob("*.png"))):
        file.rename(folder / f"{name}-{number:04d}.png")
    ingesting.ingest(IngestPlan(corpus="apool", prefix=str(folder)))
    embedding.embed_shards(embedding.pending_shards("apool", ""), "", 16)


def both(**policy: object) -> CampaignPlan:
    wanted = plan(budget=6, random_share=0, boundary_share=0, **policy)
    return wanted.model_copy(update={"corpora": ["apool", "pool"]})


def parts(world: Path) -> list[Path]:
    return sorted((world / "root" / "scans").rglob("*.safetensors"))


def killed(*_: object) -> None:
    raise RuntimeError("killed")


@pytest.fixture
def grouped(world: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A world whose scans have a part a shard."""
    monkeypatch.setattr(scanning, "GROUP_ROWS", 20)
    add(world, draw, "first", 30, seed=5)
    return world


def test_parts_of_a_killed_run_are_taken_up_and_then_removed(grouped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mining, "_keep", killed)
        with pytest.raises(RuntimeError, match="killed"):
            mining.mine_candidates(planning.plan_run(both()))
    assert len(parts(grouped)) == 2
    with monkeypatch.context() as patch:
        patch.setattr(scan, "best", killed)  # nothing is left to scan
        found = mining.mine_candidates(planning.plan_run(both()))
    assert found.candidates == 6
    assert parts(grouped) == []


def test_a_dry_run_and_a_refused_one_leave_no_parts_behind(grouped: Path) -> None:
    previewing.preview(both(), None)
    with pytest.raises(BadInput, match="nothing is left to choose"):
        previewing.preview(both(min_score=1.0), None)
    with pytest.raises(BadInput, match="nothing is left to choose"):
        mining.mine_candidates(planning.plan_run(both(min_score=1.0)))
    assert parts(grouped) == []


def test_parts_are_of_one_pool_and_one_set_of_probes(
    grouped: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    def order(stores: Stores) -> list[int]:
        drafted = planning.draft(stores, both())
        pool = planning.pool_of(stores, drafted.run)
        aim = mining.probing.aim(stores, drafted.campaign, drafted.run, planning.corpora_of(stores, drafted.run))
        assert aim.scorer is not None
        return [int(row) for row in scanning.ranking(stores, drafted.run, aim.scorer, pool)(20)]

    with open_stores() as stores:
        order(stores)
    stale = parts(grouped)
    assert len(stale) == 2
    add(grouped, draw, "second", 60, seed=6)
    with open_stores() as stores:
        after = order(stores)
        monkeypatch.setattr(scanning, "GROUP_ROWS", 1_000_000)
        assert after == order(stores)  # without parts


def test_masks_and_depths_are_parts_of_their_own(grouped: Path) -> None:
    run_id = planning.plan_run(both())
    with open_stores() as stores:
        run = campaigns.get_run(stores.db, run_id=run_id)
        pool = planning.pool_of(stores, run)
        campaign = campaigns.get_campaign(stores.db, name="c")
        scorer = mining.probing.aim(stores, campaign, run, planning.corpora_of(stores, run)).scorer
        assert scorer is not None
        whole = scanning.ranking(stores, run, scorer, pool)(90)
        assert len(whole) == 90
        assert scanning.ranking(stores, run, scorer, pool)(5).tolist() == whole[:5].tolist()
        masks = [np.arange(len(shard)) % 2 == 0 for shard in pool.shards]
        masked = scanning.ranking(stores, run, scorer, pool._replace(allowed=list(masks)))(90)
        allowed = np.concatenate(masks)
        assert masked.tolist() == [row for row in whole.tolist() if allowed[row]]
        scanning.forget(stores, run)
    mining.mine_candidates(run_id)
    assert len(candidates(run_id)) == 6
    with open_stores() as stores:
        assert campaigns.count_states(stores.db, run_id=run_id) == {CandidateState.UNSORTED: 6}


def test_candidates_of_an_index_are_those_of_the_scan(world: Path) -> None:
    """So few rows have one list, which is searched whole."""
    with pytest.raises(NotFound, match="build it with: dipnet index pool"):
        mining.mine_candidates(planning.plan_run(plan("indexed", scan="index")))
    indexing.build_index(["pool"])
    exact, indexed = (plan(name, scan=name, across_campaigns=False) for name in ("exact", "index"))
    found = [candidates(planning.plan_run(wanted)) for wanted in (exact, indexed) if mined(wanted)]
    assert found[0] == found[1]
    assert len(found[0]) == 10
    filtered = indexed.model_copy(update={"campaign": "light", "pool": PoolFilter(where="tone = 'light'")})
    assert mined(filtered)
    standing = indexed.model_copy(update={"campaign": "standing", "standing": True})
    assert mined(standing)


def mined(wanted: CampaignPlan) -> int:
    return mining.mine_candidates(planning.plan_run(wanted)).candidates
