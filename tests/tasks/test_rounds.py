"""A campaign never wedges, never loses work that was begun, and never spends more than its budget."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.campaign import continue_campaigns, run_campaign
from models.campaign import CampaignRun
from models.errors import BadInput
from models.plans import ContinuePlan, IngestPlan, PoolFilter
from models.states import CampaignState, CandidateState, RunState
from storage import campaigns, corpora, labels
from storage.stores import open_stores
from tasks import choosing, embedding, ingesting, mining, planning, previewing, progress, routing, searching
from tests.tasks.test_campaigns import answer, candidates, go, grow, plan

Draw = Callable[..., Path]
CHOSEN_BY_SCORE = {"random_share": 0, "boundary_share": 0}


def runs(campaign_id: int = 1) -> list[CampaignRun]:
    with open_stores() as stores:
        return list(campaigns.runs_of(stores.db, campaign_id=campaign_id))


def states() -> list[tuple[int, int, str]]:
    return [(run.series, run.round, run.state.value) for run in runs()]


def to_continue() -> list[str]:
    return [one.campaign for one in planning.plans_to_continue([])]


def take_up(world: Path) -> None:
    """Ingest and embed what lies in the pool's folder now."""
    ingesting.ingest(IngestPlan(corpus="pool", prefix=str(world / "images" / "pool")))
    embedding.embed_shards(embedding.pending_shards("pool", ""), "", 16)


def add_noise(world: Path, count: int) -> None:
    generator = np.random.default_rng(1)
    for number in range(count):
        pixels = generator.integers(0, 30, (28, 28)).astype(np.uint8)
        Image.fromarray(pixels).save(world / "images" / "pool" / f"noise-{number}.png")
    take_up(world)


def add_bars(world: Path, draw: Draw) -> None:
    """Twelve light bars, all of them hits."""
    for number, file in enumerate(sorted(draw("burst", 48, seed=77).glob("*.png"))):
        if number % 4 == 3:
            file.rename(world / "images" / "pool" / f"burst-{number:04d}.png")
    take_up(world)


def test_a_round_that_finds_nothing_closes_and_the_campaign_goes_on_with_what_is_new(world: Path, draw: Draw) -> None:
    wanted = plan(budget=10, rounds=2, standing=True)
    for _ in range(2):
        go(wanted)
        answer()
    grow(world, draw, 4)
    go(wanted)
    answer()
    outcome = run_campaign.fn(wanted)
    assert (outcome.mined.candidates, outcome.sent) == (0, None)
    assert outcome.mined.excluded == {"decided in this campaign": 4}
    assert outcome.status.endswith(
        "found nothing to choose (4 decided in this campaign); it stands until there are new shards"
    )
    assert run_campaign.fn(wanted) == outcome
    assert not to_continue()
    with pytest.raises(BadInput, match="found nothing to choose, so there is nothing to send"):
        routing.prepare_batch(outcome.mined.run_id, wanted)
    with open_stores() as stores:
        assert labels.find_batch(stores.db, run_id=outcome.mined.run_id) is None
    for number, file in enumerate(sorted(draw("later", 20, seed=99).glob("*.png"))):
        file.rename(world / "images" / "pool" / f"zz-{number:04d}.png")
    take_up(world)
    assert to_continue() == ["c"]
    assert [one.status for one in continue_campaigns.fn(ContinuePlan())] == ["round 1 of 2 waits for labels"]
    assert states()[2:] == [(2, 1, "labelled"), (2, 2, "empty"), (3, 1, "sent")]
    assert len(progress.progress("c").rounds) == 5


@pytest.mark.parametrize("pool", [PoolFilter(), PoolFilter(where="tone = 'light'")])
def test_a_standing_campaign_passes_over_a_shard_with_nothing_in_it(world: Path, draw: Draw, pool: PoolFilter) -> None:
    wanted = plan(budget=6, standing=True, min_score=0.6, pool=pool, **CHOSEN_BY_SCORE)
    go(wanted)
    answer()
    add_noise(world, 6)
    assert candidates(go(wanted)) == []
    assert runs()[-1].excluded == ({} if pool.where else {"below the least score": 6})
    add_bars(world, draw)
    assert runs()[-1].state is RunState.EMPTY
    if not pool.where:  # what is added later has no metadata
        assert len(candidates(go(wanted))) > 1
        assert runs()[-1].scanned == 12


def test_a_first_round_that_is_refused_leaves_nothing_in_the_way_of_the_same_plan(world: Path, draw: Draw) -> None:
    go(plan("all", budget=60))
    wanted = plan()
    with pytest.raises(BadInput, match="nothing is left to choose in pool: 60 sent by another campaign"):
        go(wanted)
    assert runs(campaign_id=2) == []
    assert not to_continue()
    grow(world, draw, 12)
    assert len(candidates(go(wanted))) == 10


def test_what_a_plan_refuses_does_not_bar_another_setting(world: Path) -> None:
    planning.plan_run(plan(budget=6, standing=True))  # killed before it was mined
    run_id = go(plan(budget=7, standing=True))
    assert len(candidates(run_id)) == 7
    assert len(runs()) == 1


def test_hits_in_a_new_shard_score_like_those_of_before(world: Path, draw: Draw) -> None:
    wanted = plan(budget=6, standing=True, **CHOSEN_BY_SCORE)
    first = [score for _, _, score in candidates(go(wanted))]
    add_bars(world, draw)
    second = [score for _, _, score in candidates(go(wanted))]
    assert runs()[-1].scanned == 12
    assert np.median(second) == pytest.approx(np.median(first), abs=0.1)


def test_another_filter_scores_all_again(world: Path) -> None:
    go(plan(budget=6, standing=True, pool=PoolFilter(where="tone = 'light'")))
    answer()
    go(plan(budget=6, standing=True, pool=PoolFilter(where="tone = 'dark'")))
    answer()
    assert [run.scanned for run in runs()] == [30, 30]
    before = go(plan(budget=8, standing=True, pool=PoolFilter(where="tone = 'dark'")))
    assert before == runs()[-1].id
    assert len(runs()) == 2


def test_another_strategy_scores_all_again_and_another_budget_does_not(world: Path) -> None:
    for changed in ({}, {"budget": 8}, {"strategy": "nearest"}, {"diversity": 0.5, "strategy": "nearest"}):
        go(plan(standing=True, **{"budget": 6, **changed}))
        answer()
    assert [(run.series, run.policy["strategy"], run.scanned) for run in runs()] == [
        (1, "probe", 60),
        (2, "nearest", 60),
    ]


def test_what_was_collected_is_none_of_the_rounds(world: Path) -> None:
    run_id = go(plan())
    with open_stores() as stores:
        run = campaigns.get_run(stores.db, run_id=run_id)
        beside = {"id": None, "key": "k" * 64, "plan_key": "k" * 64, "state": RunState.MINED}
        stores.db.add(CampaignRun(**{**run.model_dump(), **beside}))
    assert not to_continue()
    assert go(plan()) == run_id
    assert [run.state for run in runs()] == [RunState.SENT, RunState.MINED]


def test_a_killed_run_keeps_the_shards_that_it_was_planned_on(world: Path, draw: Draw) -> None:
    wanted = plan(budget=6, standing=True)
    run_id = planning.plan_run(wanted)
    grow(world, draw, 12)
    assert go(wanted) == run_id
    go(wanted)
    assert [run.scanned for run in runs()] == [60, 12]


@pytest.mark.parametrize("standing", [True, False])
def test_a_run_that_was_mined_is_sent_before_anything_new_begins(world: Path, draw: Draw, standing: bool) -> None:
    run_id = planning.plan_run(plan(budget=6, standing=standing))
    mining.mine_candidates(run_id)  # killed before it was sent
    grow(world, draw, 12)
    assert to_continue() == ["c"]
    assert go(plan(budget=8, standing=standing)) == run_id
    answer()
    assert states() == [(1, 1, "labelled")]
    assert go(plan(budget=8, standing=standing)) != run_id
    assert len(candidates(runs()[-1].id or 0)) == (8 if standing else 2)


def test_a_stopped_campaign_sends_nothing(world: Path) -> None:
    wanted = plan()
    run_id = planning.plan_run(wanted)
    mining.mine_candidates(run_id)
    batch_id = routing.prepare_batch(run_id, wanted)  # the labeller was down
    planning.set_state("c", CampaignState.STOPPED, "by hand")
    for again in (
        lambda: run_campaign.fn(wanted),
        lambda: routing.send_batch(batch_id),
        lambda: routing.prepare_batch(run_id, wanted),
    ):
        with pytest.raises(
            BadInput, match=r"'c' has stopped \(by hand\); take it up again with: dipnet campaign resume c"
        ):
            again()
    assert states() == [(1, 1, "mined")]
    planning.set_state("c", CampaignState.ACTIVE, "")
    assert go(wanted) == run_id
    assert states() == [(1, 1, "sent")]


def test_an_exemplar_that_is_added_on_the_way_costs_no_second_budget(world: Path) -> None:
    wanted = plan(budget=20, rounds=4)
    go(wanted)
    answer()
    searching.add_exemplars("light-bar", [world / "images" / "dev" / "0015.png"], positive=True)
    assert to_continue() == ["c"]
    for _ in range(6):
        go(wanted)
        answer()
    assert [(run.round, run.issue_version) for run in runs()] == [(1, 1), (2, 2), (3, 2), (4, 2)]
    assert progress.progress("c").labels == 20
    assert planning.stands(wanted) == "its budget is spent and labelled"


def test_a_budget_is_spent_once_unless_it_is_raised(world: Path, draw: Draw) -> None:
    first = go(plan(budget=10))
    answer()
    grow(world, draw, 12)
    assert go(plan(budget=10)) == first
    assert go(plan(budget=10, diversity=0.5)) == first
    assert (
        planning.stands(plan(budget=10, diversity=0.5)) == "its budget is spent and labelled; raise --budget for more"
    )
    go(plan(budget=24, rounds=2))
    answer()
    go(plan(budget=24, rounds=2))
    answer()
    assert [len(candidates(run.id or 0)) for run in runs()] == [10, 14]


def test_one_campaign_that_cannot_be_looked_up_does_not_stop_the_others(world: Path) -> None:
    for name in ("good", "lost", "old"):
        go(plan(name, budget=10, rounds=2))
        answer()
    with open_stores() as stores:
        lost, old = (campaigns.get_campaign(stores.db, name=name) for name in ("lost", "old"))
        lost.plan = {**lost.plan, "encoder": "gone"}
        old.plan = {**old.plan, "policy": {**old.plan["policy"], "budget": -1}}
        stores.db.add_all([lost, old])
    found = {one.campaign: one.status for one in continue_campaigns.fn(ContinuePlan())}
    assert found["good"] == "round 2 of 2 waits for labels"
    assert found["lost"].startswith("failed: corpus 'pool' has vectors of") or "no vectors of encoder" in found["lost"]
    assert found["old"].startswith("failed: its plan is no longer valid")


def test_others_write_while_a_dry_run_scans(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def write() -> None:
        with closing(sqlite3.connect(world / "root" / "dipnet.db", timeout=0.1)) as db, db:
            db.execute("UPDATE corpus SET name = name")
        looked.append(True)

    def choose(*args: object, real: Callable[..., object] = choosing.choose, **named: object) -> object:
        write()
        return real(*args, **named)

    def sheet(*args: object, real: Callable[..., object] = previewing.contact_sheet) -> object:
        write()
        return real(*args)

    monkeypatch.setattr(choosing, "choose", choose)
    monkeypatch.setattr(previewing, "contact_sheet", sheet)
    previewing.preview(plan(), None)
    go(plan())
    answer()
    previewing.preview(plan(budget=20), None)
    assert len(looked) == 5


def test_a_dry_run_of_a_round_that_finds_nothing_says_so(world: Path, draw: Draw) -> None:
    wanted = plan(budget=6, standing=True, min_score=0.6, **CHOSEN_BY_SCORE)
    go(wanted)
    add_noise(world, 6)
    shown = previewing.preview(wanted, None)
    assert shown.mined is not None
    assert (shown.mined.candidates, shown.mined.excluded) == (0, {"below the least score": 6})
    assert len(runs()) == 1


def test_discarded_candidates_leave_their_place_in_the_budget(world: Path) -> None:
    wanted = plan(budget=10, rounds=2)
    run_id = planning.plan_run(wanted)
    mining.mine_candidates(run_id)
    with open_stores() as stores:
        for one in campaigns.candidates_of(stores.db, run_id=run_id)[:2]:
            one.state = CandidateState.DISCARDED
            stores.db.add(one)
    go(wanted)
    answer()
    assert len(candidates(go(wanted))) == 7
    with open_stores() as stores:
        assert corpora.get_corpus(stores.db, name="pool")
        assert campaigns.count_kept(stores.db, run_ids=[1, 2]) == 10
