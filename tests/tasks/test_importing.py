"""Predictions from outside: taken whole, told what is wrong, and the same file twice is one model."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from sqlmodel import func, select

from models.errors import BadInput, Incompatible, NotFound
from models.learning import InferenceSet, ModelVersion, Scenario, TrainingRun
from models.outcomes import Imported
from models.retraining import PredictionsPlan
from storage import runs, tables
from storage.stores import open_stores
from tasks import evaluating, importing, scenarios
from tasks.predicting import predictions_of


@pytest.fixture
def listing(world: Path) -> pa.Table:
    """The samples of scenario dev."""
    scenarios.freeze_scenario("dev", ["dev"])
    with open_stores() as stores:
        return tables.from_bytes(stores.objects.read(runs.get_scenario(stores.db, name="dev").listing_key))


@pytest.fixture
def sound(listing: pa.Table) -> pa.Table:
    """What a model that is always right, and never quite sure, says about them; rows in another order."""
    bars = np.asarray([name == "bar" for name in listing.column("class_name").to_pylist()])
    table = pa.table(
        {
            "sample_id": listing.column("sample_id"),
            "class_name": listing.column("class_name"),
            "p:bar": np.where(bars, 0.75, 0.25),
            "p:square": np.where(bars, 0.25, 0.75),
        }
    )
    return table.take(np.arange(len(bars))[::-1])


def take(file: Path, model: str = "elsewhere", **more: object) -> Imported:
    return importing.import_predictions(
        PredictionsPlan(file=str(file), model=model, scenarios=["dev"], **more)  # type: ignore[arg-type]
    )


def counts() -> list[int]:
    with open_stores() as stores:
        kinds = (TrainingRun, ModelVersion, InferenceSet)
        return [stores.db.exec(select(func.count()).select_from(kind)).one() for kind in kinds]


def write_parquet(table: pa.Table, file: Path) -> Path:
    pq.write_table(table, file)
    return file


def write_csv(table: pa.Table, file: Path) -> Path:
    pa.csv.write_csv(table, file)
    return file


def write_lines(table: pa.Table, file: Path) -> Path:
    file.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    return file


WRITERS = {"a.parquet": write_parquet, "a.csv": write_csv, "a.jsonl": write_lines}


@pytest.mark.parametrize("name", WRITERS)
def test_a_sound_file_of_each_kind_is_taken_once(sound: pa.Table, listing: pa.Table, tmp_path: Path, name: str) -> None:
    file = WRITERS[name](sound, tmp_path / name)
    first = take(file)
    assert (first.stored, first.reused, first.version, first.rows, first.problems) == (True, False, 1, 24, [])
    assert counts() == [1, 1, 1]
    assert take(file) == first.model_copy(update={"reused": True})
    assert counts() == [1, 1, 1]
    evaluating.evaluate("elsewhere", "dev")
    with open_stores() as stores:
        model, scenario = runs.get_model(stores.db, name="elsewhere"), runs.get_scenario(stores.db, name="dev")
        found = predictions_of(stores, model, scenario)
        assert found.sample_ids == listing.column("sample_id").to_pylist()
        assert (found.predicted == found.targets).all()
        share = found.read_probability("bar")
        assert share is not None
        assert share.tolist() == [0.75 if place == 0 else 0.25 for place in found.targets.tolist()]
        assert runs.training_of(stores.db, model=model).trainer == "imported"


@pytest.mark.parametrize("column", ["uri", "key"])
def test_samples_may_be_named_by_where_they_are(
    world: Path, sound: pa.Table, listing: pa.Table, tmp_path: Path, column: str
) -> None:
    uris = dict(zip(listing.column("sample_id").to_pylist(), listing.column("uri").to_pylist(), strict=True))
    names = [uris[sample_id] for sample_id in sound.column("sample_id").to_pylist()]
    if column == "key":
        names = [name.removeprefix(f"{world}/images/dev/") for name in names]
        assert names[0].count("/") == 0
    named = sound.drop_columns(["sample_id"]).append_column(column, pa.array(names))
    assert take(write_parquet(named, tmp_path / "a.parquet")).stored


def test_classes_alone_and_probabilities_alone_are_enough(sound: pa.Table, tmp_path: Path) -> None:
    take(write_parquet(sound.select(["sample_id", "class_name"]), tmp_path / "a.parquet"), "classes")
    bare = sound.drop_columns(["class_name"]).rename_columns(["sample_id", "bar", "square"])
    take(write_csv(bare, tmp_path / "b.csv"), "shares")
    for model in ("classes", "shares"):
        evaluating.evaluate(model, "dev")
    with open_stores() as stores:
        scenario = runs.get_scenario(stores.db, name="dev")
        classes = predictions_of(stores, runs.get_model(stores.db, name="classes"), scenario)
        shares = predictions_of(stores, runs.get_model(stores.db, name="shares"), scenario)
    assert classes.read_probability("bar") is None
    assert shares.scored == ["bar", "square"]
    assert (classes.predicted == shares.predicted).all()


def damaged(change: Callable[[list[dict[str, object]]], None], table: pa.Table) -> pa.Table:
    rows = table.to_pylist()
    change(rows)
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize("name", ["champion", "none"])
def test_a_model_is_not_called_what_means_another(sound: pa.Table, tmp_path: Path, name: str) -> None:
    file = write_parquet(sound, tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=f"'{name}' has a meaning of its own"):
        take(file, name)
    with pytest.raises(ValidationError, match="model"):
        take(file, "elsewhere@2")
    assert counts() == [0, 0, 0]


def test_a_file_without_rows_misses_every_sample(sound: pa.Table, tmp_path: Path) -> None:
    for columns in (["sample_id", "class_name"], ["sample_id", "p:bar", "p:square"]):
        with pytest.raises(importing.Refused, match="24 missing; predict every sample"):
            take(write_parquet(sound.slice(0, 0).select(columns), tmp_path / "a.parquet"))
    assert counts() == [0, 0, 0]


@pytest.mark.parametrize("version", ["2", "0", "-1", "9999999999", "99999999999999999999999", "9" * 5_000, "²", "x"])
def test_a_version_that_there_is_not_is_not_found(sound: pa.Table, tmp_path: Path, version: str) -> None:
    take(write_parquet(sound, tmp_path / "a.parquet"))
    with open_stores() as stores:
        assert runs.get_model(stores.db, name="elsewhere@1").version == 1
        for look_up, name in ((runs.get_model, "elsewhere"), (runs.get_scenario, "dev")):
            with pytest.raises(NotFound, match=f"there is no .* '{name}@"):
                look_up(stores.db, name=f"{name}@{version}")


DAMAGES: dict[str, tuple[Callable[[list[dict[str, object]]], object], str]] = {
    "missing": (lambda rows: rows.pop(), "missing"),
    "extra": (lambda rows: rows.append({**rows[0], "sample_id": "f" * 64}), "extra"),
    "no id": (lambda rows: rows.append({**rows[0], "sample_id": None}), "extra"),
    "twice, otherwise": (
        lambda rows: rows.append({**rows[3], "p:bar": 0.5, "p:square": 0.5}),
        "contradictory duplicate",
    ),
    "NaN": (lambda rows: rows[2].update({"p:bar": float("nan")}), "NaN or empty probability"),
    "empty": (lambda rows: rows[2].update({"p:bar": None}), "NaN or empty probability"),
    "logits": (lambda rows: rows[2].update({"p:bar": -3.0, "p:square": 4.0}), "negative probability"),
    "infinite": (lambda rows: rows[2].update({"p:bar": float("inf")}), "infinite probability"),
    "sum": (lambda rows: rows[2].update({"p:bar": 0.9, "p:square": 0.9}), "sum is not 1"),
    "zero": (lambda rows: rows[2].update({"p:bar": 0.0, "p:square": 0.0}), "sum is 0"),
    "class": (lambda rows: rows[2].update({"class_name": "circle"}), "unknown class"),
    "argmax": (lambda rows: rows[2].update({"p:bar": 0.01, "p:square": 0.99, "class_name": "bar"}), "most probable"),
    "column": (lambda rows: [row.update({"p:circle": 0.0}) for row in rows], "unknown class"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_wrong_is_told_and_nothing_is_stored(sound: pa.Table, tmp_path: Path, damage: str) -> None:
    change, kind = DAMAGES[damage]
    file = write_parquet(damaged(change, sound), tmp_path / "a.parquet")  # type: ignore[arg-type]
    with pytest.raises(importing.Refused, match=kind) as refused:
        take(file)
    problem = next(one for one in refused.value.report.problems if kind in one.kind)
    assert problem.rows == (25 - len(refused.value.report.problems) if damage == "column" else 1)
    assert problem.examples
    assert counts() == [0, 0, 0]


def test_what_a_person_allows_is_taken_and_told_all_the_same(sound: pa.Table, tmp_path: Path) -> None:
    rows = sound.to_pylist()
    rows[2].update({"p:bar": rows[2]["p:bar"] * 2, "p:square": rows[2]["p:square"] * 2})
    rows += [{**rows[0], "sample_id": "f" * 64}, rows[5]]
    file = write_parquet(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(importing.Refused, match="1 extra; 1 sum is not 1"):
        take(file)
    found = take(file, normalise=True, allow_extra=True)
    assert [(one.kind, one.rows, one.allowed) for one in found.problems] == [
        ("extra", 1, True),
        ("duplicate", 1, True),
        ("sum is not 1", 1, True),
    ]
    with open_stores() as stores:
        scenario = runs.get_scenario(stores.db, name="dev")
        stored = predictions_of(stores, runs.get_model(stores.db, name="elsewhere"), scenario)
    shares = [stored.read_probability(name) for name in ("bar", "square")]
    np.testing.assert_allclose(np.sum(shares, axis=0), 1.0, atol=1e-6)


def test_other_content_is_the_next_version_and_another_scenario_is_not(sound: pa.Table, tmp_path: Path) -> None:
    scenarios.freeze_scenario("light", ["dev"], "tone = 'light'")
    file = write_parquet(sound, tmp_path / "a.parquet")
    assert take(file).version == 1
    more = PredictionsPlan(file=str(file), model="elsewhere", scenarios=["light"], allow_extra=True)
    found = importing.import_predictions(more)
    assert (found.version, found.reused, found.scenarios) == (1, False, {"light@1": 12})
    assert counts() == [1, 1, 2]
    assert take(write_parquet(sound.slice(0).select(["sample_id", "class_name"]), tmp_path / "b.parquet")).version == 2


def test_a_model_from_outside_says_nothing_about_other_samples(sound: pa.Table, tmp_path: Path) -> None:
    take(write_parquet(sound, tmp_path / "a.parquet"))
    scenarios.freeze_scenario("held", ["held"])
    with pytest.raises(Incompatible, match="dipnet predictions import"):
        evaluating.evaluate("elsewhere", "held")


HOSTILE = {
    "text.parquet": b"this is no table",
    "cut.parquet": b"PAR1\x00\x00\x00\x00\xff\xff\xff\x7fPAR1",
    "empty.csv": b"",
    "ragged.csv": b"sample_id,class_name\na,bar,more,and more\n",
    "word.csv": b"sample_id,p:bar\na,much\n",
    "twice.csv": b"sample_id,class_name,class_name\na,bar,bar\n",
    "latin.csv": b"sample_id,class_name\n\xff\xfe,bar\n",
    "no-key.csv": b"class_name\nbar\n",
    "no-answer.csv": b"sample_id,colour\na,red\n",
    "cut.jsonl": b'{"sample_id": "a", "class_name": ',
    "list.jsonl": b"[1, 2, 3]\n",
    "nested.jsonl": b'{"sample_id": {"a": 1}, "class_name": ["bar"]}\n',
    "a.pickle": b"\x80\x04.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_table_of_predictions_is_refused_in_one_line(listing: pa.Table, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(HOSTILE[name])
    with pytest.raises(BadInput) as error:
        take(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) or "not taken" in str(error.value)
    assert len(str(error.value)) < 600
    assert counts() == [0, 0, 0]


def test_class_names_with_dots_and_commas_keep_their_own_columns(world: Path, tmp_path: Path) -> None:
    names = ["a", "a.b", "p:a", "key"]
    with open_stores() as stores:
        table = pa.table({"sample_id": list("wxyz"), "class_name": names, "uri": list("wxyz"), "shard_id": [1] * 4})
        sha256 = stores.objects.write("odd.parquet", tables.to_bytes(table))
        stores.db.add(Scenario(name="dev", listing_key="odd.parquet", listing_sha256=sha256, samples=4))
    shares = {f"p:{name}": np.eye(4)[place] * 0.6 + 0.1 for place, name in enumerate(names)}
    assert take(write_parquet(pa.table({"sample_id": list("wxyz"), **shares}), tmp_path / "a.parquet")).stored
    with open_stores() as stores:
        scenario = runs.get_scenario(stores.db, name="dev")
        found = predictions_of(stores, runs.get_model(stores.db, name="elsewhere"), scenario)
        assert (found.predicted == found.targets).all()
        for place, name in enumerate(names):
            share = found.read_probability(name)
            assert share is not None
            np.testing.assert_allclose(share, np.eye(4)[place] * 0.6 + 0.1, atol=1e-6)
