"""Images in tars: a row a member, and what the small files of the same name say of it (as webdataset has it)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa

from models.errors import NotFound
from storage import archives, tables
from storage.archives import Archive
from storage.objects import ObjectStore
from tasks.compute import images
from tasks.steps import track

TARS_AT_ONCE = 8
TEXTS = {".json": 262_144, ".txt": 65_536, ".cls": 1024}  # bytes at most
MOST_COLUMNS, MOST_NAME = 200, 200
UNREADABLE_TEXT, OWN_COLUMN, MANY = (
    "texts about images that cannot be read",
    "columns of JSON with a name of ours",
    "columns of JSON beyond 200",
)
GONE = "tars that are not there"
OURS = pa.schema(
    [("key", pa.string()), ("bytes", pa.int64()), ("member_object", pa.string()), ("member_offset", pa.int64())]
)

Row = dict[str, Any]


class Members(NamedTuple):
    """The images in some tars, and what could not be used, by reason."""

    table: pa.Table  # OURS, `tar` (the tar's number among those asked for), and columns from the texts
    findings: Counter[str]


class Tar(NamedTuple):
    """A tar to look into."""

    store: ObjectStore
    name: str  # in the store
    key: str  # in the corpus


def of_tars(tars: Sequence[Tar]) -> Members:
    """The images in tars, in their order."""
    findings: Counter[str] = Counter()
    parts = [pa.table({**_empty(OURS), "tar": pa.array([], pa.int64())})]
    with ThreadPoolExecutor(TARS_AT_ONCE) as pool:
        found = pool.map(_scanned, tars)
        for number, (_, members) in enumerate(zip(track(tars, "looking into tars"), found, strict=True)):
            findings.update(members.findings)
            parts.append(
                members.table.append_column("tar", pa.repeat(pa.scalar(number, pa.int64()), len(members.table)))
            )
    return Members(together(parts), findings)


def _empty(schema: pa.Schema) -> dict[str, pa.Array]:
    return {field.name: pa.array([], field.type) for field in schema}


def _scanned(tar: Tar) -> Members:
    try:
        archive = archives.scan(tar.store, tar.name, images=images.SUFFIXES, texts=TEXTS)
    except NotFound:
        return Members(pa.table(_empty(OURS)), Counter({GONE: 1}))
    return _members(archive, tar.key)


def _members(archive: Archive, tar: str) -> Members:
    """A row an image of one tar."""
    found, findings = list(archive.members.values()), archive.findings
    columns = {
        "key": pa.array([f"{tar}/{member.name}" for member in found], pa.string()),
        "bytes": pa.array([member.size for member in found], pa.int64()),
        "member_object": pa.array([tar] * len(found), pa.string()),
        "member_offset": pa.array([member.offset for member in found], pa.int64()),
    }
    said = _said(archive.texts, findings)
    rows = [said.get(_stem(member.name), {}) for member in found]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Members(pa.table(columns | {name: _column([row.get(name) for row in rows]) for name in names}), findings)


def _stem(name: str) -> str:
    """What files about one thing share: the path up to the first dot of its last part."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _said(texts: Mapping[str, bytes], findings: Counter[str]) -> dict[str, Row]:
    """What is said about each stem. A caption and a class win over fields of the same name in JSON."""
    found: dict[str, Row] = {}
    columns: set[str] = set()
    for name, data in sorted(texts.items(), key=lambda item: not item[0].lower().endswith(".json")):
        row = found.setdefault(_stem(name), {})
        try:
            text = data.decode()
            if name.lower().endswith(".json"):
                row |= _fields(json.loads(text), columns, findings)
            else:
                row["caption" if name.lower().endswith(".txt") else "cls"] = text.strip()
        except (ValueError, RecursionError):  # a UnicodeDecodeError and a JSONDecodeError are ValueErrors
            findings[UNREADABLE_TEXT] += 1
    return found


def _fields(document: Any, columns: set[str], findings: Counter[str]) -> Row:
    """Numbers, texts and truths of a JSON object; what is nested, or has a name of ours, is left out."""
    row: Row = {}
    for name, value in document.items() if isinstance(document, dict) else ():
        if value is None or not isinstance(value, str | int | float) or not _is_name(name):
            continue
        if name in tables.RESERVED:
            findings[OWN_COLUMN] += 1
        elif name not in columns and len(columns) >= MOST_COLUMNS:
            findings[MANY] += 1
        else:
            columns.add(name)
            row[name] = value
    return row


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MOST_NAME and name.isprintable()


def _column(values: Sequence[Any]) -> pa.Array:
    """Values as the narrowest of truth, whole number, number and text that holds them all."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and all(value is None or -(2**63) <= value < 2**63 for value in values):
        return pa.array(values, pa.int64())
    if kinds <= {int, float} and all(not isinstance(value, int) or abs(value) <= 2**53 for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array([text if text is None else text.encode("utf-8", "replace").decode() for text in texts], pa.string())


def together(parts: Sequence[pa.Table]) -> pa.Table:
    """One table of all rows. A column that holds text in one part and numbers in another is text."""
    kinds: dict[str, set[pa.DataType]] = {}
    for part in parts:
        for field in part.schema:
            kinds.setdefault(field.name, set()).add(field.type)
    mixed = {name for name, some in kinds.items() if len(some) > 1 and some != {pa.int64(), pa.float64()}}
    return tables.concat([_as_text(part, mixed & set(part.column_names)) for part in parts])


def _as_text(table: pa.Table, names: set[str]) -> pa.Table:
    for name in sorted(names):
        place = table.column_names.index(name)
        table = table.set_column(place, name, table.column(name).cast(pa.string()))
    return table
