"""An exported dataset version is the version: the same bytes each time, whole or not there."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from models.errors import BadInput
from models.retraining import RetrainPlan
from tasks import data_views, datasets, exporting
from tasks.compute.images import fingerprint


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def dataset_id(world: Path) -> int:
    return datasets.freeze_dataset(RetrainPlan(corpora=["train"]))


def test_every_format_holds_the_same_rows_and_the_same_version_the_same_bytes(tmp_path: Path, dataset_id: int) -> None:
    found = {}
    for kind in ("parquet", "csv", "jsonl"):
        out = tmp_path / "out" / kind
        first = exporting.export_dataset(dataset_id, out, format=kind)  # type: ignore[arg-type]
        assert (first.samples, first.images, first.reused) == (88, 0, False)
        before = tree(out)
        assert exporting.export_dataset(dataset_id, out, format=kind).reused  # type: ignore[arg-type]
        exporting.export_dataset(dataset_id, tmp_path / "again" / kind, format=kind)  # type: ignore[arg-type]
        assert before == tree(out) == tree(tmp_path / "again" / kind)
        assert set(before) == {"dataset.json", f"samples.{kind}"}
        file = out / f"samples.{kind}"
        if kind == "parquet":
            found[kind] = pq.read_table(file).to_pylist()
        elif kind == "csv":
            found[kind] = list(csv.DictReader(file.read_text().splitlines()))
        else:
            found[kind] = [json.loads(line) for line in file.read_text().splitlines()]
    assert found["parquet"] == found["csv"] == found["jsonl"]
    record = json.loads((tmp_path / "out" / "csv" / "dataset.json").read_text())
    assert record["class_names"] == ["bar", "square"]
    assert record["splits"] == {"train": 40, "development": 24, "holdout": 24}
    assert record["classes"]["train"] == {"bar": 20, "square": 20}
    assert record["content_hash"] == data_views.dataset_record(dataset_id)["content_hash"]


def test_hidden_labels_are_nowhere(tmp_path: Path, dataset_id: int) -> None:
    exporting.export_dataset(dataset_id, tmp_path / "x", images="copy", hide_labels=True)
    rows = pq.read_table(tmp_path / "x" / "samples.parquet").to_pylist()
    assert {row["class_name"] for row in rows if row["split"] == "holdout"} == {""}
    assert {row["class_name"] for row in rows if row["split"] != "holdout"} == {"bar", "square"}
    assert json.loads((tmp_path / "x" / "dataset.json").read_text())["classes"]["holdout"] == {"": 24}
    assert not [path for path in (tmp_path / "x").rglob("*") if "bar" in path.name or "square" in path.name]


def test_images_come_along_copied_or_linked(tmp_path: Path, dataset_id: int) -> None:
    assert exporting.export_dataset(dataset_id, tmp_path / "copy", images="copy").images == 88
    exporting.export_dataset(dataset_id, tmp_path / "link", images="link")
    for kind in ("copy", "link"):
        rows = pq.read_table(tmp_path / kind / "samples.parquet").to_pylist()
        for row in rows:
            file = tmp_path / kind / row["file"]
            assert fingerprint(file.read_bytes()) == row["sample_id"]
            assert file.is_symlink() == (kind == "link")


def test_a_folder_that_holds_something_else_and_images_that_are_gone_leave_nothing(
    tmp_path: Path, world: Path, dataset_id: int
) -> None:
    (tmp_path / "mine").mkdir()
    exporting.export_dataset(dataset_id, tmp_path / "mine")  # an empty folder is as good as none
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    for folder in ("other", "mine", "other/thesis.txt"):
        with pytest.raises(BadInput, match=r"holds something else|is no folder"):
            exporting.export_dataset(dataset_id, tmp_path / folder, format="csv")
    (world / "images" / "train" / "0001.png").unlink()
    (world / "images" / "train" / "0002.png").write_bytes(b"changed")
    with pytest.raises(BadInput, match="2 of 88 images cannot be exported"):
        exporting.export_dataset(dataset_id, tmp_path / "gone", images="copy")
    with pytest.raises(BadInput, match="1 of 88 images cannot be exported"):
        exporting.export_dataset(dataset_id, tmp_path / "gone", images="link")
    assert not [path.name for path in tmp_path.iterdir() if "gone" in path.name]
    with pytest.raises(BadInput, match="there is no dataset version 77; see: dipnet dataset list"):
        exporting.export_dataset(77, tmp_path / "x")


def test_what_changed_between_two_versions_is_told(world: Path, dataset_id: int) -> None:
    from sqlalchemy import text

    from storage.stores import open_stores

    with open_stores() as stores:
        (first, second) = stores.db.connection().execute(text("SELECT id FROM label ORDER BY id LIMIT 2")).scalars()
        stores.db.connection().execute(text("DELETE FROM label WHERE id = :id"), {"id": first})
        stores.db.connection().execute(text("UPDATE label SET class_name = 'rare' WHERE id = :id"), {"id": second})
    later = datasets.freeze_dataset(RetrainPlan(corpora=["train"]))
    found = data_views.dataset_diff(dataset_id, later)
    assert {name: len(rows) for name, rows in found.items()} == {"added": 0, "removed": 1, "relabelled": 1, "moved": 0}
    assert found["relabelled"][0]["after"] == "rare"
    assert len(data_views.dataset_diff(later, dataset_id)["added"]) == 1
    assert [row["dataset"] for row in data_views.dataset_rows()] == [dataset_id, later]
