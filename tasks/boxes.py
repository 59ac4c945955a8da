"""Boxes of images, from annotations or predictions: COCO's JSON, or a table with a row a box."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from models.errors import BadInput
from storage import tables
from tasks import metadata

NUMBERS = ("x", "y", "width", "height")  # of a table's columns, in pixels
FARTHEST = 1e8  # pixels; no image is so wide
CROWD, NO_BOX, SMALL = "boxes of crowds", "boxes that are no rectangle", "boxes of less than a pixel"
TWICE = "boxes given twice (the first is used)"


class Boxes(NamedTuple):
    """A row a box, and what could not be used, by reason."""

    table: pa.Table  # file_name, tables.BOX (int32), and other columns
    findings: Counter[str]


def read(data: bytes, *, source: str) -> Boxes:
    """Boxes in a file's bytes, by the ending of its name. Raises BadInput, naming `source`, for what holds none."""
    if PurePosixPath(source).suffix.lower() == ".json":
        table, findings = _of_coco(data, source)
    else:
        table, findings = metadata.read_table(data, source=source, texts=(tables.FILE_NAME,)), Counter()
        if missing := [name for name in (tables.FILE_NAME, *NUMBERS) if name not in table.column_names]:
            raise BadInput(
                f"'{source}' has no column {', '.join(missing)}; a table of boxes has {tables.FILE_NAME}, "
                f"{', '.join(NUMBERS)}, and whatever else is known of each"
            )
    return _usable(table, findings, source)


def _usable(table: pa.Table, findings: Counter[str], source: str) -> Boxes:
    """Boxes in whole pixels. What is nowhere, or smaller than a pixel, is counted."""
    try:
        x, y, width, height = (pc.cast(table.column(name), pa.float64()) for name in NUMBERS)
    except pa.ArrowException:
        raise BadInput(f"'{source}' has boxes that are not made of numbers; mend {', '.join(NUMBERS)}") from None
    about = table.drop_columns(list(NUMBERS))
    place = about.schema.get_field_index(tables.FILE_NAME)
    names = pc.replace_substring_regex(about.column(tables.FILE_NAME), r"^\./", "")
    about = about.set_column(place, tables.FILE_NAME, names)
    tables.require_own_columns(about, source=source)
    within = [pc.fill_null(pc.less_equal(pc.abs(number), FARTHEST), False) for number in (x, y, width, height)]
    real = pc.and_(pc.and_(within[0], within[1]), pc.and_(within[2], within[3]))  # NaN is not less than anything
    left, top = _pixels(x), _pixels(y)
    wide, high = pc.subtract(_pixels(pc.add(x, width)), left), pc.subtract(_pixels(pc.add(y, height)), top)
    large = [pc.fill_null(pc.greater_equal(number, 1.0), False) for number in (width, height, wide, high)]
    large_enough = pc.and_(pc.and_(large[0], large[1]), pc.and_(large[2], large[3]))
    findings[NO_BOX] += pc.sum(pc.invert(real)).as_py() or 0
    findings[SMALL] += pc.sum(pc.and_(real, pc.invert(large_enough))).as_py() or 0
    named = pc.is_valid(table.column(tables.FILE_NAME))
    kept = pc.and_(named, pc.and_(real, large_enough))
    columns = dict(zip(tables.BOX, (left, top, wide, high), strict=True))
    found = about.filter(kept)
    for name, numbers in columns.items():
        found = found.append_column(name, pc.cast(numbers.filter(kept), pa.int32()))
    return Boxes(found, findings)


def _pixels(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """The nearest whole pixel, halves up so that what is a pixel wide stays so; nothing lies left of or above an image."""
    return pc.floor(pc.add(pc.max_element_wise(numbers, 0.0), 0.5))


def _of_coco(data: bytes, source: str) -> tuple[pa.Table, Counter[str]]:
    """COCO's annotations, or its results where each names its file."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"'{source}' is no JSON ({type(error).__name__}); mend or remove it") from None
    findings: Counter[str] = Counter()
    if isinstance(document, list):
        entries = metadata.entries({"results": document}, "results", source)
        if not all(isinstance(one.get(tables.FILE_NAME), str) for one in entries):
            raise BadInput(
                f"'{source}' is a list of results whose image ids nothing explains; give each its {tables.FILE_NAME}, or "
                "put them as annotations beside COCO's list of images"
            )
        files: Mapping[Any, str] = {}
        names: Mapping[Any, str] = {}
    else:
        entries = metadata.entries(document, "annotations", source)
        files = metadata.by_id(metadata.entries(document, "images", source), tables.FILE_NAME, "image", source)
        categories = metadata.entries(document, "categories", source) if "categories" in document else ()
        names = metadata.by_id(categories, "name", "category", source)
    rows = [row for one in entries if (row := _row(one, files, names, findings)) is not None]
    return _of_rows(rows), findings


def _row(
    one: Mapping[str, Any], files: Mapping[Any, str], names: Mapping[Any, str], findings: Counter[str]
) -> tuple[Any, ...] | None:
    """File, four numbers, category and score of one entry; None, counted, for what is no box of an image."""
    file, box = one.get(tables.FILE_NAME), one.get("bbox")
    file = file if isinstance(file, str) else files.get(metadata.id_of(one.get("image_id")))
    reason = ""
    if file is None:
        reason = metadata.STRANGE_IMAGE
    elif one.get("iscrowd") in (1, True):
        reason = CROWD
    elif not isinstance(box, list) or len(box) != 4 or not all(_is_number(number) for number in box):
        reason = NO_BOX
    category = one.get("category_name")
    number = metadata.id_of(one.get("category_id"))
    if not isinstance(category, str) and number is not None:
        if names and number not in names:
            reason = reason or metadata.STRANGE_CATEGORY
        category = names.get(number, str(number[1]))
    if reason or file is None or not isinstance(box, list):
        findings[reason] += 1
        return None
    score = one.get("score")
    category = category if isinstance(category, str) else None
    return (file, *map(float, box), category, score if _is_number(score) else None)


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**53)


def _of_rows(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    files, *numbers, categories, scores = zip(*rows, strict=True) if rows else ((),) * 7
    columns = {tables.FILE_NAME: pa.array([_text(file) for file in files], pa.string())}
    columns |= {name: pa.array(some, pa.float64()) for name, some in zip(NUMBERS, numbers, strict=True)}
    columns[metadata.CATEGORY] = pa.array([_text(category) for category in categories], pa.string())
    if any(score is not None for score in scores):
        columns["score"] = pa.array(scores, pa.float64())
    return pa.table(columns)


def _text(value: str | None) -> str | None:
    """Text that can be written down: JSON may hold halves of characters."""
    return value if value is None else value.encode("utf-8", "replace").decode()
