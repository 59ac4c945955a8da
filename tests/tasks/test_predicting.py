"""Stored predictions: what was written is what is read, with probabilities where the model gave some."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sqlmodel import col, select

from models.errors import CorruptData
from models.learning import InferenceSet
from models.retraining import RetrainPlan
from storage import runs, tables
from storage.stores import open_stores
from tasks import datasets, evaluating, learning, scenarios
from tasks.predicting import read_predictions


@pytest.fixture
def evaluated(world: Path) -> InferenceSet:
    """The predictions of a model on the development corpus."""
    wanted = RetrainPlan(model="m", corpora=["train"])
    learning.fit(datasets.freeze_dataset(wanted), wanted)
    scenarios.freeze_scenario("dev", ["dev"])
    evaluating.evaluate("m", "dev")
    with open_stores() as stores:
        model, scenario = runs.get_model(stores.db, name="m"), runs.get_scenario(stores.db, name="dev")
        found = runs.find_inference(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
        assert found is not None
        return found


def test_probabilities_are_read_by_class_and_agree_with_the_answers(evaluated: InferenceSet) -> None:
    with open_stores() as stores:
        found = read_predictions(stores, evaluated)
    columns = [found.read_probability(name) for name in found.scored]
    probabilities = np.stack([column for column in columns if column is not None], axis=1)
    assert found.scored == found.class_names == ["bar", "square"]
    assert probabilities.shape == (24, 2)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), found.predicted)
    unknown = found.read_probability("a class that the model does not know")
    assert unknown is not None
    assert not unknown.any()


def test_answers_without_probabilities_are_read_too(evaluated: InferenceSet) -> None:
    with open_stores() as stores:
        table = tables.from_bytes(stores.objects.read(evaluated.predictions_key))
        bare = table.select(["sample_id", "class_name", "predicted"])
        sha256 = stores.objects.write("bare.parquet", tables.to_bytes(bare))
        found = read_predictions(stores, InferenceSet(predictions_key="bare.parquet", predictions_sha256=sha256))
        assert found.scored == []
        assert found.read_probability("bar") is None
        assert found.sample_ids == table.column("sample_id").to_pylist()
        assert [found.class_names[place] for place in found.targets] == table.column("class_name").to_pylist()
        renamed = table.set_column(1, "class_name", pa.array(["other"] * table.num_rows))
        stores.objects.write("old.parquet", tables.to_bytes(renamed))
        assert read_predictions(stores, InferenceSet(predictions_key="old.parquet")).class_names == [
            "bar",
            "other",
            "square",
        ]


def test_models_of_the_same_bits_that_name_other_classes_keep_their_own_answers(
    world: Path, evaluated: InferenceSet
) -> None:
    """Whether two fits have the same bits is up to the data; here one model's weights are given to another."""
    wanted = RetrainPlan(model="n", corpora=["train"])
    learning.fit(datasets.freeze_dataset(wanted), wanted)
    scenarios.freeze_scenario("same", ["dev"])
    with open_stores() as stores:
        one, other = (runs.get_model(stores.db, name=name) for name in ("m", "n"))
        other.weights_key, other.weights_sha256 = one.weights_key, one.weights_sha256
        other.class_names = ["bar", "zquare"]
        stores.db.add(other)
    for name, scenario in (("n", "dev"), ("m", "same")):
        evaluating.evaluate(name, scenario)
    with open_stores() as stores:
        found = stores.db.exec(select(InferenceSet).order_by(col(InferenceSet.id))).all()
        assert [read_predictions(stores, one).scored for one in found] == [
            ["bar", "square"],
            ["bar", "zquare"],
            ["bar", "square"],
        ]
        assert len({one.predictions_key for one in found}) == 3


def test_predictions_that_were_changed_on_disk_are_refused(evaluated: InferenceSet, house: Path) -> None:
    file = house / evaluated.predictions_key
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CorruptData, match="is not what was written"), open_stores() as stores:
        read_predictions(stores, evaluated)
