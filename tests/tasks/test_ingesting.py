"""Corpora from folders, S3, lists, tars and boxes: only what is new is added, what is gone is marked, nothing is believed."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.elements import Box, Place
from models.errors import BadInput, Unavailable
from models.plans import IngestPlan
from models.values import Ingested
from storage import corpora, reading, tables
from storage.objects import open_store
from storage.stores import Stores, open_stores
from tasks import embedding, ingesting, sources, vanished, views

Draw = Callable[..., Path]
PNG = b"\x89PNG"


def add(name: str, prefix: Path | str, **more: str) -> Ingested:
    return ingesting.ingest(IngestPlan(corpus=name, prefix=str(prefix), **more))  # type: ignore[arg-type]


def manifests(name: str) -> list[pa.Table]:
    with open_stores() as stores:
        corpus = corpora.get_corpus(stores.db, name=name)
        shards = corpora.shards_of(stores.db, corpus_id=corpus.id or 0)
        return [ingesting.read_manifest(stores, shard) for shard in shards]


def manifest(name: str) -> pa.Table:
    return tables.concat(manifests(name))


def keys(name: str) -> list[str]:
    found: list[str] = manifest(name).column("key").to_pylist()
    return found


def places(name: str) -> tuple[list[Place], list[str]]:
    with open_stores() as stores:
        return sources.places_of(stores, corpora.get_corpus(stores.db, name=name), manifest(name))


def gone(name: str) -> list[str]:
    """Keys of what vanished."""

    def of(stores: Stores) -> list[str]:
        corpus = corpora.get_corpus(stores.db, name=name)
        rows = vanished.rows_of(stores, corpus)
        found = []
        for shard in corpora.shards_of(stores.db, corpus_id=corpus.id or 0):
            table = ingesting.read_manifest(stores, shard)
            found += [table.column("key")[row].as_py() for row in rows.get(shard.id or 0, ())]
        assert corpus.vanished == len(found)
        return found

    with open_stores() as stores:
        return of(stores)


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def png(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.new("L", (28, 28), 50 * shade).save(sink, "PNG")
    return sink.getvalue()


def tar(file: Path, members: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=kind) as opened:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            opened.addfile(about, io.BytesIO(data))
    return file


def read(name: str, **access: Any) -> list[bytes | str]:
    """What lies at the places of a corpus."""
    return list(reading.read_ahead(*places(name), reading.Access(**access)))


# What is listed


def test_what_changed_is_a_new_row_and_what_is_gone_is_marked_until_it_is_back(tmp_path: Path) -> None:
    folder = files(tmp_path / "x", "a.png", "b.png", "c/d.png")
    assert add("x", folder).new_images == 3
    (folder / "a.png").write_bytes(b"another")
    (folder / "b.png").unlink()
    found = add("x", folder)
    assert (found.images, found.new_images, found.vanished) == (4, 1, 2)
    assert gone("x") == ["a.png", "b.png"]
    assert views.corpus_record("x")["vanished"] == 2
    files(folder, "b.png")
    found = add("x", folder)  # written again: another file
    assert (found.images, found.new_images, found.vanished) == (5, 1, 2)
    shutil.move(folder / "c", tmp_path / "away")
    assert add("x", folder).vanished == 3
    shutil.move(tmp_path / "away", folder / "c")
    found = add("x", folder)
    assert (found.new_images, found.vanished) == (0, 2)
    assert add("x", folder) == found


def test_a_folder_that_is_empty_or_gone_marks_nothing(tmp_path: Path) -> None:
    folder = files(tmp_path / "x", "a.png")
    add("x", folder)
    shutil.move(folder, tmp_path / "away")
    with pytest.raises(BadInput, match="does not exist"):
        add("x", folder)
    folder.mkdir()
    with pytest.raises(BadInput, match="no images under"):
        add("x", folder)
    assert gone("x") == []


def test_files_that_cannot_be_listed_or_named_stop_nothing(tmp_path: Path) -> None:
    folder = files(tmp_path / "x", "a.png", "ä ö/b#1.PNG", "notes.txt", ".hidden/c.png", "d.tar.gz", "e.TGZ")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.tar")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "link.png").symlink_to("a.png")
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png"))).write_bytes(b"x")
    found = add("x", folder)
    assert keys("x") == ["a.png", "link.png", "ä ö/b#1.PNG"]
    assert found.findings == {
        "files with names that are no text": 1,
        "compressed tars (decompress them; members are read in place)": 2,
    }
    assert read("x") == [b"a.png", b"a.png", "ä ö/b#1.PNG".encode()]


def test_an_image_named_like_a_part_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    names = ("a.png", "a.png#xywh=0,0,1,1.png", "a.tar#member=b.png&bytes=0+9.png", "a#b.png")
    folder = files(tmp_path / "x", *names)
    (folder / "list.csv").write_text('uri\na.png\n"a.png#xywh=0,0,1,1"\na.tar#member=b.png&bytes=0+9\na#b.png\n')
    for source in (folder, folder / "list.csv"):
        found = add(f"x{source.suffix}", source)
        assert found.findings == {"names that read as parts of an image (#member=, #xywh=)": 2}
        assert sorted(keys(found.corpus)) == ["a#b.png", "a.png"]


def test_s3_lists_as_a_folder_does(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPNET_S3_ENDPOINT", s3_endpoint)
    prefix = f"s3://bucket/{tmp_path.name}"
    store = open_store(prefix, endpoint=s3_endpoint)
    for name in ("a.png", "b/c.png", "odd//d.png"):
        store.write(name, name.encode())
    packed = tar(tmp_path / "t.tar", {"1.jpg": b"one", "1.json": b'{"n": 1}', "2.jpg": b"two"})
    store.write("t.tar", packed.read_bytes())
    rows = "\n".join([f"{prefix}/a.png,red", "b/c.png,blue", f"{prefix}/t.tar,green", "./odd//d.png,grey"])
    store.write("list.csv", f"path,colour\n{rows}\n".encode())
    assert add("whole", prefix).new_images == 5
    assert add("list", f"{prefix}/list.csv").new_images == 5
    assert add("tar", f"{prefix}/t.tar").new_images == 2
    assert keys("whole") == ["a.png", "b/c.png", "odd//d.png", "t.tar/1.jpg", "t.tar/2.jpg"]
    assert read("whole", endpoint=s3_endpoint) == [b"a.png", b"b/c.png", b"odd//d.png", b"one", b"two"]
    assert read("list", endpoint=s3_endpoint) == [b"a.png", b"b/c.png", b"odd//d.png", b"one", b"two"]
    assert read("tar", endpoint=s3_endpoint) == [b"one", b"two"]
    assert manifest("list").column("colour").to_pylist() == ["red", "blue", "grey", "green", "green"]
    store.write("b/c.png", b"something else")
    found = add("whole", prefix)
    assert (found.new_images, found.vanished) == (1, 1)
    assert read("whole", endpoint=s3_endpoint)[1] == "changed since it was listed"


# Lists


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("column", ["uri", "url", "path", "image_path", "file_name"])
def test_a_list_names_images_beside_it_or_anywhere(tmp_path: Path, kind: str, column: str) -> None:
    folder = files(tmp_path / "x", "a.png", "in/0001", "b.png")
    rows = [
        {column: "a.png", "tone": "dark", "etag": None},
        {column: "./in/0001", "tone": "light", "etag": None},
        {column: str(tmp_path / "x" / "b.png"), "tone": None, "etag": "0012"},
    ]
    file = folder / f"images.{kind}"
    if kind == "csv":
        lines = [",".join(value or "" for value in row.values()) for row in rows]
        file.write_text("\n".join([",".join(rows[0]), *lines]) + "\n")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("\n".join(json.dumps(row) for row in rows))
    assert add("x", file).new_images == 3
    found = manifest("x")
    assert found.column("key").to_pylist() == ["a.png", "./in/0001", str(folder / "b.png")]
    assert found.column("etag").to_pylist() == ["", "", "0012"]
    assert found.column("tone").to_pylist() == ["dark", "light", "" if kind == "csv" else None]
    assert [place.object_uri for place in places("x")[0]][:2] == [f"{folder}/a.png", f"{folder}/in/0001"]
    assert read("x") == [b"a.png", b"in/0001", "changed since it was listed"]
    assert add("x", file).new_images == 0


def test_a_list_grows_and_shrinks(tmp_path: Path) -> None:
    file = tmp_path / "images.csv"
    file.write_text(
        "uri,etag\na.png,1\nb.png,1\nb.png,1\n,\nhere/../../c.png,1\n../d.png,1\ns3://bucket,1\nx.tar.zst,1\n"
    )
    found = add("x", file)
    assert (found.new_images, keys("x")) == (2, ["a.png", "b.png"])
    assert found.findings == {
        "rows without a place": 2,
        "places named twice (the first is used)": 1,
        "places that lead out of the list's folder": 2,
        "compressed tars (decompress them; members are read in place)": 1,
    }
    file.write_text("uri,etag\nb.png,2\nz.png,1\n")
    found = add("x", file)
    assert (found.new_images, found.vanished, gone("x")) == (2, 2, ["a.png", "b.png"])
    file.write_text("uri,etag\na.png,1\nb.png,1\nb2.png,1\n")
    assert (add("x", file).new_images, gone("x")) == (1, ["b.png", "z.png"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name\na.png\n", "has no column uri, url, path, image_path, file_name; name the images"),
        (
            "uri\nhttp://host/a.png\nHTTPS://host/b.png\na.png\n",
            r"2 places of .*'http://host/a.png'.* lie on the web; fetch",
        ),
        ("uri\ngs://bucket/a.png\n", r"1 places of .* are neither a path nor s3://bucket/key"),
        ("uri,sample_id\na.png,1\n", "uses the reserved column sample_id; rename it"),
        ("uri,uri\na.png,b.png\n", "has two columns uri; rename one"),
        ("uri\n\n", "no images under"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "images.csv").write_text(text)
    with pytest.raises(BadInput, match=says):
        add("x", tmp_path / "images.csv")


def test_a_list_in_s3_names_no_files_of_this_machine(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPNET_S3_ENDPOINT", s3_endpoint)
    open_store(f"s3://bucket/{tmp_path.name}", endpoint=s3_endpoint).write("x.csv", b"uri\n/etc/passwd\n")
    with pytest.raises(BadInput, match="are paths of this machine in a list of S3"):
        add("x", f"s3://bucket/{tmp_path.name}/x.csv")


def test_a_folder_may_be_named_like_a_list_or_a_tar(tmp_path: Path) -> None:
    for name in ("images.csv", "images.tar"):
        assert add(name.replace(".", "-"), files(tmp_path / name, "a.png")).new_images == 1


# Tars


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_rows_and_the_small_files_beside_them_are_columns(tmp_path: Path, kind: int) -> None:
    long = "d" * 90 + "/" + "e" * 90 + ".jpg"
    members = {
        "./a/1.jpg": b"one" * 500,
        "a/1.json": json.dumps({"n": 1, "ok": True, "f": 2, "deep": {"x": 1}, "key": "taken", "z": None}).encode(),
        "a/1.txt": b" a red bar\n",
        "a/1.cls": b"7",
        "a/2.left.jpg": b"two",
        "a/2.right.jpg": b"three",
        "a/2.json": json.dumps({"n": 2, "ok": "maybe", "f": 0.5, "s": "\ud800"}).encode(),
        "a/3.jpg": b"",
        "a/3.json": b"{broken",
        "a/3.txt": b"\xff",
        "readme.md": b"x" * 600,
        long: b"long",
    }
    tar(tmp_path / "x" / "0001.tar", members, kind)
    tar(tmp_path / "x" / "0002.tar", {"z.png": b"zed", "z.json": b'{"n": "text"}'}, kind)
    files(tmp_path / "x", "own.png")
    found = add("x", tmp_path / "x")
    names = ["a/1.jpg", "a/2.left.jpg", "a/2.right.jpg", "a/3.jpg", long]
    assert keys("x") == ["own.png", *(f"0001.tar/{name}" for name in names), "0002.tar/z.png"]
    assert read("x") == [b"own.png", b"one" * 500, b"two", b"three", b"", b"long", b"zed"]
    table = manifest("x")
    assert table.column("n").to_pylist() == [None, "1", "2", "2", None, None, "text"]  # a number here, text there
    assert table.column("ok").to_pylist() == [None, "true", "maybe", "maybe", None, None, None]
    assert table.column("f").to_pylist() == [None, 2.0, 0.5, 0.5, None, None, None]
    assert table.column("caption").to_pylist()[1] == "a red bar"
    assert table.column("cls").to_pylist()[1] == "7"
    assert table.column("folder").to_pylist()[1:] == ["a"] * 4 + ["d" * 90, "0002.tar"]
    assert "deep" not in table.column_names
    assert found.findings == {
        "texts about images that cannot be read": 2,
        "columns of JSON with a name of ours": 1,
    }
    assert [place.member for place in places("x")[0]] == ["", *names, "z.png"]


def test_a_tar_that_is_known_is_not_looked_into_again_and_one_that_changed_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar(tmp_path / "x" / "1.tar", {"a.jpg": b"a", "b.jpg": b"b"})
    tar(tmp_path / "x" / "2.tar", {"c.jpg": b"c"})
    (tmp_path / "about.csv").write_text("file_name,tone\n1.tar/a.jpg,dark\n2.tar/c.jpg,light\nnowhere.jpg,light\n")
    found = add("x", tmp_path / "x", metadata=str(tmp_path / "about.csv"))
    assert found.findings == {"rows about no image that is there": 1, "images without a row": 1}
    assert manifest("x").column("tone").to_pylist() == ["dark", None, "light"]
    with monkeypatch.context() as patch:
        patch.setattr("storage.archives.scan", None)
        again = add("x", tmp_path / "x", metadata=str(tmp_path / "about.csv"))
        assert (again.new_images, again.vanished, again.findings) == (0, 0, found.findings)
    tar(tmp_path / "x" / "1.tar", {"a.jpg": b"a", "b2.jpg": b"b"})
    again = add("x", tmp_path / "x")
    assert (again.new_images, again.vanished, gone("x")) == (2, 2, ["1.tar/a.jpg", "1.tar/b.jpg"])
    (tmp_path / "x" / "2.tar").unlink()
    assert gone("x") == ["1.tar/a.jpg", "1.tar/b.jpg"]
    assert (add("x", tmp_path / "x").vanished, gone("x")[-1]) == (3, "2.tar/c.jpg")


def test_a_tar_named_by_itself_or_in_a_list_is_read_in_place(tmp_path: Path) -> None:
    tar(tmp_path / "x" / "1.tar", {"a.jpg": b"a", "b.jpg": b"b"})
    (tmp_path / "x" / "list.csv").write_text(f"uri,split\n1.tar,here\n{tmp_path}/x/1.tar,there\ngone.tar,x\n")
    assert add("one", tmp_path / "x" / "1.tar").new_images == 2
    assert read("one") == [b"a", b"b"]
    found = add("list", tmp_path / "x" / "list.csv")
    assert found.findings == {"tars that are not there": 1}
    assert read("list") == [b"a", b"b"] * 2
    assert manifest("list").column("split").to_pylist() == ["here"] * 2 + ["there"] * 2


def test_a_tar_of_a_list_that_was_written_anew_gives_new_members_and_never_the_old_places(tmp_path: Path) -> None:
    tar(tmp_path / "x" / "1.tar", {"a.jpg": b"aaa", "b.jpg": b"b"})
    (tmp_path / "x" / "list.csv").write_text("uri\n1.tar\n")
    add("list", tmp_path / "x" / "list.csv")
    tar(tmp_path / "x" / "1.tar", {"b.jpg": b"b", "a.jpg": b"aaa"})
    assert read("list") == ["changed since it was listed"] * 2
    again = add("list", tmp_path / "x" / "list.csv")
    assert (again.new_images, again.vanished) == (2, 2)
    assert read("list")[2:] == [b"b", b"aaa"]


@pytest.mark.parametrize("start", [b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b""])
def test_what_is_named_tar_and_is_none_is_counted(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x.tar").write_bytes(start)
    with pytest.raises(BadInput, match="no images under .*" + ("; 1 compressed tars" if start else "tars of these$")):
        add("x", tmp_path / "x")


def test_columns_of_json_in_tars_are_bounded(tmp_path: Path) -> None:
    members = {"a.jpg": b"a", "a.json": json.dumps({f"c{number}": number for number in range(300)}).encode()}
    tar(tmp_path / "x" / "x.tar", members)
    assert add("x", tmp_path / "x").findings == {"columns of JSON beyond 200": 100}
    assert manifest("x").num_columns == 4 + 2 + 200


# Boxes


def coco(annotations: list[dict[str, Any]], **more: Any) -> bytes:
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(4)]
    categories = [{"id": 1, "name": "bar"}, {"id": 2, "name": "square"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories, **more}).encode()


def box(image: Any, bbox: Any, category: Any = 1, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "bbox": bbox, "category_id": category, **more}


def test_coco_gives_a_row_a_box_in_whole_pixels_and_its_oddities_are_counted(tmp_path: Path) -> None:
    folder = files(tmp_path / "x", *(f"{number}.png" for number in range(4)))
    annotations = [
        box(2, [0.5, 0.49, 10.2, 1], 2),
        box(0, [1, 2, 3, 4]),
        box(2, [-3.5, 0, 10, 10]),
        box(0, [1.2, 2.2, 3, 4]),  # the same in whole pixels
        box(0, [5, 5, 2, 2], iscrowd=1),
        box(1, [0, 0, 0.9, 5]), box(1, [0, 0, float("nan"), 5]), box(1, [0, 0, float("inf"), 5]), box(1, [0, 0, -3, 5]),
        box(1, [1e300, 0, 3, 5]), box(1, [0, 0, 1]), box(1, None), box(1, ["a", 0, 1, 1]), box(1, [-10, 0, 5, 5]),
        box(99, [0, 0, 1, 1]), box(1, [0, 0, 5, 5], 7),
    ]  # fmt: skip
    (tmp_path / "boxes.json").write_bytes(coco(annotations))
    found = add("x", folder, boxes=str(tmp_path / "boxes.json"), split="train", label_column="category")
    table = manifest("x")
    assert table.select(["key", *tables.BOX, "category"]).to_pydict() == {
        "key": ["0.png", "2.png", "2.png"],
        "box_x": [1, 1, 0],
        "box_y": [2, 0, 0],
        "box_width": [3, 10, 7],
        "box_height": [4, 1, 10],
        "category": ["bar", "square", "bar"],
    }
    assert table.schema.field("box_x").type == pa.int32()
    assert [place.box for place in places("x")[0]] == [Box(1, 2, 3, 4), Box(1, 0, 10, 1), Box(0, 0, 7, 10)]
    assert read("x") == [b"0.png", b"2.png", b"2.png"]
    assert found.new_images == 3
    assert found.findings == {
        "boxes of crowds": 1,
        "boxes of less than a pixel": 3,
        "boxes that are no rectangle": 6,
        "boxes given twice (the first is used)": 1,
        "annotations of unknown images": 1,
        "annotations of unknown categories": 1,
        "images without a box": 2,
    }


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "json"])
def test_a_table_of_boxes_keeps_what_else_it_says(tmp_path: Path, kind: str) -> None:
    folder = files(tmp_path / "x", "a.png", "b.png")
    rows = [
        {"file_name": "b.png", "x": 1, "y": 2, "width": 3, "height": 4, "category": "bar", "score": 0.5},
        {"file_name": "gone.png", "x": 1, "y": 2, "width": 3, "height": 4, "category": "bar", "score": 0.25},
    ]
    file = tmp_path / f"boxes.{kind}"
    if kind == "csv":
        file.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        file.write_text(
            json.dumps([
                {"file_name": row["file_name"], "bbox": [1, 2, 3, 4], "category_name": "bar", "score": row["score"]}
                for row in rows
            ])
        )  # fmt: skip
    found = add("x", folder, boxes=str(file))
    assert found.findings == {"boxes of no image that is there": 1, "images without a box": 1}
    assert manifest("x").select(["key", "box_height", "category", "score"]).to_pylist() == [
        {"key": "b.png", "box_height": 4, "category": "bar", "score": 0.5}
    ]


def test_boxes_that_are_new_are_added_and_those_that_are_gone_are_marked(tmp_path: Path) -> None:
    folder, file = files(tmp_path / "x", *(f"{number}.png" for number in range(4))), tmp_path / "boxes.json"
    file.write_bytes(coco([box(0, [0, 0, 5, 5]), box(1, [0, 0, 5, 5])]))
    assert add("x", folder, boxes=str(file)).new_images == 2
    assert add("x", folder, boxes=str(file)).new_images == 0
    file.write_bytes(coco([box(0, [0, 0, 5, 5]), box(0, [1, 1, 5, 5]), box(1, [0, 0, 6, 5])]))
    found = add("x", folder, boxes=str(file))
    assert (found.images, found.new_images, found.new_shards, found.vanished, gone("x")) == (4, 2, 1, 1, ["1.png"])
    with pytest.raises(BadInput, match="the elements of corpus 'x' are boxes; give them with --boxes FILE"):
        add("x", folder)
    add("y", folder)
    with pytest.raises(BadInput, match="the elements of corpus 'y' are whole images; leave --boxes out"):
        add("y", folder, boxes=str(file))


def test_boxes_of_an_image_in_a_tar(tmp_path: Path) -> None:
    tar(tmp_path / "x" / "x.tar", {"a.jpg": b"a", "b.jpg": b"bb"})
    (tmp_path / "boxes.csv").write_text("file_name,x,y,width,height\n./x.tar/b.jpg,0,0,4,4\nx.tar/b.jpg,1,0,4,4\n")
    assert add("x", tmp_path / "x", boxes=str(tmp_path / "boxes.csv")).new_images == 2
    assert read("x") == [b"bb", b"bb"]
    assert places("x")[0][1].uri.endswith("x.tar#member=b.jpg&bytes=1536+2&xywh=1,0,4,4")
    assert add("x", tmp_path / "x", boxes=str(tmp_path / "boxes.csv")).new_images == 0


def test_boxes_of_one_image_are_never_cut_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPNET_SHARD_SIZE", "4")
    counts = [3, 2, 2, 9, 1, 4, 1, 1, 1]
    folder = files(tmp_path / "x", *(f"{number}.png" for number in range(len(counts))))
    rows = [f"{image}.png,{x},0,1,1" for image, count in enumerate(counts) for x in range(count)]
    order = np.random.default_rng(0).permutation(len(rows))
    (tmp_path / "b.csv").write_text("\n".join(["file_name,x,y,width,height", *(rows[place] for place in order)]))
    add("x", folder, boxes=str(tmp_path / "b.csv"))
    assert [part.num_rows for part in manifests("x")] == [3, 4, 9, 1, 4, 3]
    seen = [set(part.column("key").to_pylist()) for part in manifests("x")]
    assert sum(map(len, seen)) == len(set().union(*seen)) == len(counts)


@pytest.mark.parametrize(
    ("data", "name", "says"),
    [
        (b"[{}]", "b.json", "a list of results whose image ids nothing explains"),
        (b'[{"image_id": 1, "bbox": [0,0,1,1]}]', "b.json", "give each its file_name"),
        (b"[1]", "b.json", "has no list 'results' of objects"),
        (b'{"annotations": []}', "b.json", "has no list 'images' of objects"),
        (b"{", "b.json", "is no JSON"),
        (b"[" * 100_000, "b.json", "is no JSON"),
        (
            b"file_name,x,y\na,1,2\n",
            "b.csv",
            "has no column width, height; a table of boxes has file_name, x, y, width",
        ),
        (b"file_name,x,y,width,height\na,1,2,b,4\n", "b.csv", "has boxes that are not made of numbers"),
        (b"file_name,x,y,width,height,key\na,1,2,3,4,5\n", "b.csv", "uses the reserved column key; rename it"),
        (b"x", "b.xml", "is no metadata that dipnet can read"),
    ],
)
def test_what_holds_no_boxes_is_one_clear_line(tmp_path: Path, data: bytes, name: str, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=says):
        add("x", files(tmp_path / "x", "a.png"), boxes=str(tmp_path / name))


# At once, and killed


def test_two_ingests_at_once_add_everything_once(tmp_path: Path) -> None:
    folder = files(tmp_path / "x", *(f"{number}.png" for number in range(300)))
    found: list[Ingested | Exception] = []

    def work() -> None:
        try:
            found.append(add("x", folder))
        except Exception as error:  # noqa: BLE001
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.new_images for one in found if isinstance(one, Ingested)) == [0, 0, 0, 300]
    assert len(keys("x")) == 300


KILLED = """
import os, sys
from pathlib import Path
from models.plans import IngestPlan
from storage import database, objects
from tasks import ingesting

at, seen = int(sys.argv[2]), 0

def counted(function):
    def run(*args, **more):
        global seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), 9)
        return function(*args, **more)
    return run

objects.os.fsync = counted(os.fsync)
objects.Path.replace = counted(Path.replace)
database.Session.flush = counted(database.Session.flush)
database.Session.commit = counted(database.Session.commit)
ingesting.ingest(IngestPlan(corpus="x", prefix=sys.argv[1]))
"""


def test_an_ingest_that_is_killed_anywhere_leaves_all_or_nothing_and_the_next_one_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPNET_SHARD_SIZE", "3")
    folder = files(tmp_path / "x", *(f"{number}.png" for number in range(7)))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for at in (1, 2, 4, 7, 8, 9):  # in files, between them, before rows and before they are committed
        command = [sys.executable, "-c", KILLED, str(folder), str(at)]
        assert subprocess.run(command, env=env, check=False, timeout=60).returncode == -9
        with open_stores() as stores:
            assert corpora.find_corpus(stores.db, name="x") is None
    assert add("x", folder).new_shards == 3
    assert keys("x") == [f"{number}.png" for number in range(7)]
    files(folder, "8.png")
    (folder / "0.png").unlink()
    command = [sys.executable, "-c", KILLED, str(folder), "4"]
    assert subprocess.run(command, env=env, check=False, timeout=60).returncode == -9
    assert gone("x") == []
    assert (add("x", folder).new_images, gone("x")) == (1, ["0.png"])


def test_rows_that_somebody_else_wrote_first_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = files(tmp_path / "x", "a.png")
    monkeypatch.setattr("tasks.ingesting.corpora.find_corpus", lambda *_, **__: None)
    add("x", folder)
    with pytest.raises(Unavailable, match="another dipnet wrote the same rows first; run the command again"):
        add("x", folder)


def test_places_of_a_shard_are_quick(tmp_path: Path) -> None:
    import time

    count = 10_000
    table = pa.table(
        {
            "key": [f"t.tar/{number}.jpg" for number in range(count)],
            "etag": ["e"] * count,
            "bytes": list(range(count)),
            "member_object": ["t.tar"] * count,
            "member_offset": list(range(count)),
        }
    )
    tar(tmp_path / "x" / "t.tar", {"a.jpg": b"a"})
    add("x", tmp_path / "x")
    with open_stores() as stores:
        corpus = corpora.get_corpus(stores.db, name="x")
        begin = time.perf_counter()
        found, _ = sources.places_of(stores, corpus, table)
        assert time.perf_counter() - begin < 0.5
    assert found[7] == Place(str(tmp_path / "x" / "t.tar"), "7.jpg", 7, 7)


def test_a_file_that_was_mended_is_a_new_image_and_its_old_bytes_are_in_quarantine_no_more(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for number, data in enumerate((png(0), b"", png(2)[:50])):
        (tmp_path / "x" / f"{number}.png").write_bytes(data)
    add("x", tmp_path / "x")
    embedding.embed_shards(embedding.pending_shards("x", ""), "")
    assert {row["key"] for row in views.quarantine_rows("x")} == {"1.png", "2.png"}
    (tmp_path / "x" / "1.png").write_bytes(png(1))
    again = embedding.embed_shards(embedding.pending_shards("x", "", retry=True), "", retry=True)
    assert (again.images, {row["reason"] for row in views.quarantine_rows("x")}) == (
        2,
        {"changed since it was listed", "truncated or corrupt"},
    )
    assert (add("x", tmp_path / "x").new_images, views.corpus_record("x")["vanished"]) == (1, 1)
    embedding.embed_shards(embedding.pending_shards("x", ""), "")
    assert [row["key"] for row in views.quarantine_rows("x")] == ["2.png"]
    assert views.corpus_record("x")["quarantined"] == {"truncated or corrupt": 1}
    assert embedding.embed_shards(embedding.pending_shards("x", "", retry=True), "", retry=True).images == 1
