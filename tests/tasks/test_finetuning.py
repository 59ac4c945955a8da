"""Networks on pixels: fitted, found again, taken up after a kill, and honest about what they could not read."""

from pathlib import Path
from typing import Any

from models.learning import ModelVersion, TrainingRun
from models.retraining import FinetuneOptions, RetrainPlan, TrainerPlan
from models.values import Fitted
from storage import runs
from storage.stores import open_stores
from tasks import datasets, evaluating, learning, scenarios
from tasks.predicting import read_predictions


def plan(model: str = "net", *, seed: int = 0, **options: Any) -> RetrainPlan:
    chosen = {"image_size": 16, "epochs": 2, "batch_size": 16, "patience": 0, **options}
    trainer = TrainerPlan(name="finetune", finetune=FinetuneOptions(**chosen))
    return RetrainPlan(model=model, corpora=["train"], trainer=trainer, seed=seed)


def fit(wanted: RetrainPlan) -> Fitted:
    return learning.fit(datasets.freeze_dataset(wanted), wanted)


def training_of(name: str) -> tuple[ModelVersion, TrainingRun]:
    with open_stores() as stores:
        model = runs.get_model(stores.db, name=name)
        return model, runs.training_of(stores.db, model=model)


def test_a_network_learns_squares_from_bars_and_is_fitted_once(world: Path, house: Path) -> None:
    wanted = plan(epochs=12, learning_rate=0.003, augmentation="none")
    first = fit(wanted)
    assert (first.reused, first.version, first.samples) == (False, 1, 40)
    assert fit(wanted) == first.model_copy(update={"reused": True})
    assert fit(plan(epochs=12, learning_rate=0.003, augmentation="none", seed=1)).version == 2
    model, training = training_of("net@1")
    assert len(training.history) == 12
    assert {"python", "numpy", "torch", "torchvision", "scikit_learn", "device", "threads"} <= set(training.environment)
    assert training.parameters["backbone"] == "resnet18"
    assert not list(house.rglob("checkpoint"))
    scenarios.freeze_scenario("dev", ["dev"])
    evaluating.evaluate("net@1", "dev")
    with open_stores() as stores:
        scenario = runs.get_scenario(stores.db, name="dev")
        inference = runs.find_inference(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
        assert inference is not None
        found = read_predictions(stores, inference)
    assert (found.predicted == found.targets).mean() > 0.8
