"""What people wrote down about images: CSV, Parquet, JSON lines, or COCO's JSON. A table with a row a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from models.errors import BadInput
from storage import tables

BESIDE = ("metadata.csv", "metadata.parquet", "metadata.jsonl")
TABLES = (".csv", ".parquet", ".jsonl", ".ndjson")
MOST_BYTES = 2_000_000_000
CATEGORY = "category"  # the column of COCO's classes
SEVERAL, NONE = "images of several categories", "images without a category"
STRANGE_IMAGE, STRANGE_CATEGORY = "annotations of unknown images", "annotations of unknown categories"


class Metadata(NamedTuple):
    """A row a file, and what could not be used of it."""

    table: pa.Table  # file_name and other columns
    findings: dict[str, int]  # by reason


def read(data: bytes, *, source: str) -> Metadata:
    """Metadata in a file's bytes, by the ending of its name. Raises BadInput, naming `source`, for what is none."""
    if PurePosixPath(source).suffix.lower() == ".json":
        return _of_coco(data, source)
    table = read_table(data, source=source, texts=(tables.FILE_NAME,))
    tables.require_metadata(table, source=source)
    return Metadata(table, {})


def read_table(data: bytes, *, source: str, texts: Sequence[str]) -> pa.Table:
    """A CSV, Parquet or JSON lines file's columns of numbers, times and text; those named in `texts` are text.

    Raises BadInput, naming `source`, for anything else.
    """
    suffix = PurePosixPath(source).suffix.lower()
    if suffix not in TABLES:
        raise BadInput(f"'{source}' is no metadata that dipnet can read; give CSV, Parquet, JSON lines or COCO's JSON")
    if suffix == ".csv":
        return tables.read_csv(data, source=source, texts=texts)
    try:
        table = _of_parquet(data, source) if suffix == ".parquet" else pyarrow.json.read_json(pa.BufferReader(data))
    except (pa.ArrowException, OSError, UnicodeError) as error:
        kind = "Parquet" if suffix == ".parquet" else "JSON lines"
        reason = (str(error).splitlines() or [""])[0]
        raise BadInput(f"'{source}' is no table in {kind} ({reason}); mend or remove it") from None
    return _plain(table, source, texts)


def _of_parquet(data: bytes, source: str) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(data))
    size = sum(file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups))
    if size > MOST_BYTES:
        raise BadInput(f"'{source}' unpacks to {size:,} bytes, and {MOST_BYTES:,} are read at most; split it")
    return file.read()


def _plain(table: pa.Table, source: str, texts: Sequence[str]) -> pa.Table:
    """The table with columns of numbers, times and text alone. Raises BadInput for any other column."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in columns:
            raise BadInput(f"'{source}' has two columns {name}; rename one")
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if name in texts or pa.types.is_null(kind) or pa.types.is_large_string(kind):
            columns[name] = _as_text(column, name, source)
        elif pa.types.is_string(kind) or pa.types.is_decimal(kind) or pa.types.is_primitive(kind):
            columns[name] = column
        else:
            raise BadInput(f"column {name} of '{source}' holds {kind}; keep columns of numbers, times and text alone")
    return pa.table(columns)


def _as_text(column: pa.ChunkedArray, name: str, source: str) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        raise BadInput(f"column {name} of '{source}' holds {column.type}, not text; write it as text") from None


def _of_coco(data: bytes, source: str) -> Metadata:
    """One category an image, in a column `category`; what has several or none has no class, and is counted."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"'{source}' is no JSON ({type(error).__name__}); mend or remove it") from None
    images, annotations, categories = (
        entries(document, part, source) for part in ("images", "annotations", "categories")
    )
    names = by_id(categories, "name", "category", source)
    files = by_id(images, tables.FILE_NAME, "image", source)
    said: dict[Any, set[str]] = {number: set() for number in files}
    findings: Counter[str] = Counter()
    for one in annotations:
        image, category = id_of(one.get("image_id")), id_of(one.get("category_id"))
        if image not in files:
            findings[STRANGE_IMAGE] += 1
        elif category not in names:
            findings[STRANGE_CATEGORY] += 1
        else:
            said[image].add(names[category])
    findings[SEVERAL] = sum(len(some) > 1 for some in said.values())
    findings[NONE] = sum(not some for some in said.values())
    classes = [next(iter(some)) if len(some) == 1 else None for some in said.values()]
    columns = {
        tables.FILE_NAME: pa.array([name.removeprefix("./") for name in files.values()], pa.string()),
        CATEGORY: pa.array(classes, pa.string()),
    }
    table = pa.table(columns)
    tables.require_metadata(table, source=source)
    return Metadata(table, {reason: count for reason, count in findings.items() if count})


def entries(document: Any, part: str, source: str) -> Sequence[Mapping[str, Any]]:
    """A list of objects in COCO's document. Raises BadInput where it has none of that name."""
    found = document.get(part) if isinstance(document, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise BadInput(
            f"'{source}' is not in COCO's form: it has no list '{part}' of objects; give images, annotations, categories"
        )
    return found


def by_id(
    entries: Sequence[Mapping[str, Any]], column: str, what: str, source: str
) -> dict[tuple[str, int | str], str]:
    """A text of each entry by its id, in their order. Raises BadInput for ids that are none, or two of the same."""
    found: dict[tuple[str, int | str], str] = {}
    for entry in entries:
        number, text = id_of(entry.get("id")), entry.get(column)
        if number is None or not isinstance(text, str) or not text:
            raise BadInput(f"'{source}' has a {what} without an id or a {column}; mend it")
        if number in found:
            raise BadInput(f"'{source}' has two of {what} {number[1]!r}; keep one")
        found[number] = text
    return found


def id_of(value: Any) -> tuple[str, int | str] | None:
    """An id as a key: 1, True and "1" are three different things; None for what is no id."""
    return (type(value).__name__, value) if type(value) in (int, str) else None
