"""What must not be chosen: the issue's own exemplars, and anything like evaluation data, known to this encoder or not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import BadInput
from models.plans import CampaignPlan, IngestPlan, SelectionPolicy
from storage import campaigns
from storage.stores import open_stores
from tasks import embedding, ingesting, mining, planning, searching
from tasks.compute import images, outlook


def plan(**policy: object) -> CampaignPlan:
    given = {"budget": 40, "near_duplicate_cosine": 1.0, "leak_cosine": 1.0, "random_share": 0, "boundary_share": 0}
    chosen = SelectionPolicy.model_validate(given | policy)
    return CampaignPlan(campaign="c", issue="light-bar", corpora=["pool"], policy=chosen)


@pytest.mark.parametrize("positive", [True, False])
def test_an_exemplar_that_lies_in_the_pool_is_not_proposed_and_counted(world: Path, positive: bool) -> None:
    shown = world / "images" / "pool" / ("0003.png" if positive else "0000.png")
    alike = world / "images" / "pool" / "copy.png"
    alike.write_bytes(shown.read_bytes() + b"\0")  # other bytes, the same picture
    ingesting.ingest(IngestPlan(corpus="pool", prefix=str(world / "images" / "pool")))
    embedding.embed_shards(embedding.pending_shards("pool", ""), "", 16)
    searching.add_exemplars("light-bar", [shown], positive=positive)
    run_id = planning.plan_run(plan(budget=60))
    found = mining.mine_candidates(run_id)
    assert found.excluded["an exemplar of the issue"] == 1
    assert found.excluded["near-duplicate of an exemplar of the issue"] == 1
    known = {images.fingerprint(file.read_bytes()) for file in (shown, alike)}
    with open_stores() as stores:
        assert not known & {c.sample_id for c in campaigns.candidates_of(stores.db, run_id=run_id)}


def test_evaluation_data_that_the_encoder_has_not_seen_stops_the_run_with_the_command(
    world: Path, draw: Callable[..., Path]
) -> None:
    folder, shown = draw("bench", 2, seed=123), world / "images" / "pool" / "0003.png"
    for number, file in enumerate(sorted(folder.glob("*.png"))):
        file.write_bytes(shown.read_bytes() + bytes(number + 1))  # near-duplicates of an image of the pool
    ingesting.ingest(IngestPlan(corpus="bench", prefix=str(folder), split="holdout", label_column="class_name"))
    with pytest.raises(BadInput, match=r"corpus 'bench' holds evaluation data .*embed it with: dipnet embed bench"):
        mining.mine_candidates(planning.plan_run(plan(budget=60)))
    embedding.embed_shards(embedding.pending_shards("bench", ""), "", 16)
    found = mining.mine_candidates(planning.plan_run(plan(budget=60)))
    assert found.excluded["near-duplicate of evaluation data"] >= 1


def test_a_blind_encoder_is_told_with_the_setting_that_goes_on(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = outlook.Adequacy(0.5, 0.4, 0.6, 0.0, "blind", "it sees nothing")
    monkeypatch.setattr(outlook, "adequacy", lambda *_: blind)
    with pytest.raises(BadInput, match="go on with --set blind=warn"):
        mining.mine_candidates(planning.plan_run(plan()))
    assert mining.mine_candidates(planning.plan_run(plan(blind="warn"))).candidates == 40


def test_balancing_classes_without_a_model_is_refused() -> None:
    with pytest.raises(ValueError, match="balance_classes needs a model"):
        plan(balance_classes=True)
    wanted = plan().model_dump()
    wanted |= {"model": "baseline", "policy": wanted["policy"] | {"balance_classes": True}}
    assert CampaignPlan.model_validate(wanted).policy.balance_classes
