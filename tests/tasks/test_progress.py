"""What a campaign missed, by its random arms: round by round, series by series, and each pool once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from models.states import Arm, CandidateState
from storage import campaigns
from storage.stores import open_stores
from tasks import collecting, progress
from tasks.compute import images, outlook, prevalence
from tests.tasks.test_campaigns import answer, candidates, collector, go, grow, plan


def drawn_arms(run_ids: list[int], world: Path) -> list[prevalence.Drawn]:
    """The random arms of rounds of one series, by the truth."""
    truth = dict(line.split(",") for line in (world / "truth.csv").read_text().splitlines()[1:])
    told: list[prevalence.Drawn] = []
    since = 0
    for run_id in reversed(run_ids):
        hits = [(arm, truth.get(name) == "bar") for name, arm, _ in candidates(run_id)]
        since += sum(hit for _, hit in hits)
        drawn = [hit for arm, hit in hits if arm is Arm.RANDOM]
        with open_stores() as stores:
            of = campaigns.get_run(stores.db, run_id=run_id).found["random_arm_of"]
        told.append(prevalence.Drawn(sum(drawn), len(drawn), of["rows"], of["error"], since))
    return told[::-1]


def as_told(found: outlook.Rate) -> dict[str, float]:
    return {name: pytest.approx(value, abs=1e-3) for name, value in found._asdict().items()}


def test_what_is_missed_is_told_round_by_round_of_what_each_could_draw_from(world: Path) -> None:
    wanted = plan(budget=24, rounds=2, random_share=0.5, neighbours=3)
    run_ids = []
    for _ in range(2):
        run_ids.append(go(wanted))
        answer()
    arms = drawn_arms(run_ids, world)
    assert [(one.eligible, one.labels) for one in arms] == [(60.0, 6), (48.0, 6)]
    found = progress.progress("c")
    assert found.missed == as_told(prevalence.missed([arms]))
    assert found.missed["low"] <= 30 - found.hits <= found.missed["high"]
    assert found.prevalence == as_told(prevalence.prevalence([arms]))


def test_series_of_a_standing_campaign_add_up_until_one_looks_at_everything_again(
    world: Path, draw: Callable[..., Path]
) -> None:
    wanted = plan(budget=12, standing=True, random_share=0.5)
    run_ids = []
    for count in (0, 20):
        if count:
            grow(world, draw, count)
        run_ids.append(go(wanted))
        answer()
    series = [drawn_arms([run_id], world) for run_id in run_ids]
    assert [one.eligible for (one,) in series] == [60.0, 20.0]
    with open_stores() as stores:
        skipped = campaigns.count_states(stores.db, run_id=run_ids[1])
    assert set(skipped) == {CandidateState.SKIPPED}  # nobody knows the new images
    assert progress.progress("c").missed == as_told(prevalence.missed(series[:1]))
    learn_truth(world)
    third = go(plan(budget=24 + 13, random_share=0.5))  # another plan, over all shards, with 13 labels more
    answer()
    (again,) = drawn_arms([third], world)
    assert again.eligible == 80.0 - 24.0
    assert progress.progress("c").missed == as_told(prevalence.missed([[again]]))


def learn_truth(world: Path) -> None:
    """The oracle knows the new images too."""
    lines = [(world / "truth.csv").read_text().rstrip()]
    for number, file in enumerate(sorted((world / "images" / "pool").glob("new-*.png"))):
        lines.append(f"{images.fingerprint(file.read_bytes())},{('square', 'bar')[number % 2]}")
    (world / "truth.csv").write_text("\n".join(lines))


def test_disjoint_series_with_labels_are_summed_and_collected_runs_only_count_as_found(
    world: Path, draw: Callable[..., Path], house: Path
) -> None:
    wanted = plan(budget=12, standing=True, random_share=0.5)
    first = go(wanted)
    answer()
    grow(world, draw, 20)
    learn_truth(world)
    second = go(wanted)
    answer()
    arms = [drawn_arms([second], world), drawn_arms([first], world)]
    assert progress.progress("c").missed == as_told(prevalence.missed(arms))
    with open_stores() as stores:
        run = campaigns.get_run(stores.db, run_id=second)
        run.policy = {**run.policy, "min_score": 0.01}
        stores.db.add(run)
    collecting.export(world / "active.npz", ["c"])
    kept = collector(world, house, world / "active.npz")
    before = progress.progress("c")
    collected = collecting.collect(kept, apply=True)
    collecting.send(collected.run_id)
    answer()
    after = progress.progress("c")
    assert before.missed["share"] > after.hits - before.hits > 0
    assert after.missed["share"] == pytest.approx(
        max(0.0, before.missed["share"] - (after.hits - before.hits)), abs=0.01
    )
    for end in ("share", "high"):
        assert after.prevalence[end] == pytest.approx(before.prevalence[end], abs=0.02)
    assert after.prevalence["low"] > before.prevalence["low"]  # so many have been found by now
