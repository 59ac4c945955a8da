"""What is known of each element beside its place: metadata, and the boxes that make several elements of one image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from models.errors import BadInput
from models.plans import IngestPlan
from storage import tables
from storage.stores import Stores
from tasks import boxes, metadata
from tasks.boxes import Boxes
from tasks.metadata import Metadata
from tasks.sources import Kind, Source, first_of_each

NO_FILE, NO_ROW = "rows about no image that is there", "images without a row"
NO_IMAGE, NO_BOX = "boxes of no image that is there", "images without a box"
FOLDER = r"(?s)^(?:.*/)?(?P<name>[^/]*)/[^/]*$"


def describe(
    stores: Stores, source: Source, images: pa.Table, standing: Sequence[pa.ChunkedArray], plan: IngestPlan
) -> tuple[pa.Table, Counter[str]]:
    """A row an element with all that is known of it, and what of that cannot be used, by reason.

    `images` has a row an image; `standing` are the keys of those that are there and need no row. What a person gives with the
    plan wins over what lists and tars say.
    """
    findings: Counter[str] = Counter()
    keys = images.column("key")
    there = pa.chunked_array(
        [chunk for keys_of_some in (keys, *standing) for chunk in keys_of_some.chunks], pa.string()
    )
    table = images.add_column(images.column_names.index("bytes") + 1, "folder", _folders(keys))
    about = _metadata(stores, source, plan.metadata)
    if about:
        findings.update(about.findings)
        names = about.table.column(tables.FILE_NAME)
        findings[NO_FILE] += _missing(names, there)
        findings[NO_ROW] += _missing(there, names)
        table = _beside(table, about.table.take(pc.index_in(keys, value_set=names)))
    if plan.boxes:
        found = boxes.read(stores.read_uri(plan.boxes, most=metadata.MOST_BYTES), source=plan.boxes)
        findings.update(found.findings)
        findings[NO_IMAGE] += _missing(found.table.column(tables.FILE_NAME), there)
        findings[NO_BOX] += _missing(there, found.table.column(tables.FILE_NAME))
        table = _with_boxes(table, found, findings)
    if plan.label_column and table.num_rows:
        tables.column(table.slice(0, 0), plan.label_column, source="the metadata")
    return table, findings


def _folders(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """The name of the folder that each key lies in; '' at the top."""
    return pc.fill_null(pc.struct_field(pc.extract_regex(keys, FOLDER), "name"), "")


def _missing(names: pa.ChunkedArray, there: pa.ChunkedArray) -> int:
    """How many of the names are not there."""
    return len(names) - (pc.sum(pc.is_in(names, value_set=there)).as_py() or 0)


def _beside(table: pa.Table, about: pa.Table) -> pa.Table:
    """The table with these columns, which take the place of columns of the same name."""
    about = about.drop_columns([tables.FILE_NAME])
    table = table.drop_columns([name for name in about.column_names if name in table.column_names])
    for name in about.column_names:
        table = table.append_column(name, about.column(name))
    return table


def _with_boxes(table: pa.Table, found: Boxes, findings: Counter[str]) -> pa.Table:
    """A row a box, those of an image together and in the order of the file."""
    places = pc.index_in(found.table.column(tables.FILE_NAME), value_set=table.column("key"))
    order = pc.sort_indices(pa.table({"place": places}), [("place", "ascending")])
    order = order.slice(0, len(places) - places.null_count)  # nulls are last: boxes of no image that is there
    joined = _beside(table.take(places.take(order)), found.table.take(order))
    numbers = [joined.column(name).cast(pa.string()) for name in ("key", *tables.BOX)]
    once = first_of_each(joined, pc.binary_join_element_wise(*numbers, "\0"))
    findings[boxes.TWICE] += joined.num_rows - once.num_rows
    others = [name for name in once.column_names if name not in tables.BOX]
    place = others.index("folder") + 1
    return once.select([*others[:place], *tables.BOX, *others[place:]])


def _metadata(stores: Stores, source: Source, file: str) -> Metadata | None:
    """What the file that is named says, or the one beside the images. Raises BadInput where there are several of these."""
    if file:
        return metadata.read(stores.read_uri(file, most=metadata.MOST_BYTES), source=file)
    store = source.store
    there = [name for name in metadata.BESIDE if store.exists(name)] if source.kind is Kind.FOLDER else []
    if len(there) > 1:
        raise BadInput(
            f"'{source.prefix}' has {' and '.join(there)}; keep one of them, or name one with --metadata FILE"
        )
    if not there:
        return None
    return metadata.read(store.read(there[0], most=metadata.MOST_BYTES), source=store.uri(there[0]))
