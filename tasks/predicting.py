"""A model's answers on a scenario, computed once and kept."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.errors import BadInput
from models.learning import InferenceSet, ModelVersion, Scenario
from storage import runs, tables
from storage.stores import Stores
from tasks.trainers.protocol import PROBABILITY, Answers
from tasks.trainers.registry import trainer_of


class Predictions(NamedTuple):
    """A model's answers on a scenario, as places in one list of class names; probabilities stay in the file."""

    class_names: list[str]  # of the scenario and of the answers
    sample_ids: list[str]  # (n,)
    targets: NDArray[np.int64]  # (n,)
    predicted: NDArray[np.int64]  # (n,)
    scored: list[str]  # classes that have probabilities, in the model's order; empty: the model gave none
    stored: pq.ParquetFile

    def read_probability(self, class_name: str) -> NDArray[np.float32] | None:
        """Probabilities (n,) of a class: zeros where the model does not know it, None where it gave none of any class.

        One column is read at a time, so that a million rows of a hundred classes need no more memory than ten classes.
        """
        if not self.scored:
            return None
        if class_name not in self.scored:
            return np.zeros(len(self.sample_ids), np.float32)
        name = f"{PROBABILITY}{class_name}"
        found = self.stored.read(columns=[name]).column(name)  # p:a brings p:a.b along
        return np.asarray(found.to_numpy(), dtype=np.float32)


def read_predictions(stores: Stores, inference: InferenceSet) -> Predictions:
    """A model's stored answers. Raises CorruptData when they are not what was written."""
    return of_parquet(_opened(stores, inference))


def of_parquet(stored: pq.ParquetFile) -> Predictions:
    """Predictions in a file that lies as `InferenceSet.predictions_key` says."""
    table = stored.read(columns=["sample_id", "class_name", "predicted"])
    known, said = table.column("class_name"), table.column("predicted")
    class_names = sorted({*pc.unique(known).to_pylist(), *pc.unique(said).to_pylist()})
    return Predictions(
        class_names,
        table.column("sample_id").to_pylist(),
        _places(known, class_names),
        _places(said, class_names),
        [name.removeprefix(PROBABILITY) for name in stored.schema_arrow.names if name.startswith(PROBABILITY)],
        stored,
    )


def _opened(stores: Stores, inference: InferenceSet) -> pq.ParquetFile:
    """The file, checked where its checksum is known."""
    key = inference.predictions_key
    if not inference.predictions_sha256:  # made before 0.4
        return tables.open_parquet(stores.objects.read(key))
    return stores.cache.use(stores.objects, key, inference.predictions_sha256, tables.open_parquet)


def _places(names: pa.ChunkedArray, class_names: list[str]) -> NDArray[np.int64]:
    """Names (n,) as places in class_names."""
    found = pc.index_in(names, value_set=pa.array(class_names, pa.string()))
    return np.asarray(found.to_numpy(), dtype=np.int64)


def infer(stores: Stores, model: ModelVersion, scenario: Scenario) -> InferenceSet:
    """Have a model answer for every sample of a scenario, and store the answers with their probabilities.

    An image that cannot be read counts: all classes are equally probable, so that the first is the answer.
    """
    listing = tables.read(stores.objects, scenario.listing_key, scenario.listing_sha256)
    training = runs.training_of(stores.db, model=model)
    trainer = trainer_of(training.trainer)
    stores.db.commit()  # nobody waits for the database while images are read

    answers = trainer.predict(stores, model, training, listing)
    stores.db.commit()  # SQLite refuses to write on top of an old view

    key = stored_key(model, scenario)
    inference = InferenceSet(
        model_id=model.id or 0,
        scenario_id=scenario.id or 0,
        predictions_key=key,
        predictions_sha256=stores.objects.write(
            key, tables.to_bytes(stored_table(listing, answers, model.class_names))
        ),
        source=trainer.source,
        unreadable=dict(Counter(answers.reasons.values())),
    )
    stores.db.add(inference)
    stores.db.flush()
    return inference


def stored_key(model: ModelVersion, scenario: Scenario) -> str:
    """Where a model's answers on a scenario go. No two models share a file, nor two scenarios.

    The same weights may name other classes, and an image that could be read once may not be readable again.
    """
    parts = [model.reference, model.class_names, model.weights_sha256]
    parts += [scenario.reference, scenario.listing_sha256]
    return f"inference/{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.parquet"


def stored_table(listing: pa.Table, answers: Answers, class_names: list[str]) -> pa.Table:
    """Answers about a listing's rows as they are stored. A row of which nothing was seen says why."""
    names = pa.array(class_names, pa.string())
    columns = {
        "sample_id": listing.column("sample_id"),
        "class_name": listing.column("class_name"),
        "predicted": names.take(pa.array(answers.predicted)),
    }
    if answers.reasons:
        columns["unreadable"] = pa.array([answers.reasons.get(row, "") for row in range(listing.num_rows)], pa.string())
    if answers.probabilities is not None:
        columns |= {
            f"{PROBABILITY}{name}": pa.array(answers.probabilities[:, place]) for place, name in enumerate(class_names)
        }
    return pa.table(columns)


def predictions_of(stores: Stores, model: ModelVersion, scenario: Scenario) -> Predictions:
    inference = runs.find_inference(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
    if inference is None:
        raise BadInput(
            f"model '{model.reference}' was not evaluated on '{scenario.name}'; do so with: "
            f"dipnet evaluate {model.reference} --scenario {scenario.name}"
        )
    return read_predictions(stores, inference)
