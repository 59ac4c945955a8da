"""A fit is kept under its name and found again by its inputs; what does not count changes nothing."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from models.errors import BadInput, Incompatible
from models.learning import DatasetVersion, ModelVersion
from models.outcomes import Fitted
from models.retraining import HeadOptions, RetrainPlan, TrainerPlan
from storage import runs, tables
from storage.stores import open_stores
from tasks import datasets, evaluating, heads, learning, scenarios


def plan(model: str = "m", *, seed: int = 0, **options: Any) -> RetrainPlan:
    trainer = TrainerPlan(head=HeadOptions(**options))
    return RetrainPlan(model=model, corpora=["train"], trainer=trainer, seed=seed)


def fit(wanted: RetrainPlan) -> Fitted:
    return learning.fit(datasets.freeze_dataset(wanted), wanted)


def model_of(name: str) -> ModelVersion:
    with open_stores() as stores:
        return runs.get_model(stores.db, name=name)


def test_other_inputs_are_the_next_version_and_the_same_are_the_one_that_is_there(world: Path) -> None:
    first = fit(plan())
    assert fit(plan(hidden=17)).model_id == first.model_id  # a logistic head has no hidden layer
    assert [fit(plan(**more)).version for more in ({"regularisation": 1.0}, {"kind": "mlp"})] == [2, 3]
    assert fit(plan(kind="mlp", hidden=17)).version == 4
    assert fit(plan(seed=1)).version == 5
    assert fit(plan()) == first.model_copy(update={"reused": True})
    other = fit(plan("other"))
    assert (other.version, other.reused) == (1, False)
    assert model_of("other").weights_sha256 == model_of("m@1").weights_sha256 == model_of("m@5").weights_sha256


def test_a_model_is_not_called_what_means_another(world: Path) -> None:
    with pytest.raises(BadInput, match="'champion' has a meaning of its own"):
        learning.fit(datasets.freeze_dataset(plan("champion")), plan("champion"))


def test_a_bootstrap_makes_the_seed_count(world: Path) -> None:
    found = [fit(plan(seed=seed, bootstrap=True)) for seed in (0, 1, 2)]
    assert len({model_of(f"m@{one.version}").weights_sha256 for one in found}) == 3


def test_what_fitted_it_is_recorded(world: Path) -> None:
    fit(plan(kind="mlp", hidden=8, balance="class-weights", seed=4))
    with open_stores() as stores:
        training = runs.training_of(stores.db, model=runs.get_model(stores.db, name="m"))
    assert (training.trainer, training.seed) == ("head", 4)
    assert training.parameters["hidden"] == 8
    assert training.parameters["balance"] == "class-weights"
    assert {"python", "numpy", "scikit_learn", "torch", "torchvision", "device", "threads"} <= set(training.environment)
    assert {"epoch", "loss"} <= set(training.history[0])
    assert training.seconds > 0
    scenarios.freeze_scenario("dev", ["dev"])
    assert evaluating.evaluate("m", "dev")


def split_dataset(**splits: int) -> int:
    """A dataset version whose rows are parted in order: so many of each split."""
    with open_stores() as stores:
        dataset = stores.db.get_one(DatasetVersion, datasets.freeze_dataset(plan()))
        listing = tables.from_bytes(stores.objects.read(dataset.listing_key))
        listing = listing.select(["sample_id", "class_name", "shard_id", "uri"]).slice(0, sum(splits.values()))
        names = [name for name, count in splits.items() for _ in range(count)]
        sha256 = stores.objects.write(
            "parted.parquet", tables.to_bytes(listing.append_column("split", pa.array(names)))
        )
        found = DatasetVersion(
            content_hash=f"parted-{splits}",
            learnt_hash=f"{splits.get('train')}-{splits.get('development')}",
            listing_key="parted.parquet",
            listing_sha256=sha256,
            samples=len(names),
            splits=splits,
            class_names=dataset.class_names,
        )
        stores.db.add(found)
        stores.db.flush()
        return found.id or 0


def test_only_train_rows_are_learnt_from_and_a_changed_holdout_is_the_same_fit(world: Path) -> None:
    first = learning.fit(split_dataset(train=20, development=8, holdout=4), plan())
    assert first.samples == 20
    again = learning.fit(split_dataset(train=20, development=8, holdout=12), plan())
    assert (again.reused, again.model_id) == (True, first.model_id)
    alone = learning.fit(split_dataset(train=20), plan("alone"))
    assert alone.samples == 20
    assert model_of("alone").weights_sha256 == model_of("m").weights_sha256


def test_a_model_that_sees_pixels_is_no_head(world: Path) -> None:
    with pytest.raises(Incompatible, match=r"'m@1' does not work on an encoder's vectors"), open_stores() as stores:
        heads.load(stores, ModelVersion(training_run_id=1, name="m", weights_key="", weights_sha256=""))
