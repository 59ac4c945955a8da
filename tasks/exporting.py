"""A dataset version as a folder that any training can read: dataset.json, its rows, and the images where they are wanted."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import pyarrow as pa

from models.elements import place_of
from models.errors import BadInput, DipnetError
from models.learning import DatasetVersion
from models.outcomes import Exported
from models.states import Split
from storage import runs, tables
from storage.stores import Stores, open_stores
from tasks import datasets, elements
from tasks.compute import browsers
from tasks.compute.images import Unreadable
from tasks.outputs import new_folder
from tasks.steps import step, track

DESCRIPTION = "dataset.json"
COLUMNS = ("sample_id", "class_name", "split", "group", "uri", "file")
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")

Format = Literal["parquet", "csv", "jsonl"]
Images = Literal["none", "copy", "link"]


class _Wanted(NamedTuple):
    format: Format
    images: Images
    hide_labels: bool


@step()
def export_dataset(
    dataset_id: int,
    folder: Path,
    *,
    format: Format = "parquet",
    images: Images = "none",
    hide_labels: bool = False,
) -> Exported:
    """Write a dataset version as a folder, whole or not at all: dataset.json, samples.FORMAT and, where wanted, images.

    The same version gives the same bytes, and a folder that has them already is left alone. Images are copied and checked
    against their hashes, or linked to where they lie on this machine; what is a box is cut out of its image. `hide_labels`
    blanks the classes of holdout rows, for whoever must not train on them. Raises BadInput for a folder that holds
    something else, or images that are gone.
    """
    wanted = _Wanted(format, images, hide_labels)
    with open_stores() as stores:
        dataset = runs.get_dataset(stores.db, dataset_id=dataset_id)
        listing = _listing(datasets.read_listing(stores, dataset), wanted)
        files = {
            DESCRIPTION: _description(stores, dataset, listing, wanted),
            f"samples.{format}": _rows(listing, format),
        }
        target = folder.absolute()
        known = _holds(target, files)
        if not known:
            _put(stores, target, files, listing, wanted)
    count = 0 if images == "none" else listing.num_rows
    return Exported(folder=str(target), dataset_id=dataset_id, samples=listing.num_rows, images=count, reused=known)


def _listing(listing: pa.Table, wanted: _Wanted) -> pa.Table:
    """The rows as they are exported, in the order of the sample ids."""
    listing = listing.sort_by("sample_id")
    names, splits = listing.column("class_name").to_pylist(), listing.column("split").to_pylist()
    if wanted.hide_labels:
        hidden = Split.HOLDOUT.value
        names = ["" if split == hidden else name for name, split in zip(names, splits, strict=True)]
    ids, uris = listing.column("sample_id").to_pylist(), listing.column("uri").to_pylist()
    files = [_file(*pair) if wanted.images != "none" else "" for pair in zip(ids, uris, strict=True)]
    columns = (ids, names, splits, listing.column("group").to_pylist(), uris, files)
    return pa.table({name: pa.array(of, pa.string()) for name, of in zip(COLUMNS, columns, strict=True)})


def _file(sample_id: str, uri: str) -> str:
    """Where an image goes. Its class is no part of it: labels are corrected, and some are hidden. A box is a PNG."""
    place = place_of(uri)
    suffix = ".png" if place.box else PurePosixPath(place.member or place.object_uri).suffix
    return f"images/{sample_id[:2]}/{sample_id}{suffix.lower() if SUFFIX.fullmatch(suffix) else ''}"


def _description(stores: Stores, dataset: DatasetVersion, listing: pa.Table, wanted: _Wanted) -> bytes:
    parent = stores.db.get(DatasetVersion, dataset.parent_id) if dataset.parent_id else None
    rows = zip(listing.column("split").to_pylist(), listing.column("class_name").to_pylist(), strict=True)
    classes: dict[str, Counter[str]] = {}
    for split, name in rows:
        classes.setdefault(split, Counter())[name] += 1
    record = {
        "content_hash": dataset.content_hash,
        "parent": parent.content_hash if parent else None,
        "adds_batches": dataset.adds_batches,
        "corpora": dataset.corpora,
        "class_names": dataset.class_names,
        "samples": dataset.samples,
        "splits": dataset.splits,
        "classes": classes,
        "excluded": dataset.excluded,
        "labels_hidden": wanted.hide_labels,
        "images": wanted.images,
        "columns": list(COLUMNS),
    }
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()


def _rows(listing: pa.Table, format: Format) -> bytes:
    if format == "parquet":
        return tables.to_bytes(listing)
    rows, text = listing.to_pylist(), io.StringIO()
    if format == "jsonl":
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue().encode()


def _holds(folder: Path, files: dict[str, bytes]) -> bool:
    """Whether a folder has this very export. Raises BadInput when it holds something else."""
    if not folder.exists() and not folder.is_symlink():
        return False
    if not folder.is_dir():
        raise BadInput(f"'{folder}' is no folder; name a new one")
    there = [path.name for path in folder.iterdir()]
    if not there:
        return False
    if all((folder / name).is_file() and (folder / name).read_bytes() == data for name, data in files.items()):
        return True
    raise BadInput(f"'{folder}' holds something else ({', '.join(sorted(there)[:3])}); name a new or an empty folder")


def _put(stores: Stores, target: Path, files: dict[str, bytes], listing: pa.Table, wanted: _Wanted) -> None:
    """Write everything beside the target, then give it its name."""
    with new_folder(target) as partial:
        if wanted.images != "none":
            _put_images(stores, partial, listing, wanted.images)
        for name, data in files.items():
            (partial / name).write_bytes(data)


def _put_images(stores: Stores, folder: Path, listing: pa.Table, how: Images) -> None:
    """Every image. Raises BadInput when some are gone or have changed."""
    wrong: list[str] = []
    rows = list(zip(*(listing.column(name).to_pylist() for name in ("sample_id", "uri", "file")), strict=True))
    for sample_id, uri, file in track(rows, "exporting images"):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if how == "link":
            place = place_of(uri)
            if uri.startswith("s3://") or place.member or place.box:
                raise BadInput(f"'{uri}' is no file of this machine and cannot be linked; export with images copied")
            if not Path(uri).is_file():
                wrong.append(f"'{uri}' is gone")
            path.symlink_to(Path(uri).absolute())
            continue
        try:
            path.write_bytes(_bytes_of(stores, sample_id, uri))
        except DipnetError as problem:
            wrong.append(str(problem))
    if wrong:
        raise BadInput(
            f"{len(wrong)} of {len(rows)} images cannot be exported ({wrong[0]}); bring them back, or leave images out"
        )


def _bytes_of(stores: Stores, sample_id: str, uri: str) -> bytes:
    """An image as it is, or a box of one as a PNG. Raises BadInput when it is not what was labelled."""
    data, box = stores.read_uri(uri), place_of(uri).box
    if elements.id_of(data, uri) != sample_id:
        raise BadInput(f"'{uri}' has other bytes than were labelled")
    if not box:
        return data
    try:
        return browsers.as_png(elements.cut(data, box, max_pixels=stores.settings.max_pixels))
    except Unreadable as problem:
        raise BadInput(f"'{uri}' cannot be cut out ({problem.reason})") from None
