"""From a source to manifests: what listing knows of each element, a row an element, a file a shard."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.corpus import Corpus, EmbeddedShard, Shard
from models.errors import BadInput
from models.plans import IngestPlan
from models.values import Ingested
from storage import archives, corpora, tables
from storage.objects import verified
from storage.stores import Stores, alone, open_stores
from tasks import members, sources, vanished
from tasks.compute import images
from tasks.describing import describe
from tasks.sources import Source
from tasks.steps import step

SEPARATOR = "\0"  # in no path, and in no etag
NAME = pa.binary(16)
KNOWN = pa.schema(
    [
        ("name", NAME),  # of an element
        ("tar", NAME),  # the name of the tar it is in; null: none
        ("member", pa.string()),  # its key, where it is in a tar
        ("shard_id", pa.int64()),
        ("row", pa.int64()),
    ]
)
# What reading an image finds and a filter may ask for, unless the manifests have a column of that name.
READ_COLUMNS = {"width": pa.int32(), "height": pa.int32(), "taken_at": pa.timestamp("us", tz="UTC")}


@step()
def ingest(plan: IngestPlan) -> Ingested:
    """List a source and write manifests for what was not seen before. Running it twice adds nothing."""
    with alone(f"ingest-{plan.corpus}"), open_stores() as stores:
        source = sources.open_source(stores, plan.prefix)
        corpus = _corpus_for(stores, plan, prefix=source.prefix)
        known_shards, known = _known(stores, corpus, plan)
        stores.db.commit()  # hold no lock while images are listed

        looked = _look(stores, source, known, into_all_tars=bool(plan.boxes))
        now = _names(looked.table)
        # An image that is known may have new boxes; without boxes there is nothing new about it.
        there = pc.and_(pc.is_in(now, value_set=known.column("name")), not plan.boxes)
        standing = [looked.table.column("key").filter(there), _members_of(looked.standing, known)]
        described, findings = describe(stores, source, _without(looked.table, there), standing, plan)
        now = _names(described) if plan.boxes else now
        fresh = _without(described, pc.is_in(_names(described), value_set=known.column("name")))
        gone = _gone(known, now, looked.standing)

        parts = _cut(fresh, stores.settings.shard_size)
        shards = [_write(stores, corpus, number=n, manifest=part) for n, part in enumerate(parts, start=known_shards)]
        vanished.mark(stores, corpus, gone)
        corpora.add_shards(stores.db, corpus=corpus, shards=shards)
    findings.update(looked.findings)
    return Ingested(
        corpus=plan.corpus,
        images=known.num_rows + fresh.num_rows,
        new_images=fresh.num_rows,
        new_shards=len(parts),
        vanished=gone.num_rows,
        findings={reason: count for reason, count in findings.items() if count},
    )


def read_manifest(stores: Stores, shard: Shard) -> pa.Table:
    """A shard's manifest. Raises CorruptData when it is not what was written."""
    return tables.read(stores.objects, shard.manifest_key, shard.manifest_sha256)


def manifest_schema(stores: Stores, shard: Shard) -> pa.Schema:
    """Columns of a shard's manifest. Its rows are not looked at; who reads them checks them."""
    return tables.schema_of(stores.objects.read(shard.manifest_key))


def read_reads(stores: Stores, row: EmbeddedShard, columns: Sequence[str] | None = None) -> pa.Table:
    """What one read of a shard's images found, a row a manifest row; or these columns of it. Raises CorruptData as above."""
    return tables.read(stores.objects, row.read_key, row.read_sha256, columns)


def _corpus_for(stores: Stores, plan: IngestPlan, *, prefix: str) -> Corpus:
    """The plan's corpus, new where there is none. Raises BadInput when it exists and differs."""
    if bool(plan.split_or_none) != bool(plan.label_column):
        raise BadInput(
            f"corpus '{plan.corpus}': a split and a label column go together; give --split and --labels, or neither"
        )
    corpus = corpora.find_corpus(stores.db, name=plan.corpus)
    if corpus is None:
        return Corpus(name=plan.corpus, prefix=prefix, split=plan.split_or_none, label_column=plan.label_column)
    if (corpus.prefix, corpus.split, corpus.label_column) != (prefix, plan.split_or_none, plan.label_column):
        raise BadInput(
            f"corpus '{plan.corpus}' exists with prefix '{corpus.prefix}', split '{corpus.split or 'none'}' and labels "
            f"'{corpus.label_column or 'none'}'; repeat these, or choose another name"
        )
    return corpus


def _known(stores: Stores, corpus: Corpus, plan: IngestPlan) -> tuple[int, pa.Table]:
    """How many shards there are, and what their manifests hold, as KNOWN has it.

    Raises BadInput where its elements are boxes and the plan's are not, or the other way round.
    """
    shards = corpora.shards_of(stores.db, corpus_id=corpus.id or 0)
    parts, has_boxes = [KNOWN.empty_table()], False
    for shard in shards:
        data = verified(stores.objects, shard.manifest_key, shard.manifest_sha256)
        part = tables.columns_there(data, ("key", "etag", "member_object", *tables.BOX))
        has_boxes = has_boxes or tables.BOX[0] in part.column_names
        parts.append(_told(part, shard.id or 0))
    table = pa.concat_tables(parts)
    if shards and has_boxes != bool(plan.boxes):
        way = "boxes; give them with --boxes FILE" if has_boxes else "whole images; leave --boxes out"
        raise BadInput(f"the elements of corpus '{plan.corpus}' are {way}, or choose another name")
    return len(shards), table


def _told(manifest: pa.Table, shard_id: int) -> pa.Table:
    """What of a shard's manifest is compared with the listing."""
    count = manifest.num_rows
    if "member_object" in manifest.column_names:
        tars = _hashed(manifest, ["member_object", "etag"])
        keys = pc.if_else(pc.is_valid(manifest.column("member_object")), manifest.column("key"), None)
    else:
        tars, keys = pa.nulls(count, NAME), pa.nulls(count, pa.string())
    rows = pa.array(np.arange(count, dtype=np.int64))
    return pa.table(
        [_names(manifest), tars, keys, pa.repeat(pa.scalar(shard_id, pa.int64()), count), rows], schema=KNOWN
    )


class Looked(NamedTuple):
    """What a source holds now."""

    table: pa.Table  # a row an image: key, etag, bytes, and what is known of it
    standing: pa.Table  # key and etag of tars whose members the manifests hold already
    findings: Counter[str]


def _look(stores: Stores, source: Source, known: pa.Table, *, into_all_tars: bool) -> Looked:
    """The images of a source, in tars too. Raises BadInput when there are none."""
    table, findings = sources.look(source)
    is_tar = pc.ends_with(pc.utf8_lower(table.column("key")), archives.SUFFIX)
    tars, table = table.filter(is_tar), table.filter(pc.invert(is_tar))
    tars = sources.with_etags(stores, source, tars)
    seen = pc.is_in(_names(tars), value_set=known.column("tar").drop_null())
    if into_all_tars:  # some of a tar's images may have had none
        seen = pc.and_(seen, False)
    standing, new = tars.filter(seen), tars.filter(pc.invert(seen))
    if new.num_rows:
        found = members.of_tars(sources.tars_at(stores, source, new.column("key").to_pylist()))
        findings.update(found.findings)
        table = members.together([table, _with_what_is_said_of_tars(found.table, new)])
    if not table.num_rows and not standing.num_rows:
        what = "".join(f"; {count} {reason}" for reason, count in sorted(findings.items()) if count)
        raise BadInput(
            f"no images under '{source.prefix}'; dipnet looks for files that end in {', '.join(images.SUFFIXES)}, and "
            f"for tars of these{what}"
        )
    return Looked(table, standing.select(["key", "etag"]), findings)


def _with_what_is_said_of_tars(found: pa.Table, tars: pa.Table) -> pa.Table:
    """Members with their tar's etag, and what a list says of the tar where the tar itself says nothing."""
    about = tars.drop_columns(["key", "bytes"]).take(found.column("tar"))
    found = found.drop_columns(["tar"])
    for name in about.column_names:
        if name not in found.column_names:
            found = found.append_column(name, about.column(name))
    return found


def _names(table: pa.Table) -> pa.ChunkedArray:
    """What tells each element from all others, in 16 bytes: the hash of its key, etag and box."""
    columns = [name for name in ("key", "etag", *tables.BOX) if name in table.column_names]
    return _hashed(table, columns)


def _hashed(table: pa.Table, columns: Sequence[str]) -> pa.ChunkedArray:
    """A hash of these columns a row; null where the first of them is."""
    found = [pa.array([], NAME)]
    for batch in table.select(columns).to_batches(max_chunksize=65_536):
        rest = [pc.fill_null(pc.cast(column, pa.string()), "") for column in batch.columns[1:]]
        texts = pc.binary_join_element_wise(batch.column(0), *rest, SEPARATOR).to_pylist()
        names = [None if text is None else hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        found.append(pa.array(names, NAME))
    return pa.chunked_array(found)


def _gone(known: pa.Table, now: pa.ChunkedArray, standing: pa.Table) -> pa.Table:
    """Shard and row of what is known and not there any more."""
    there = pc.or_(
        pc.is_in(known.column("name"), value_set=now), pc.is_in(known.column("tar"), value_set=_names(standing))
    )
    return _without(known, there).select(["shard_id", "row"])


def _members_of(standing: pa.Table, known: pa.Table) -> pa.ChunkedArray:
    """Keys of the images in tars that are there as they were."""
    return known.column("member").filter(pc.is_in(known.column("tar"), value_set=_names(standing)))


def _without(table: pa.Table, rows: pa.ChunkedArray) -> pa.Table:
    """The other rows; the table itself, not a copy, where that is all."""
    return table.filter(pc.invert(rows)) if pc.any(rows).as_py() else table


def _cut(manifest: pa.Table, size: int) -> list[pa.Table]:
    """Shards of a manifest. The boxes of one image are never cut apart, be they more than the size."""
    count = manifest.num_rows
    starts = np.arange(count)
    if tables.BOX[0] in manifest.column_names and count:
        keys = pc.binary_join_element_wise(manifest.column("key"), manifest.column("etag"), SEPARATOR)
        another = pc.not_equal(keys.slice(1), keys.slice(0, count - 1)).to_numpy()
        starts = np.flatnonzero(np.concatenate([[True], another]))
    parts, begin = [], 0
    while begin < count:
        end = begin + size
        if end < count:
            place = int(np.searchsorted(starts, end, side="right")) - 1
            end = int(starts[place]) if starts[place] > begin else int(np.append(starts, count)[place + 1])
        parts.append(manifest.slice(begin, end - begin))
        begin = end
    return parts


def _write(stores: Stores, corpus: Corpus, *, number: int, manifest: pa.Table) -> Shard:
    """Write a manifest; its row, which says that it is there, is the caller's to add."""
    columns = [name for name in ("key", "etag", *tables.BOX) if name in manifest.column_names]
    texts = [pc.fill_null(manifest.column(name).cast(pa.string()), "") for name in columns]
    lines = pc.binary_join_element_wise(*texts, "\t").to_pylist()
    key = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    manifest_key = f"corpora/{corpus.name}/{number:06d}-{key[:16]}/manifest.parquet"
    return Shard(
        corpus_id=corpus.id or 0,
        number=number,
        key=key,
        images=manifest.num_rows,
        manifest_key=manifest_key,
        manifest_sha256=stores.objects.write(manifest_key, tables.to_bytes(manifest)),
    )
