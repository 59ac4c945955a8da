"""An exported dataset version is the version: the same bytes each time, whole or not there."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.corpus import Sample
from models.elements import Box, Place, element_id
from models.errors import BadInput
from models.retraining import RetrainPlan
from storage.stores import open_stores
from tasks import data_views, datasets, exporting, pixels
from tasks.compute.images import fingerprint
from tasks.datasets import Row


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


@pytest.fixture
def parts(world: Path) -> dict[str, Place]:
    """Where the images of four train samples are from now on, by sample id: members of a tar, boxes, and both."""
    data = (world / "images" / "train" / "0001.png").read_bytes()
    with tarfile.open(world / "images" / "0.tar", "w") as archive:
        for name in ("../../up.png", "same.png"):
            told = tarfile.TarInfo(name)
            told.size = len(data)
            archive.addfile(told, io.BytesIO(data))
    with tarfile.open(world / "images" / "0.tar") as archive:
        members = [
            Place(str(world / "images" / "0.tar"), one.name, one.offset_data, one.size) for one in archive.getmembers()
        ]
    boxes = [Box(2, 2, 10, 6), Box(4, 4, 20, 9)]
    places = [
        members[0],
        members[1]._replace(box=boxes[0]),
        members[1]._replace(box=boxes[1]),
        Place(str(world / "images" / "train" / "0001.png"), box=Box(0, 0, 5, 5)),
    ]
    return {element_id(fingerprint(data), place.box): place for place in places}


def listing_of(parts: dict[str, Place]) -> pa.Table:
    rows = [Row(Sample(id=sample_id, uri=place.uri), "bar") for sample_id, place in parts.items()]
    return datasets.table_of(rows, {row.sample.id: "g" for row in rows})


def test_members_and_boxes_are_copied_under_safe_names_boxes_cut_out(
    tmp_path: Path, dataset_id: int, parts: dict[str, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "read_listing", lambda *_: listing_of(parts))
    assert exporting.export_dataset(dataset_id, tmp_path / "out", images="copy").images == 4
    rows = {row["sample_id"]: row for row in pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()}
    assert {sample_id: row["uri"] for sample_id, row in rows.items()} == {key: at.uri for key, at in parts.items()}
    for sample_id, place in parts.items():
        file = tmp_path / "out" / rows[sample_id]["file"]
        assert rows[sample_id]["file"] == f"images/{sample_id[:2]}/{sample_id}.png"
        if place.box:
            with Image.open(file) as cut:
                assert cut.size == (place.box.width, place.box.height)
        else:
            assert fingerprint(file.read_bytes()) == sample_id
    with pytest.raises(BadInput, match="is no file of this machine and cannot be linked; export with images copied"):
        exporting.export_dataset(dataset_id, tmp_path / "linked", images="link")
    assert not (tmp_path / "linked").exists()


def test_boxes_are_trained_on_as_their_pixels(parts: dict[str, Place], world: Path) -> None:
    with open_stores() as stores:
        found = pixels.of_listing(stores, listing_of(parts), size=5)
        assert found.reasons == {}
        whole = Image.open(world / "images" / "train" / "0001.png").convert("RGB")
        corner = np.asarray(whole.crop((0, 0, 5, 5))).transpose(2, 0, 1)
        np.testing.assert_array_equal(found.images[3], corner)
        (world / "images" / "0.tar").write_bytes(b"cut")
        assert pixels.of_listing(stores, listing_of(parts), size=5).counted == {pixels.CHANGED: 3}
        (world / "images" / "0.tar").unlink()
        assert pixels.of_listing(stores, listing_of(parts), size=5).counted == {"missing": 3}
