"""Campaigns go on by themselves: rounds wait for labels, what stands looks at what is new, and nothing is asked twice."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sqlmodel import SQLModel, func, select

from models.errors import BadInput, CorruptData
from models.plans import CampaignPlan, ContinuePlan, IngestPlan, PoolFilter, SelectionPolicy, StopRule
from models.states import Arm, CampaignState, RunState
from storage import campaigns
from storage.stores import open_stores
from tasks import (
    collecting,
    embedding,
    ingesting,
    labeling,
    mining,
    planning,
    previewing,
    progress,
    reviewing,
    routing,
    searching,
)
from tasks.compute import outlook, portable

ROOT = Path(__file__).parents[2]
LOOSE = {"near_duplicate_cosine": 1.0, "leak_cosine": 1.0}  # drawings of two shapes are all alike to a CLIP


def plan(
    campaign: str = "c", *, pool: PoolFilter | None = None, standing: bool = False, **policy: object
) -> CampaignPlan:
    chosen = SelectionPolicy.model_validate({"budget": 10, **LOOSE, **policy})
    filtered = pool or PoolFilter()
    return CampaignPlan(
        campaign=campaign, issue="light-bar", corpora=["pool"], policy=chosen, pool=filtered, standing=standing
    )


def go(wanted: CampaignPlan) -> int:
    """Plan, mine and send, as run-campaign does."""
    run_id = planning.plan_run(wanted)
    if mining.mine_candidates(run_id).candidates:
        routing.send_batch(routing.prepare_batch(run_id, wanted))
    return run_id


def answer() -> None:
    for project_id in labeling.projects_to_sync([]):
        labeling.sync_project(project_id)


def candidates(run_id: int) -> list[tuple[str, Arm, float]]:
    with open_stores() as stores:
        found = campaigns.candidates_of(stores.db, run_id=run_id)
        return [(candidate.sample_id, candidate.arm, candidate.score) for candidate in found]


def rows_by_table() -> dict[str, int]:
    with open_stores() as stores:
        tables = SQLModel.metadata.tables
        return {name: stores.db.exec(select(func.count()).select_from(table)).one() for name, table in tables.items()}


def grow(world: Path, draw: Callable[..., Path], count: int) -> None:
    """New images in the pool, as a new shard."""
    for number, file in enumerate(sorted(draw("more", count, seed=77).glob("*.png"))):
        file.rename(world / "images" / "pool" / f"new-{number:04d}.png")
    ingesting.ingest(IngestPlan(corpus="pool", prefix=str(world / "images" / "pool")))
    embedding.embed_shards(embedding.pending_shards("pool", ""), "", 16)


def test_each_round_waits_for_the_labels_of_the_one_before(world: Path) -> None:
    wanted = plan(budget=15, rounds=3)
    first = go(wanted)
    assert go(wanted) == first
    assert planning.stands(wanted) == "round 1 of 3 waits for labels"
    assert not planning.plans_to_continue([])
    seen: list[str] = [name for name, _, _ in candidates(first)]
    for number in (2, 3):
        answer()
        assert [one.campaign for one in planning.plans_to_continue([])] == ["c"]
        run_id = go(wanted)
        seen += [name for name, _, _ in candidates(run_id)]
        with open_stores() as stores:
            run = campaigns.get_run(stores.db, run_id=run_id)
            assert (run.series, run.round) == (1, number)
            assert run.found["answers_learnt_from"] == 5 * (number - 1)
            earlier = progress.hits_of_the_best(stores, campaigns.get_campaign(stores.db, name="c"))
            best = [c.score for c in campaigns.candidates_of(stores.db, run_id=run_id) if c.arm is Arm.EXPLOIT]
            likely = outlook.next_yield(earlier, np.asarray(best))
            assert run.found["expected_hits"]["expected"] == pytest.approx(likely.share * len(best), abs=0.06)
    answer()
    before = rows_by_table()
    assert go(wanted) == run_id
    assert rows_by_table() == before
    assert len(seen) == len(set(seen)) == 15
    assert planning.stands(wanted) == "its budget is spent and labelled"


def test_continue_takes_up_what_can_go_on_and_leaves_the_rest(world: Path) -> None:
    from flows.campaign import continue_campaigns

    go(plan("done"))
    go(plan("going", budget=10, rounds=2))
    answer()
    assert [(one.campaign, one.status) for one in continue_campaigns.fn(ContinuePlan())] == [
        ("going", "round 2 of 2 waits for labels")
    ]
    assert continue_campaigns.fn(ContinuePlan()) == []


def test_a_standing_campaign_scores_only_what_is_new_until_the_issue_changes(
    world: Path, draw: Callable[..., Path]
) -> None:
    wanted = plan(budget=6, standing=True)
    first = go(wanted)
    answer()
    assert go(wanted) == first
    grow(world, draw, 12)
    assert [one.campaign for one in planning.plans_to_continue([])] == ["c"]
    second = go(wanted)
    with open_stores() as stores:
        assert [campaigns.get_run(stores.db, run_id=one).scanned for one in (first, second)] == [60, 12]
    answer()
    searching.add_exemplars("light-bar", [world / "images" / "dev" / "0000.png"], positive=False)
    third = go(wanted)
    with open_stores() as stores:
        assert campaigns.get_run(stores.db, run_id=third).scanned == 72


def test_the_arms_share_a_batch_and_chance_draws_from_everything(world: Path) -> None:
    run_id = planning.plan_run(plan(budget=20, random_share=0.3, boundary_share=0.2))
    mining.mine_candidates(run_id)
    arms = [arm for _, arm, _ in candidates(run_id)]
    assert [arms.count(arm) for arm in (Arm.EXPLOIT, Arm.BOUNDARY, Arm.RANDOM)] == [10, 4, 6]
    scores = [score for _, _, score in candidates(run_id)]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_a_least_score_makes_the_batch_smaller(world: Path) -> None:
    run_id = planning.plan_run(plan(budget=40, min_score=0.8, random_share=0, boundary_share=0))
    found = mining.mine_candidates(run_id)
    assert 0 < found.candidates < 40
    assert min(score for _, _, score in candidates(run_id)) >= 0.8
    assert found.excluded["below the least score"] > 0


def test_what_is_discarded_never_returns_and_is_not_sent(world: Path) -> None:
    wanted = plan(budget=10)
    run_id = planning.plan_run(wanted)
    mining.mine_candidates(run_id)
    out = candidates(run_id)[0][0]
    assert reviewing.review("c", [out[:10]], accept=False) == {"campaign": "c", "discarded": 1}
    go(wanted)
    answer()
    with pytest.raises(BadInput, match="is labelled already"):
        reviewing.review("c", [candidates(run_id)[1][0]], accept=False)
    with pytest.raises(BadInput, match="names none of the candidates"):
        reviewing.review("c", ["ffffffffff"], accept=True)
    again = planning.plan_run(plan(budget=45))
    mining.mine_candidates(again)
    with open_stores() as stores:
        assert campaigns.get_run(stores.db, run_id=run_id).state is RunState.LABELLED
    assert out not in {name for name, _, _ in candidates(again)}


def test_a_filter_narrows_the_pool_and_cannot_read_files(world: Path) -> None:
    light = PoolFilter(where="tone = 'light'")
    run_id = planning.plan_run(plan("light", pool=light, budget=5))
    assert mining.mine_candidates(run_id).scanned == 30
    for bad, says in (
        ("tone = 'purple'", "no image of the pool meets the filter"),
        ("nonsense =", "cannot be used"),
        ("tone IN (SELECT column0 FROM read_csv('/etc/passwd'))", "holds a query of its own"),
        (
            "1=1) UNION SELECT 1 FROM images WHERE (1=1); DROP TABLE images; --",
            "cannot be used",
        ),
    ):
        with pytest.raises(BadInput, match=says):
            planning.plan_run(plan("bad", pool=PoolFilter(where=bad), budget=5))
    with pytest.raises(BadInput, match=r"above the pool of 30 readable images in pool that meet \(tone = 'light'\)"):
        planning.plan_run(plan("big", pool=light, budget=31))
    with pytest.raises(ValueError, match="needs time_column"):
        PoolFilter(since="2026-01-01")
    with pytest.raises(ValueError, match="is no time"):
        PoolFilter(since="yesterday'); --", time_column="tone")
    with open_stores() as stores:
        assert {campaign.name for campaign in campaigns.list_campaigns(stores.db)} == {"light"}


def test_other_campaigns_candidates_are_left_alone_unless_told_otherwise(world: Path) -> None:
    first = {name for name, _, _ in candidates(go(plan("a")))}
    second = {name for name, _, _ in candidates(go(plan("b")))}
    third = {name for name, _, _ in candidates(go(plan("c", across_campaigns=False, random_share=0, boundary_share=0)))}
    assert not first & second
    assert third & (first | second)


def test_a_restricted_pool_scores_less_and_still_draws_by_chance_from_all(world: Path) -> None:
    wanted = plan(budget=12, rounds=2, neighbours=3, random_share=0.5)
    go(wanted)
    answer()
    run_id = planning.plan_run(wanted)
    found = mining.mine_candidates(run_id)
    assert found.scanned < 40
    assert [arm for _, arm, _ in candidates(run_id)].count(Arm.RANDOM) == 3


@pytest.mark.parametrize("strategy", [{"strategy": "nearest"}, {"strategy": "text", "text": "a light bar"}])
def test_other_strategies_mine_too(world: Path, strategy: dict[str, str]) -> None:
    searching.add_exemplars("light-bar", [world / "images" / "dev" / "0000.png"], positive=False)
    run_id = planning.plan_run(plan(blind="warn", **strategy))
    assert mining.mine_candidates(run_id).candidates == 10


def test_words_alone_need_no_exemplar_and_are_not_forgotten_once_there_are_answers(world: Path) -> None:
    searching.new_issue("bars", class_name="bar", where="", description="")
    sure = {"random_share": 0, "boundary_share": 0, "rounds": 2}
    light, dark = (
        plan(text.split()[-2], strategy="text", text=text, text_weight=1.0, across_campaigns=False, **sure).model_copy(
            update={"issue": "bars"}
        )
        for text in ("a light bar", "a dark square")
    )
    for wanted in (light, dark):
        go(wanted)
    answer()
    first, second = (candidates(go(wanted)) for wanted in (light, dark))
    assert {name for name, _, _ in first} != {name for name, _, _ in second}
    with pytest.raises(BadInput, match="issue 'bars' has no exemplars"):
        planning.plan_run(plan("other").model_copy(update={"issue": "bars"}))


def test_exemplars_that_make_no_sense_are_told_and_nothing_is_kept(world: Path) -> None:
    file = world / "images" / "dev" / "0003.png"
    searching.new_issue("same", class_name="bar", where="", description="")
    for number in range(3):
        copy = world / f"copy-{number}.png"
        copy.write_bytes(file.read_bytes() + bytes(number))  # other bytes, the same picture
        searching.add_exemplars("same", [copy], positive=True)
    wanted = plan().model_copy(update={"issue": "same"})
    with pytest.raises(BadInput, match="3 exemplars are one image to this encoder"):
        mining.mine_candidates(planning.plan_run(wanted))
    searching.new_issue("both", class_name="bar", where="", description="")
    searching.add_exemplars("both", [file, world / "images" / "dev" / "0007.png"], positive=True)
    searching.add_exemplars("both", [world / "copy-1.png"], positive=False)
    with pytest.raises(BadInput, match="a positive and a negative exemplar"):
        mining.mine_candidates(planning.plan_run(plan("d").model_copy(update={"issue": "both"})))
    with open_stores() as stores:
        assert not [c for run_id in (1, 2) for c in campaigns.candidates_of(stores.db, run_id=run_id)]


def test_vectors_that_are_no_numbers_stop_the_run_with_the_file_named(world: Path, house: Path) -> None:
    import hashlib

    file = next((house / "embeddings" / "pool").rglob("*.npy"))
    held = np.load(file, allow_pickle=False)
    held[5, 3] = np.nan
    np.save(file, held, allow_pickle=False)
    with open_stores() as stores:
        from models.corpus import EmbeddedShard

        for row in stores.db.exec(select(EmbeddedShard)).all():
            if str(file).endswith(row.vectors_key):
                row.vectors_sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
                stores.db.add(row)
    with pytest.raises(CorruptData, match="embeddings/pool"):
        mining.mine_candidates(planning.plan_run(plan()))


def test_a_dry_run_shows_what_a_run_would_send_and_keeps_nothing(world: Path) -> None:
    before = rows_by_table()
    (world / "images" / "dev" / "0003.png").unlink()  # an exemplar that cannot be shown any more
    shown = previewing.preview(plan(), world / "sheet.png")
    assert rows_by_table() == before
    assert (world / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert shown.mined is not None
    run_id = planning.plan_run(plan())
    kept = mining.mine_candidates(run_id)
    assert (kept.candidates, kept.excluded, kept.found) == (
        shown.mined.candidates,
        shown.mined.excluded,
        shown.mined.found,
    )
    assert json.loads(json.dumps(kept.found, allow_nan=False))["expected_hits"]["low"] >= 0


def test_progress_counts_hits_minutes_and_money_and_a_rule_stops_the_campaign(world: Path) -> None:
    wanted = plan(budget=12, rounds=2).model_copy(update={"stop": StopRule(max_labels=5, rate_per_hour=30)})
    go(wanted)
    assert progress.progress("c").labels == 0
    answer()
    found = progress.progress("c")
    assert (found.labels, len(found.rounds)) == (6, 1)
    assert found.rounds[0].low <= found.hits / 6 <= found.rounds[0].high
    assert found.cost == pytest.approx(found.minutes / 60 * 30, abs=0.01)
    assert "6 labels came back; the bound is 5" in found.stop
    first = go(wanted)
    assert planning.stands(wanted).startswith("stopped: 6 labels came back")
    assert not planning.plans_to_continue([])
    planning.set_state("c", CampaignState.ACTIVE, "")
    unbound = wanted.model_copy(update={"stop": StopRule()})
    assert go(unbound) != first


def exported(world: Path) -> tuple[Path, int]:
    run_id = go(plan(budget=8, random_share=0, boundary_share=0))
    collecting.export(world / "active.npz", [])
    return world / "active.npz", run_id


SCORE_ALONE = """
import sys, numpy as np, portable
assert not [name for name in sys.modules if name in ("torch", "sqlmodel", "prefect", "tasks")]
one = portable.read_campaigns(sys.argv[1])[0]
data = np.load(sys.argv[2], allow_pickle=False)
from pathlib import Path
portable.write_kept(Path(sys.argv[3]), portable.sift(one, data["uris"].tolist(), data["vectors"]))
"""


def collector(world: Path, house: Path, file: Path) -> Path:
    """The scorer alone in a process of its own, with numpy and nothing of ours."""
    import pyarrow.parquet as pq

    alone = world / "vehicle"
    alone.mkdir()
    (alone / "portable.py").write_bytes((ROOT / "tasks" / "compute" / "portable.py").read_bytes())
    (alone / "score.py").write_text(SCORE_ALONE)
    vectors = next((house / "embeddings" / "pool").rglob("*.npy"))
    uris = np.asarray(pq.read_table(vectors.with_suffix(".parquet")).column("uri").to_pylist())
    np.savez(alone / "frames.npz", uris=uris, vectors=np.load(vectors, allow_pickle=False).astype(np.float32))
    command = [sys.executable, "-P", alone / "score.py", file, alone / "frames.npz", alone / "kept.npz"]
    subprocess.run(command, check=True, cwd=alone, env={**os.environ, "PYTHONPATH": str(alone)}, timeout=60)
    return alone / "kept.npz"


def test_scores_at_the_source_are_the_flows_bit_for_bit(world: Path, house: Path) -> None:
    file, run_id = exported(world)
    kept = portable.read_kept(collector(world, house, file))
    assert kept.seen == 60
    with open_stores() as stores:
        from storage import corpora

        found = campaigns.candidates_of(stores.db, run_id=run_id)
        samples = corpora.known_samples(stores.db, ids=[c.sample_id for c in found])
    ours = {samples[c.sample_id].uri: c.score for c in found}
    theirs = {uri.rpartition("/")[2]: score for uri, score in zip(kept.uris, kept.scores.tolist(), strict=True)}
    assert {uri.rpartition("/")[2]: theirs[uri.rpartition("/")[2]] for uri in ours} == {
        uri.rpartition("/")[2]: score for uri, score in ours.items()
    }


def test_what_was_kept_comes_back_once_after_a_dry_run(world: Path, house: Path) -> None:
    file, _ = exported(world)
    with open_stores() as stores:
        run = campaigns.runs_of(stores.db, campaign_id=1)[0]
        run.policy = {**run.policy, "min_score": 0.01, "budget": 30}
        stores.db.add(run)
    collecting.export(file, ["c"])
    kept = collector(world, house, file)
    before = rows_by_table()
    dry = collecting.collect(kept, apply=False)
    assert rows_by_table() == before
    assert (dry.seen, dry.unknown, dry.scored_otherwise, dry.run_id) == (60, 0, 0, 0)
    assert dry.new + dry.duplicate == dry.kept
    done = collecting.collect(kept, apply=True)
    assert done.new == dry.new > 0
    assert len(candidates(done.run_id)) == done.new
    after = rows_by_table()
    assert collecting.collect(kept, apply=True).run_id == done.run_id
    assert rows_by_table() == after
    assert collecting.send(done.run_id).sent == done.new


def test_kept_files_that_are_wrong_are_refused_or_counted(world: Path, house: Path) -> None:
    file, _ = exported(world)
    kept = portable.read_kept(collector(world, house, file))
    strange = world / "strange.npz"
    portable.write_kept(strange, kept._replace(uris=["file:///etc/passwd", *kept.uris[1:]], scores=kept.scores - 0.2))
    found = collecting.collect(strange, apply=False)
    assert (found.unknown, found.scored_otherwise, found.new) == (1, found.kept - 1, 0)
    portable.write_kept(strange, kept._replace(run="0" * 64))
    with pytest.raises(BadInput, match="that is not here; export it again"):
        collecting.collect(strange, apply=False)
    np.savez(strange, header=np.asarray([{"a": 1}], dtype=object))
    for bad in (strange, ROOT / "README.md", world / "none.npz"):
        with pytest.raises(BadInput, match="is no file of dipnet's"):
            collecting.collect(bad, apply=False)
