"""How good a model is on a scenario, and whether another one is better there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.errors import Incompatible
from models.learning import Comparison, Evaluation, MetricDelta
from models.values import Compared
from storage import runs
from storage.stores import open_stores
from tasks.compute import metrics
from tasks.predicting import Predictions, infer, predictions_of, read_predictions
from tasks.steps import step


@step()
def evaluate(model_name: str, scenario_name: str) -> int:
    """Predict a scenario's samples and store the metrics. Twice changes nothing. Returns the evaluation's id."""
    with open_stores() as stores:
        model = runs.get_model(stores.db, name=model_name)
        scenario = runs.get_scenario(stores.db, name=scenario_name)
        held = runs.find_inference(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
        inference = held or infer(stores, model, scenario)
        found = runs.find_evaluation(stores.db, inference_id=inference.id or 0)
        if found is None:
            predictions = read_predictions(stores, inference)
            found = Evaluation(inference_id=inference.id or 0, metrics=_measured(predictions))
            stores.db.add(found)
            stores.db.flush()
    return found.id or 0


@step()
def compare(before: str, after: str, scenario_name: str, resamples: int, seed: int) -> Compared:
    """Every metric's difference between two evaluated models, with its paired 95 % interval. Twice changes nothing."""
    with open_stores() as stores:
        models = [runs.get_model(stores.db, name=name) for name in (before, after)]
        scenario = runs.get_scenario(stores.db, name=scenario_name)
        ids = [models[0].id or 0, models[1].id or 0, scenario.id or 0]
        found = runs.find_comparison(stores.db, before_id=ids[0], after_id=ids[1], scenario_id=ids[2])
        if found is None:
            both = [predictions_of(stores, model, scenario) for model in models]
            class_names, targets, predicted = _aligned(*both)

            deltas = metrics.paired_deltas(
                targets, *predicted, classes=len(class_names), resamples=resamples, seed=seed
            )

            found = Comparison(before_id=ids[0], after_id=ids[1], scenario_id=ids[2])
            stores.db.add(found)
            stores.db.flush()
            stores.db.add_all(_delta_row(found.id or 0, delta, class_names) for delta in deltas)
    return Compared(comparison_id=found.id or 0, scenario=scenario_name, before=before, after=after)


def _measured(predictions: Predictions) -> dict[str, object]:
    """Metrics as JSON: over all, by class, and the confusion matrix."""
    names = predictions.class_names
    found = metrics.scores(predictions.targets, predictions.predicted, classes=len(names))
    table = metrics.confusion(predictions.targets, predictions.predicted, classes=len(names))
    return {
        "samples": len(predictions.targets),
        "accuracy": found.accuracy,
        "macro_f1": found.macro_f1,
        "class_names": names,
        "confusion": table.tolist(),
        "classes": {
            name: {
                "precision": float(found.precision[place]),
                "recall": float(found.recall[place]),
                "f1": float(found.f1[place]),
                "support": int(found.support[place]),
            }
            for place, name in enumerate(names)
        },
    }


def _aligned(before: Predictions, after: Predictions) -> tuple[list[str], NDArray[np.int64], list[NDArray[np.int64]]]:
    """Both models' answers in one list of class names. Raises Incompatible when the samples differ."""
    if before.sample_ids != after.sample_ids:
        raise Incompatible("the two models were evaluated on different samples; evaluate both on the same scenario")
    class_names = sorted({*before.class_names, *after.class_names})

    def shared(side: Predictions, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray([class_names.index(name) for name in side.class_names], dtype=np.int64)[places]

    predicted = [shared(before, before.predicted), shared(after, after.predicted)]
    return class_names, shared(before, before.targets), predicted


def _delta_row(comparison_id: int, delta: metrics.Delta, class_names: Sequence[str]) -> MetricDelta:
    return MetricDelta(
        comparison_id=comparison_id,
        class_name=class_names[delta.target] if delta.target >= 0 else "",
        metric=delta.metric,
        before=delta.before,
        after=delta.after,
        low=delta.low,
        high=delta.high,
    )
