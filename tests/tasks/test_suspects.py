"""Relabel before recollect: an exemplar that is probably mislabelled is told of before a campaign is opened."""

from pathlib import Path

import pytest

from models.errors import BadInput
from models.plans import CampaignPlan, LabelPolicy, SelectionPolicy
from storage import campaigns
from storage.stores import open_stores
from tasks import mining, planning, previewing, searching, suspects


def plan(campaign: str = "c", *, strategy: str = "probe", **labelling: object) -> CampaignPlan:
    loose = {"near_duplicate_cosine": 1.0, "leak_cosine": 1.0}
    policy = SelectionPolicy(budget=5, strategy=strategy, **loose)  # type: ignore[arg-type]
    labels = LabelPolicy.model_validate(labelling)
    return CampaignPlan(campaign=campaign, issue="light-bar", corpora=["pool"], policy=policy, labelling=labels)


def show_squares(world: Path) -> None:
    """Two light squares among the exemplars of an issue of bars."""
    squares = [world / "images" / "dev" / f"{number:04d}.png" for number in (2, 6)]
    searching.add_exemplars("light-bar", squares, positive=True)


def found_of(run_id: int) -> dict[str, object]:
    with open_stores() as stores:
        found = campaigns.get_run(stores.db, run_id=run_id).found
    return dict(found.get("suspects", {}))


def test_exemplars_of_another_class_are_suspected_and_the_right_ones_are_not(world: Path) -> None:
    assert suspects.check_issue("light-bar")["suspects"] == []
    show_squares(world)
    found = suspects.check_issue("light-bar")
    assert {row["image"].rsplit("/", 1)[1] for row in found["suspects"]} == {"0002.png", "0006.png"}
    assert {(row["given"], row["likely"]) for row in found["suspects"]} == {("bar", "square")}
    assert (found["exemplars"], found["judged"], found["judged_by"]) == (5, 5, 64)
    assert found["says"].startswith("2 of 5 exemplars may be mislabelled: ")
    assert found["says"].endswith("look at them with: dipnet issue check light-bar")


def test_a_campaign_says_so_in_its_first_run_and_mines_as_before(world: Path) -> None:
    show_squares(world)
    run_id = planning.plan_run(plan())
    assert found_of(run_id)["says"] == suspects.check_issue("light-bar")["says"]
    mined = mining.mine_candidates(run_id)
    assert mined.candidates == 5
    assert "adequacy" in mined.found and mined.found["suspects"] == found_of(run_id)
    assert planning.plan_run(plan()) == run_id


def test_a_dry_run_says_it_too(world: Path) -> None:
    show_squares(world)
    mined = previewing.preview(plan(), None).mined
    assert mined is not None and len(mined.found["suspects"]["suspects"]) == 2


def test_a_campaign_may_refuse_and_leaves_nothing_behind(world: Path) -> None:
    show_squares(world)
    with pytest.raises(BadInput, match=r"not opened: 2 of 5 exemplars .* --set suspects=warn"):
        planning.plan_run(plan(suspects="refuse"))
    with open_stores() as stores:
        assert campaigns.find_campaign(stores.db, name="c") is None
    assert planning.plan_run(plan(suspects="ignore"))


def test_what_to_do_about_suspects_is_no_part_of_a_runs_key(world: Path) -> None:
    show_squares(world)
    run_id = planning.plan_run(plan())
    assert planning.plan_run(plan(suspects="ignore")) == run_id


def test_the_control_arm_and_later_rounds_do_not_look(world: Path) -> None:
    show_squares(world)
    assert found_of(planning.plan_run(plan("control", strategy="random"))) == {}
    assert found_of(planning.plan_run(plan("quiet", suspects="ignore"))) == {}


def test_too_little_labelled_data_stops_nothing_and_says_so(world: Path) -> None:
    searching.new_issue("rare", class_name="lamp", where="", description="")
    searching.add_exemplars("rare", [world / "images" / "dev" / "0003.png"], positive=True)
    found = suspects.check_issue("rare")
    assert "1 of class 'lamp', and 5 are needed" in found["says"]
    wanted = plan("rare").model_copy(update={"issue": "rare"})
    assert "not checked" in str(found_of(planning.plan_run(wanted))["says"])


def test_an_exemplar_that_was_never_embedded_is_not_judged(world: Path) -> None:
    stray = world / "stray.png"
    stray.write_bytes((world / "images" / "dev" / "0002.png").read_bytes() + b"\0")  # other bytes, same picture
    searching.add_exemplars("light-bar", [stray], positive=True)
    found = suspects.check_issue("light-bar")
    assert (found["exemplars"], found["judged"], found["suspects"]) == (4, 3, [])
    assert found["says"] == "no label of 3 exemplars looks wrong; 1 without vectors were not judged"
