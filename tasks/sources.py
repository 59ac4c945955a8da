"""Where images come from: a folder or a prefix of S3, tars under it, a tar of its own, or a list of places."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from models.corpus import Corpus
from models.elements import Box, Place
from models.errors import BadInput, NotFound
from storage import archives, tables
from storage.objects import Listed, ObjectStore
from storage.stores import Stores
from tasks import members, metadata
from tasks.compute import images

URI_COLUMNS = ("uri", "url", "path", "image_path", tables.FILE_NAME)
AT_ONCE = 65_536  # listed objects that are held as Python's before they become columns
S3, WEB, ELSEWHERE = "s3://", r"(?i)^https?://", r"^[A-Za-z][A-Za-z0-9+.-]*://"
NO_TEXT = "files with names that are no text"
NO_PLACE, TWICE = "rows without a place", "places named twice (the first is used)"
PARTS = re.compile("#(member|xywh)=")  # models.elements would take such an image for a part of another
IS_PART = "names that read as parts of an image (#member=, #xywh=)"
LEADS_OUT = "places that lead out of the list's folder"
LISTED = pa.schema([("key", pa.string()), ("etag", pa.string()), ("bytes", pa.int64())])


class Kind(StrEnum):
    """What a corpus's prefix is."""

    FOLDER = "folder"
    TAR = "tar"
    LIST = "list"


class Source(NamedTuple):
    """A corpus's prefix, opened: keys are relative to the store, but for a list's that name whole places."""

    kind: Kind
    prefix: str  # absolute
    store: ObjectStore
    name: str  # of the tar or list in the store; '': everything in it


class Found(NamedTuple):
    """What a source names: a row an object, and what of it cannot be used, by reason."""

    table: pa.Table  # LISTED, and a list's other columns
    findings: Counter[str]


def open_source(stores: Stores, prefix: str) -> Source:
    """The source that a person names. Nothing is read yet. Raises BadInput for what is none."""
    kind = _kind(prefix)
    if kind is Kind.FOLDER:
        store = stores.images(prefix)
        return Source(kind, store.prefix, store, "")
    folder, _, name = prefix.rpartition("/")
    store = stores.images(folder or ("/" if prefix.startswith("/") else "."))
    return Source(kind, store.uri(name), store, name)


def look(source: Source) -> Found:
    """The objects of a source: images, tars, and whatever a list names. Raises BadInput, NotFound and Unavailable."""
    if source.kind is Kind.LIST:
        return _of_list(source)
    if source.kind is Kind.TAR:
        part = source.store.read_part(source.name, 0, 1)
        return Found(_table([Listed(source.name, part.etag, part.size)]), Counter())
    return _of_listing(source.store.list())


def places_of(stores: Stores, corpus: Corpus, manifest: pa.Table) -> tuple[list[Place], list[str]]:
    """Where each row of a corpus's manifest lies, and its etag ('': unknown)."""
    keys, etags = manifest.column("key").to_pylist(), manifest.column("etag").to_pylist()
    names, members = keys, [""] * len(keys)
    boxes: list[Box | None] = [None] * len(keys)
    offsets, lengths = [0] * len(keys), [0] * len(keys)
    if "member_offset" in manifest.column_names:
        names = [name or key for name, key in zip(manifest.column("member_object").to_pylist(), keys, strict=True)]
        offsets = [offset or 0 for offset in manifest.column("member_offset").to_pylist()]
        pairs = list(zip(names, keys, strict=True))
        members = [key[len(name) + 1 :] if name != key else "" for name, key in pairs]
        sizes = manifest.column("bytes").to_pylist()
        lengths = [size if member else 0 for size, member in zip(sizes, members, strict=True)]
    if tables.BOX[0] in manifest.column_names:
        numbers = zip(*(manifest.column(name).to_pylist() for name in tables.BOX), strict=True)
        boxes = [Box(*four) if four[0] is not None else None for four in numbers]
    uris = _uris(open_source(stores, corpus.prefix), names)
    places = zip(uris, members, offsets, lengths, boxes, strict=True)
    return [Place(*place) for place in places], [etag or "" for etag in etags]


def _uris(source: Source, names: Iterable[str]) -> list[str]:
    """Where objects lie: beside a list or tar, below a folder, or where a list says."""
    base = source.store.prefix.rstrip("/") + "/"
    if source.kind is Kind.LIST:
        return [name if name.startswith((S3, "/")) else base + name.removeprefix("./") for name in names]
    return [base + name for name in names]


def with_etags(stores: Stores, source: Source, tars: pa.Table) -> pa.Table:
    """The tars with the etags that they have now, where a list gives none; a tar that is not there keeps ''."""
    etags = tars.column("etag").to_pylist()
    for row, tar in enumerate(tars_at(stores, source, tars.column("key").to_pylist())):
        if not etags[row]:
            with suppress(NotFound):
                etags[row] = tar.store.read_part(tar.name, 0, 1).etag
    return tars.set_column(tars.schema.get_field_index("etag"), "etag", pa.array(etags, pa.string()))


def tars_at(stores: Stores, source: Source, keys: Sequence[str]) -> list[members.Tar]:
    """The tars of these keys, wherever they lie."""
    found = []
    for key, uri in zip(keys, _uris(source, keys), strict=True):
        if source.kind is Kind.LIST:
            folder, _, name = uri.rpartition("/")
            found.append(members.Tar(stores.images(folder or "/"), name, key))
        else:
            found.append(members.Tar(source.store, key, key))
    return found


def _kind(prefix: str) -> Kind:
    """A folder may be named like a file, and S3 has no folders to ask for."""
    low = prefix.lower()
    is_folder = prefix.count("/") < 3 if prefix.startswith(S3) else Path(prefix).is_dir()
    if is_folder or not low.endswith((archives.SUFFIX, *metadata.TABLES)):
        return Kind.FOLDER
    return Kind.TAR if low.endswith(archives.SUFFIX) else Kind.LIST


def _of_listing(listed: Iterable[Listed]) -> Found:
    findings: Counter[str] = Counter()
    parts = [_table([])]
    for some in _batches(listed):
        wanted = [item for item in some if item.key.lower().endswith((*images.SUFFIXES, archives.SUFFIX))]
        readable = [item for item in wanted if item.key.isascii() or _is_text(item.key)]
        findings[NO_TEXT] += len(wanted) - len(readable)
        whole = [item for item in readable if "#" not in item.key or not PARTS.search(item.key)]
        findings[IS_PART] += len(readable) - len(whole)
        findings[archives.IS_COMPRESSED] += sum(item.key.lower().endswith(archives.COMPRESSED) for item in some)
        parts.append(_table(whole))
    return Found(pa.concat_tables(parts), findings)


def _batches(listed: Iterable[Listed]) -> Iterator[list[Listed]]:
    batch: list[Listed] = []
    for item in listed:
        batch.append(item)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    yield batch


def _is_text(name: str) -> bool:
    """Whether a name has bytes that are UTF-8; the system hands over others as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _table(listed: Iterable[Listed]) -> pa.Table:
    rows = list(listed)
    columns = ([item.key for item in rows], [item.etag for item in rows], [item.bytes for item in rows])
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, LISTED, strict=True)], LISTED)


def _of_list(source: Source) -> Found:
    """The rows of a list, its other columns as metadata."""
    data = source.store.read(source.name, most=metadata.MOST_BYTES)
    table = metadata.read_table(data, source=source.prefix, texts=(*URI_COLUMNS, "etag"))
    del data
    named = next((name for name in URI_COLUMNS if name in table.column_names), None)
    if named is None:
        raise BadInput(
            f"'{source.prefix}' has no column {', '.join(URI_COLUMNS)}; name the images' places in one of them"
        )
    keys = pc.fill_null(table.column(named), "")
    count = table.num_rows
    etags = pc.fill_null(table.column("etag"), "") if "etag" in table.column_names else pa.repeat("", count)
    about = table.drop_columns([name for name in (named, "etag") if name in table.column_names])
    tables.require_own_columns(about, source=source.prefix)
    ours = pa.table([keys, etags, pa.nulls(count, pa.int64())], LISTED)
    joined = pa.table([*ours.columns, *about.columns], names=[*LISTED.names, *about.column_names])
    return _usable(joined, source)


def _usable(table: pa.Table, source: Source) -> Found:
    """The rows whose places can be looked at. Raises BadInput for places of a kind that dipnet does not read."""
    keys = table.column("key")
    _require_readable(keys, source)
    relative = pc.invert(pc.or_(pc.starts_with(keys, S3), pc.starts_with(keys, "/")))
    empty = pc.or_(pc.equal(keys, ""), pc.match_substring_regex(keys, r"^s3://[^/]*/?$"))
    out = pc.and_(relative, pc.match_substring_regex(keys, r"(^|/)\.\.(/|$)"))
    compressed = pc.match_substring_regex(
        pc.utf8_lower(keys), "(" + "|".join(map(re.escape, archives.COMPRESSED)) + ")$"
    )
    part = pc.match_substring_regex(keys, PARTS.pattern)
    findings = Counter(
        {
            NO_PLACE: pc.sum(empty).as_py() or 0,
            LEADS_OUT: pc.sum(out).as_py() or 0,
            archives.IS_COMPRESSED: pc.sum(compressed).as_py() or 0,
            IS_PART: pc.sum(part).as_py() or 0,
        }
    )
    kept = table.filter(pc.invert(pc.or_(pc.or_(empty, out), pc.or_(compressed, part))))
    once = first_of_each(kept, kept.column("key"))
    findings[TWICE] = kept.num_rows - once.num_rows
    return Found(once, findings)


def _require_readable(keys: pa.ChunkedArray, source: Source) -> None:
    """Raises BadInput for places on the web, in other stores, or on this machine where the list comes from another."""
    ways = [
        (
            pc.match_substring_regex(keys, WEB),
            "lie on the web; fetch them with a tool that writes tars, such as img2dataset",
        ),
        (
            pc.and_(pc.match_substring_regex(keys, ELSEWHERE), pc.invert(pc.starts_with(keys, S3))),
            "are neither a path nor s3://bucket/key; write them as one of these",
        ),
    ]
    if source.prefix.startswith(S3):
        ways.append((pc.starts_with(keys, "/"), "are paths of this machine in a list of S3; keep such a list here"))
    for wrong, what in ways:
        if count := pc.sum(wrong).as_py():
            first = keys.filter(wrong)[0].as_py()
            raise BadInput(f"{count:,} places of '{source.prefix}' (such as {first[:200]!r}) {what}")


def first_of_each(table: pa.Table, names: pa.ChunkedArray) -> pa.Table:
    """The first row of each name, in their order."""
    if pc.count_distinct(names, mode="all").as_py() == len(names):
        return table
    numbered = pa.table({"name": names, "row": pa.array(range(len(names)), pa.int64())})
    rows = numbered.group_by("name").aggregate([("row", "min")]).column("row_min")
    return table.take(pc.take(rows, pc.sort_indices(rows)))
