"""A model's answers on a scenario, computed once and kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.corpus import EncoderSpec
from models.errors import BadInput
from models.learning import InferenceSet, ModelVersion, Scenario
from storage import runs, tables
from storage.objects import verified
from storage.stores import Stores
from tasks import features, heads
from tasks.compute import classifier


class Predictions(NamedTuple):
    """A model's answers on a scenario, as places in one list of class names."""

    class_names: list[str]
    sample_ids: list[str]  # (n,)
    targets: NDArray[np.int64]  # (n,)
    predicted: NDArray[np.int64]  # (n,)


def read_predictions(stores: Stores, inference: InferenceSet) -> Predictions:
    """A model's stored answers."""
    table = tables.from_bytes(stores.objects.read(inference.predictions_key))
    known, said = table.column("class_name").to_pylist(), table.column("predicted").to_pylist()
    class_names = sorted({*known, *said})
    return Predictions(
        class_names,
        table.column("sample_id").to_pylist(),
        classifier.as_targets(known, class_names),
        classifier.as_targets(said, class_names),
    )


def infer(stores: Stores, model: ModelVersion, scenario: Scenario) -> InferenceSet:
    """Predict every sample of a scenario and store the answers with their probabilities."""
    listing = tables.from_bytes(verified(stores.objects, scenario.listing_key, scenario.listing_sha256))
    encoder = stores.db.get_one(EncoderSpec, runs.training_of(stores.db, model=model).encoder_id)

    inputs = features.of_listing(stores, listing, encoder)
    found = classifier.probabilities(heads.load(stores, model), inputs)

    said = [model.class_names[place] for place in found.argmax(axis=1).tolist()]
    table = pa.table(
        {
            "sample_id": listing.column("sample_id"),
            "class_name": listing.column("class_name"),
            "predicted": pa.array(said, pa.string()),
            **{f"p:{name}": pa.array(found[:, place]) for place, name in enumerate(model.class_names)},
        }
    )
    key = f"inference/{model.weights_sha256[:16]}-{scenario.listing_sha256[:16]}.parquet"
    inference = InferenceSet(
        model_id=model.id or 0,
        scenario_id=scenario.id or 0,
        predictions_key=key,
        predictions_sha256=stores.objects.write(key, tables.to_bytes(table)),
    )
    stores.db.add(inference)
    stores.db.flush()
    return inference


def predictions_of(stores: Stores, model: ModelVersion, scenario: Scenario) -> Predictions:
    inference = runs.find_inference(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
    if inference is None:
        raise BadInput(
            f"model '{model.name}' was not evaluated on '{scenario.name}'; do so with: "
            f"dipnet evaluate {model.name} --scenario {scenario.name}"
        )
    return read_predictions(stores, inference)
