"""How good a model is on a scenario, and whether another one is better there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from models.learning import Comparison, Evaluation, MetricDelta, ModelVersion, Scenario
from models.outcomes import Compared
from storage import runs, tables
from storage.stores import Stores, open_stores
from tasks import grouping
from tasks.compute import deltas
from tasks.compute.intervals import Grouping
from tasks.measuring import differences, measured
from tasks.predicting import Predictions, infer, predictions_of, read_predictions
from tasks.steps import step


@step()
def evaluate(model_name: str, scenario_name: str) -> int:
    """Predict a scenario's samples and store the metrics. Twice changes nothing. Returns the evaluation's id.

    Metrics from before 0.4 have no intervals, and are measured anew.
    """
    with open_stores() as stores:
        model = runs.get_model(stores.db, name=model_name)
        scenario = runs.get_scenario(stores.db, name=scenario_name)
        held = runs.find_inference(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
        inference = held or infer(stores, model, scenario)
        found = runs.find_evaluation(stores.db, inference_id=inference.id or 0)
        if found is None or "intervals" not in found.metrics:
            predictions = read_predictions(stores, inference)

            figures = measured(predictions, _groups(stores, scenario, predictions))

            found = found or Evaluation(inference_id=inference.id or 0)
            found.metrics = figures
            stores.db.add(found)
            stores.db.flush()
    return found.id or 0


@step()
def compare(before: str, after: str, scenario_name: str, resamples: int, seed: int) -> Compared:
    """Every metric's difference between two evaluated models, with its paired 95 % interval. Twice changes nothing.

    Other resamples or another seed make another comparison.
    """
    with open_stores() as stores:
        models = [runs.get_model(stores.db, name=name) for name in (before, after)]
        scenario = runs.get_scenario(stores.db, name=scenario_name)
        ids = {"before_id": models[0].id or 0, "after_id": models[1].id or 0, "scenario_id": scenario.id or 0}
        found = runs.find_comparison(stores.db, **ids, drawn=(resamples, seed))
        found = found or _compared(stores, models, scenario, resamples, seed)
    return Compared(comparison_id=found.id or 0, scenario=scenario_name, before=before, after=after)


def _compared(
    stores: Stores, models: Sequence[ModelVersion], scenario: Scenario, resamples: int, seed: int
) -> Comparison:
    sides = [predictions_of(stores, model, scenario) for model in models]
    groups = _groups(stores, scenario, sides[0])

    told = differences(sides[0], sides[1], groups, resamples=resamples, seed=seed)

    parts = [models[0].reference, models[1].reference, scenario.listing_sha256]
    key = f"comparisons/{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}.parquet"
    stores.objects.write(key, tables.to_bytes(told.changes))
    found = Comparison(
        before_id=models[0].id or 0,
        after_id=models[1].id or 0,
        scenario_id=scenario.id or 0,
        samples=len(sides[0].targets),
        groups=groups.groups,
        resamples=resamples,
        seed=seed,
        changes_key=key,
        summary=told.summary,
    )
    stores.db.add(found)
    stores.db.flush()
    stores.db.add_all(_delta_row(found.id or 0, delta, told.class_names) for delta in told.deltas)
    return found


def _groups(stores: Stores, scenario: Scenario, predictions: Predictions) -> Grouping:
    listing = tables.read(stores.objects, scenario.listing_key, scenario.listing_sha256)
    return grouping.within(listing, predictions.sample_ids)


def _delta_row(comparison_id: int, delta: deltas.Delta, class_names: Sequence[str]) -> MetricDelta:
    values = delta._asdict()
    target = values.pop("target")
    return MetricDelta(comparison_id=comparison_id, class_name=class_names[target] if target >= 0 else "", **values)
