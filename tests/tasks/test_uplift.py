"""Was it the campaign that did it? Both arms at equal budget, over several training seeds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from sqlmodel import select

from models.errors import BadInput
from models.learning import DatasetVersion, ModelVersion, Uplift
from models.plans import CampaignPlan, PoolFilter, SelectionPolicy
from models.retraining import RetrainPlan, TrainerPlan, UpliftPlan
from storage.stores import open_stores
from tasks import attribution, datasets, labeling, mining, planning, routing, uplift
from tests.tasks.conftest import prepare


def run_arm(name: str, *, budget: int, strategy: str = "probe", where: str = "", label: bool = True) -> None:
    policy = SelectionPolicy(
        budget=budget, strategy=strategy, near_duplicate_cosine=1.0, leak_cosine=1.0, across_campaigns=False
    )  # type: ignore[arg-type]
    wanted = CampaignPlan(
        campaign=name, issue="light-bar", corpora=["pool"], policy=policy, pool=PoolFilter(where=where)
    )
    run_id = planning.plan_run(wanted)
    mining.mine_candidates(run_id)
    routing.send_batch(routing.prepare_batch(run_id, wanted))
    if label:
        answer(name)


def answer(name: str) -> None:
    for project_id in labeling.projects_to_sync([name]):
        labeling.sync_project(project_id)


def plan(**more: object) -> UpliftPlan:
    return UpliftPlan.model_validate({"campaign": "c", "control": "r", "corpora": ["train"], "seeds": 3} | more)


def stored() -> list[Uplift]:
    with open_stores() as stores:
        return list(stores.db.exec(select(Uplift)).all())


def test_both_arms_are_learnt_from_with_as_many_labels_and_twice_changes_nothing(world: Path) -> None:
    run_arm("r", budget=12, strategy="random")
    run_arm("c", budget=20)
    found = uplift.measure(plan())
    assert (found.budget, found.seeds, len(found.by_seed), found.warnings) == (12, [0, 1, 2], 3, [])
    assert (found.class_name, found.metric, found.scenario) == ("bar", "f1", "issue-light-bar@1")
    gains = [seed["campaign"] - seed["control"] for seed in found.by_seed]
    assert found.mean == pytest.approx(sum(gains) / 3)
    assert -1 <= found.low <= found.mean <= found.high <= 1
    again = uplift.measure(plan())
    assert again.reused
    assert again.model_dump(exclude={"reused"}) == found.model_dump(exclude={"reused"})
    assert len(stored()) == 1
    with open_stores() as stores:
        assert stores.db.exec(select(ModelVersion)).all() == []
    (row,) = attribution.campaign_record("c")["uplift"]
    assert (row["control"], row["mean"], row["budget"]) == ("r", found.mean, 12)


def test_other_seeds_metrics_and_options_are_other_uplifts_and_the_same_ones_have_the_same_bits(world: Path) -> None:
    run_arm("c", budget=12)
    run_arm("r", budget=12, strategy="random")
    first = uplift.measure(plan())
    uplift.measure(plan(metric="accuracy"))
    uplift.measure(plan(seed=1))
    uplift.measure(plan(trainer={"head": {"kind": "mlp", "hidden": 8}}))
    assert len({one.key for one in stored()}) == 4
    with open_stores() as stores:
        for one in stores.db.exec(select(Uplift)).all():
            stores.db.delete(one)
    assert uplift.measure(plan()).by_seed == first.by_seed


def test_a_label_that_is_the_same_in_both_arms_gives_no_uplift(world: Path) -> None:
    run_arm("r", budget=60, strategy="random", label=False)  # the whole pool, both times
    run_arm("c", budget=60, label=False)
    answer("r")
    answer("c")
    found = uplift.measure(plan())
    assert found.budget == 60
    assert found.low < 0 < found.high


def test_neither_arm_learns_from_what_is_related_to_evaluation_data(world: Path, draw: Callable[..., Path]) -> None:
    run_arm("r", budget=60, strategy="random", label=False)  # the whole pool, both times
    run_arm("c", budget=60, label=False)
    answer("r")
    answer("c")
    files = sorted((world / "images" / "pool").glob("*.png"))[:20]
    folder = draw("again", 20, seed=9)
    for number, file in enumerate(files):
        pixels = np.array(Image.open(file))
        pixels[0, 0] ^= 1  # another image, and hardly another vector
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
    prepare("again", folder, "holdout")
    found = uplift.measure(plan())
    frozen = datasets.freeze_dataset(RetrainPlan(model="m", corpora=["train"], campaigns=["c"]))
    with open_stores() as stores:
        told = stores.db.get_one(DatasetVersion, frozen).excluded
    assert told["related to evaluation data"] >= 20
    assert found.excluded["control"] == found.excluded["campaign"]
    both = found.excluded["base"].get(datasets.RELATED, 0) + found.excluded["campaign"][datasets.RELATED]
    assert both == told["related to evaluation data"]
    assert found.budget == 60 - found.excluded["campaign"][datasets.RELATED]


def test_arms_that_cannot_be_held_against_each_other_are_refused(world: Path) -> None:
    run_arm("c", budget=10)
    with pytest.raises(BadInput, match="cannot be its own control"):
        uplift.measure(plan(control="c"))
    run_arm("few", budget=3, strategy="random")
    with pytest.raises(BadInput, match="'few' has 3 labels to learn from, and 5 are the least"):
        uplift.measure(plan(control="few"))
    run_arm("dark", budget=10, strategy="random", where="tone = 'dark'")
    with pytest.raises(BadInput, match="chooses from the same images"):
        uplift.measure(plan(control="dark"))
    run_arm("r0", budget=8, strategy="random")
    with pytest.raises(BadInput, match="not for training"):
        uplift.measure(plan(control="r0", corpora=["held"]))
    assert stored() == []


def test_a_control_that_did_not_choose_by_chance_is_told(world: Path) -> None:
    run_arm("c", budget=10)
    run_arm("n", budget=10, strategy="nearest")
    by_chance, before = uplift.measure(plan(control="n")).warnings
    assert "did not choose by chance (nearest)" in by_chance
    assert "could not draw 10 images" in before


def test_a_trainer_that_takes_hours_is_refused(world: Path) -> None:
    with pytest.raises(BadInput, match="trainer head"):
        uplift.measure(plan(trainer=TrainerPlan(name="finetune")))
    with pytest.raises(ValidationError):
        plan(seeds=1)
