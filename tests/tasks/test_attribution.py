"""The chain of evidence, walked both ways: from a campaign to its differences, and from a model or an image back."""

from pathlib import Path

import pytest

from flows.training import retrain_and_evaluate
from models.errors import BadInput, NotFound
from models.plans import CampaignPlan, SelectionPolicy
from models.retraining import RetrainPlan
from storage import campaigns
from storage.stores import open_stores
from tasks import attribution, labeling, mining, planning, routing, tracing

LOOSE = {"near_duplicate_cosine": 1.0, "leak_cosine": 1.0, "across_campaigns": False}


def run_campaign(name: str, *, budget: int = 12, strategy: str = "probe", label: bool = True) -> int:
    policy = SelectionPolicy(budget=budget, strategy=strategy, **LOOSE)  # type: ignore[arg-type]
    wanted = CampaignPlan(campaign=name, issue="light-bar", corpora=["pool"], policy=policy)
    run_id = planning.plan_run(wanted)
    mining.mine_candidates(run_id)
    if label:
        routing.send_batch(routing.prepare_batch(run_id, wanted))
        for project_id in labeling.projects_to_sync([name]):
            labeling.sync_project(project_id)
    return run_id


def retrain(model: str, **more: object) -> None:
    retrain_and_evaluate.fn(RetrainPlan(model=model, corpora=["train"], resamples=200, **more))  # type: ignore[arg-type]


def test_a_campaign_says_what_it_bought_and_the_model_says_the_same_backwards(world: Path) -> None:
    run_campaign("c")
    retrain("before")
    retrain("after", campaigns=["c"], compare_with="before", issue="light-bar")
    found = attribution.campaign_record("c")
    assert (found["asked"], found["answered"], found["labels"], found["candidates"]) == (12, 12, 12, 12)
    assert 0 < found["hits"] <= 12
    (version,) = found["datasets"]
    assert (version["holds"], version["left_out"], version["campaigns"]) == (12, {}, ["c"])
    (model,) = found["models"]
    assert model["model"] == "after@1"
    on_issue = next(row for row in model["deltas"] if row["about"] == "issue")
    assert (on_issue["class_name"], on_issue["metric"], on_issue["before"]) == ("bar", "f1", "before@1")
    assert on_issue["low"] <= on_issue["delta"] <= on_issue["high"]
    assert model["gates"][0]["issue"] == "light-bar"
    assert "12 labels" in found["answer"] and "beyond chance: not measured" in found["answer"]

    back = attribution.model_record("after")
    assert back["dataset"]["id"] == version["dataset"]
    (part,) = back["dataset"]["campaigns"]
    assert (part["campaign"], part["issue"], part["labels"], part["exemplars"]) == ("c", "light-bar", 12, 3)
    assert back["gates"] == model["gates"]
    assert attribution.model_record("before")["dataset"]["campaigns"] == []


def test_what_did_not_make_it_into_a_dataset_version_is_told_with_its_reason(world: Path) -> None:
    kept = (world / "truth.csv").read_text().splitlines()
    (world / "truth.csv").write_text("\n".join(kept[:41]))  # the oracle skips what it does not know
    run_campaign("c", budget=60)
    retrain("after", campaigns=["c"])
    (version,) = attribution.campaign_record("c")["datasets"]
    assert (version["holds"], version["left_out"]) == (40, {"skipped": 20})


def test_a_campaign_that_only_mined_cost_nothing_and_bought_nothing(world: Path) -> None:
    run_campaign("c", label=False)
    found = attribution.campaign_record("c")
    assert (found["asked"], found["labels"], found["datasets"], found["models"]) == (0, 0, [], [])
    assert "nothing was sent" in found["answer"]
    with open_stores() as stores:
        policy = SelectionPolicy(**LOOSE)  # type: ignore[arg-type]
        plan = CampaignPlan(campaign="empty", issue="light-bar", corpora=["pool"], policy=policy)
        issue = campaigns.get_issue(stores.db, name="light-bar")
        campaign = campaigns.find_or_new(stores.db, name="empty", issue=issue)
        campaign.plan = plan.model_dump()
        stores.db.add(campaign)
    assert attribution.campaign_record("empty")["candidates"] == 0


def test_an_image_is_traced_through_the_whole_chain_even_when_its_file_is_gone(world: Path) -> None:
    run_id = run_campaign("c")
    retrain("after", campaigns=["c"])
    with open_stores() as stores:
        candidate = campaigns.candidates_of(stores.db, run_id=run_id)[0]
    for file in (world / "images" / "pool").glob("*.png"):
        file.unlink()
    found = tracing.sample_record(candidate.sample_id[:12])
    assert found["sample"] == candidate.sample_id
    assert (found["corpus"], found["split"]) == ("pool", "none")
    (chosen,) = found["candidate_in"]
    assert (chosen["campaign"], chosen["rank"], chosen["arm"]) == ("c", 1, candidate.arm.value)
    assert chosen["nearest_exemplar"] == candidate.nearest_exemplar
    (asked,) = found["requests"]
    assert asked["state"] == "labelled" and len(asked["answers"]) == 1
    (held,) = found["datasets"]
    assert (held["split"], held["class_name"], held["models"]) == ("train", asked["class_names"][0], ["after@1"])

    shown = tracing.sample_record(candidate.nearest_exemplar)
    assert shown["exemplar_of"][0]["issue"] == "light-bar"
    assert shown["split"] == "development"
    assert shown["labels"][0]["source"] == "import:dev"
    assert {row["scenario"] for row in shown["scenarios"]} >= {"dev@1"}
    (said,) = shown["predictions"]
    assert said["model"] == "after@1" and 0 < said["probability"] <= 1
    assert said["right"] == (said["predicted"] == "bar")


def test_a_sample_is_found_by_a_prefix_that_only_it_has(world: Path) -> None:
    with pytest.raises(BadInput, match="first 6 characters"):
        tracing.sample_record("abc")
    with pytest.raises(BadInput, match="no sample id"):
        tracing.sample_record("../../etc/passwd")
    with pytest.raises(NotFound, match="sha256sum"):
        tracing.sample_record("0" * 64)
