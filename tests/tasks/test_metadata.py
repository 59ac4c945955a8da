"""What people wrote about images: four kinds of files, oddities counted, hostile ones refused in a line."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from models.errors import BadInput
from models.plans import IngestPlan
from models.retraining import RetrainPlan
from models.values import Ingested
from storage import corpora, tables
from storage.stores import open_stores
from tasks import data_views, datasets, embedding, ingesting, metadata

Draw = Callable[..., Path]


def coco(images: object, annotations: object, categories: object) -> bytes:
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()


def image(number: object, name: object) -> dict[str, object]:
    return {"id": number, "file_name": name, "width": 28, "license": {"deep": []}}


def said(about: object, category: object) -> dict[str, object]:
    return {"id": 1, "image_id": about, "category_id": category, "bbox": [0, 0, 1, 1]}


CATEGORIES = [{"id": 1, "name": "bar", "supercategory": "x"}, {"id": 2, "name": "square"}]


def add(name: str, folder: Path, **more: str) -> Ingested:
    wanted = IngestPlan(corpus=name, prefix=str(folder), split="train", **more)  # type: ignore[arg-type]
    return ingesting.ingest(wanted)


def manifest(name: str) -> pa.Table:
    with open_stores() as stores:
        corpus = corpora.get_corpus(stores.db, name=name)
        shards = corpora.shards_of(stores.db, corpus_id=corpus.id or 0)
        return tables.concat([ingesting.read_manifest(stores, shard) for shard in shards])


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("beside", [True, False])
def test_the_same_table_in_each_form_is_the_same_manifest(draw: Draw, tmp_path: Path, kind: str, beside: bool) -> None:
    folder = draw("x", 6)
    text = (folder / "metadata.csv").read_bytes()
    table = tables.read_metadata(text, source="x.csv")
    (folder / "metadata.csv").unlink()
    file = (folder if beside else tmp_path) / f"metadata.{kind}"
    if kind == "csv":
        file.write_bytes(text)
    elif kind == "parquet":
        file.write_bytes(tables.to_bytes(table.set_column(1, "class_name", table.column(1).dictionary_encode())))
    else:
        file.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    found = add("x", folder, label_column="class_name", metadata="" if beside else str(file))
    assert (found.images, found.findings) == (6, {})
    assert manifest("x").column("class_name").to_pylist() == ["square", "bar"] * 3
    assert manifest("x").column("tone").to_pylist() == ["dark", "dark", "light", "light", "dark", "dark"]


def test_two_tables_beside_the_images_are_refused_unless_one_is_named(draw: Draw) -> None:
    folder = draw("x", 4)
    (folder / "metadata.jsonl").write_text('{"file_name": "0000.png", "class_name": "other"}\n')
    with pytest.raises(BadInput, match=r"has metadata\.csv and metadata\.jsonl; keep one"):
        add("x", folder, label_column="class_name")
    found = add("x", folder, label_column="class_name", metadata=str(folder / "metadata.jsonl"))
    assert found.findings == {"images without a row": 3}


def test_coco_is_a_class_an_image_and_its_oddities_are_counted(draw: Draw, tmp_path: Path) -> None:
    folder = draw("x", 6)
    (folder / "metadata.csv").unlink()
    images = [image(number, f"{number:04d}.png") for number in range(5)] + [image("5", "gone.png")]
    annotations = [
        said(0, 2), said(0, 2),  # twice the same is one class
        said(1, 1), said(1, 2),  # two classes
        said(2, 2), said(3, 1),
        said(99, 1), said(True, 1), said("0", 1), said(None, 1), said([0], 1),  # images that are not there
        said(2, 7), said(2, None),  # categories that are not there
    ]  # fmt: skip
    file = tmp_path / "coco.json"
    file.write_bytes(coco(images, annotations, CATEGORIES))
    found = add("x", folder, label_column="category", metadata=str(file))
    assert found.findings == {
        "images of several categories": 1,
        "images without a category": 2,
        "annotations of unknown images": 5,
        "annotations of unknown categories": 2,
        "rows about no image that is there": 1,
        "images without a row": 1,
    }
    assert manifest("x").column("category").to_pylist() == ["square", None, "square", "bar", None, None]
    embedding.embed_shards(embedding.pending_shards("x", ""), "", 16)
    number = datasets.freeze_dataset(RetrainPlan(corpora=["x"]))
    assert data_views.dataset_record(number)["classes"] == {"bar": 1, "square": 2}
    again = add("x", folder, label_column="category", metadata=str(file))
    assert (again.new_images, again.findings) == (0, found.findings)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"images": ' + b"9" * 10_000 + b"}", r"is no JSON|has no list"),
        (b"[]", "has no list 'images' of objects"),
        (coco({}, [], []), "has no list 'images' of objects"),
        (coco([], [1], []), "has no list 'annotations' of objects"),
        (coco([], [], None), "has no list 'categories' of objects"),
        (coco([image(1, "a"), image(1, "b")], [], []), "has two of image 1; keep one"),
        (coco([image(1, "a"), image(2, "./a")], [], []), "names a file twice"),
        (coco([image(1, 5)], [], []), "has a image without an id or a file_name"),
        (coco([image([1], "a")], [], []), "has a image without an id or a file_name"),
        (coco([image(True, "a")], [], []), "has a image without an id"),
        (coco([], [], [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "has two of category 1"),
        (coco([], [], [{"id": 1, "name": ""}]), "has a category without an id or a name"),
    ],
)
def test_what_is_no_coco_is_one_clear_line(data: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        metadata.read(data, source="coco.json")


def parquet(**columns: object) -> bytes:
    return tables.to_bytes(pa.table(columns))


@pytest.mark.parametrize(
    ("data", "source", "says"),
    [
        (b"PAR1nonsense", "m.parquet", "is no table in Parquet"),
        (parquet(file_name=["a"])[:-20], "m.parquet", "is no table in Parquet"),
        (parquet(name=["a"]), "m.parquet", "has no column file_name"),
        (parquet(file_name=["a", "a"]), "m.parquet", "names a file twice"),
        (parquet(file_name=["a"], sample_id=["x"]), "m.parquet", "reserved column sample_id"),
        (parquet(file_name=["a"], boxes=[[1, 2]]), "m.parquet", r"column boxes of 'm.parquet' holds list"),
        (parquet(file_name=["a"], raw=[b"\xff"]), "m.parquet", "column raw of 'm.parquet' holds binary"),
        (b'{"file_name": "a", "x": {"y": 1}}\n', "m.jsonl", "column x of 'm.jsonl' holds struct"),
        (b'{"file_name": "a"', "m.jsonl", "is no table in JSON lines"),
        (b"\xff\xff\xff", "m.jsonl", "is no table in JSON lines"),
        (b"", "m.jsonl", "is no table in JSON lines"),
        (b'{"file_name": ["a"]}\n', "m.jsonl", "column file_name of 'm.jsonl' holds list"),
        (b"x", "m.xlsx", "is no metadata that dipnet can read"),
    ],
)
def test_what_is_no_table_is_one_clear_line(data: bytes, source: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        metadata.read(data, source=source)


def test_numbers_and_nothing_but_nulls_are_kept() -> None:
    found = metadata.read(b'{"file_name": "a", "n": 1, "x": null}\n{"file_name": "b", "n": 2.5}\n', source="m.jsonl")
    assert found.table.to_pydict() == {"file_name": ["a", "b"], "n": [1.0, 2.5], "x": [None, None]}
