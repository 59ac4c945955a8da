"""From a prefix to manifests: what listing knows of each image, a row an image, a file a shard."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from models.corpus import Corpus, Shard
from models.errors import BadInput
from models.plans import IngestPlan
from models.values import Ingested
from storage import corpora, tables
from storage.objects import Listed, ObjectStore
from storage.stores import Stores, open_stores
from tasks import metadata
from tasks.compute import images
from tasks.metadata import Metadata
from tasks.steps import step

NO_FILE, NO_ROW = "rows about no image that is there", "images without a row"


@step()
def ingest(plan: IngestPlan) -> Ingested:
    """List a prefix and write manifests for images not seen before. Running it twice adds nothing."""
    with open_stores() as stores:
        source = stores.images(plan.prefix)
        corpus = _corpus_for(stores, plan, prefix=source.prefix)
        listed = _images(source)
        shards = corpora.shards_of(stores.db, corpus_id=corpus.id or 0)
        known = {seen for shard in shards for seen in _seen(stores, shard)}

        fresh = [item for item in listed if (item.key, item.etag) not in known]
        about = _metadata(stores, source, plan.metadata)
        manifest = _manifest(fresh, about.table if about else None, label_column=corpus.label_column)

        size = stores.settings.shard_size
        parts = [manifest.slice(start, size) for start in range(0, manifest.num_rows, size)]
        for number, part in enumerate(parts, start=len(shards)):
            _add_shard(stores, corpus, number=number, manifest=part)
    return Ingested(
        corpus=plan.corpus,
        images=len(known) + len(fresh),
        new_images=len(fresh),
        new_shards=len(parts),
        findings=_findings(listed, about) if about else {},
    )


def read_manifest(stores: Stores, shard: Shard) -> pa.Table:
    """A shard's manifest. Raises CorruptData when it is not what was written."""
    return tables.read(stores.objects, shard.manifest_key, shard.manifest_sha256)


def manifest_schema(stores: Stores, shard: Shard) -> pa.Schema:
    """Columns of a shard's manifest. Its rows are not looked at; who reads them checks them."""
    return tables.schema_of(stores.objects.read(shard.manifest_key))


def _corpus_for(stores: Stores, plan: IngestPlan, *, prefix: str) -> Corpus:
    """The plan's corpus, made when it is new. Raises BadInput when it exists and differs."""
    if bool(plan.split_or_none) != bool(plan.label_column):
        raise BadInput(
            f"corpus '{plan.corpus}': a split and a label column go together; give --split and --labels, or neither"
        )
    corpus = corpora.find_corpus(stores.db, name=plan.corpus)
    if corpus is None:
        corpus = Corpus(name=plan.corpus, prefix=prefix, split=plan.split_or_none, label_column=plan.label_column)
        stores.db.add(corpus)
        stores.db.flush()
    elif (corpus.prefix, corpus.split, corpus.label_column) != (prefix, plan.split_or_none, plan.label_column):
        raise BadInput(
            f"corpus '{plan.corpus}' exists with prefix '{corpus.prefix}', split '{corpus.split or 'none'}' and labels "
            f"'{corpus.label_column or 'none'}'; repeat these, or choose another name"
        )
    return corpus


def _images(source: ObjectStore) -> list[Listed]:
    """What lies under the prefix and is named like an image. Raises BadInput for no image."""
    listed = [item for item in source.list() if item.key.lower().endswith(images.SUFFIXES)]
    if not listed:
        raise BadInput(
            f"no images under '{source.prefix}'; dipnet looks for files that end in {', '.join(images.SUFFIXES)}"
        )
    return listed


def _seen(stores: Stores, shard: Shard) -> list[tuple[str, str]]:
    manifest = read_manifest(stores, shard)
    return list(zip(manifest.column("key").to_pylist(), manifest.column("etag").to_pylist(), strict=True))


def _metadata(stores: Stores, source: ObjectStore, file: str) -> Metadata | None:
    """What the file that is named says, or the one beside the images. Raises BadInput where there are several of these."""
    if file:
        return metadata.read(stores.read_uri(file, most=metadata.MOST_BYTES), source=file)
    there = [name for name in metadata.BESIDE if source.exists(name)]
    if len(there) > 1:
        raise BadInput(
            f"'{source.prefix}' has {' and '.join(there)}; keep one of them, or name one with --metadata FILE"
        )
    if not there:
        return None
    return metadata.read(source.read(there[0], most=metadata.MOST_BYTES), source=source.uri(there[0]))


def _findings(listed: Sequence[Listed], about: Metadata) -> dict[str, int]:
    """What of the metadata cannot be used, and where it and the images do not meet."""
    images_there, named = {item.key for item in listed}, set(about.table.column(tables.FILE_NAME).to_pylist())
    found = about.findings | {NO_FILE: len(named - images_there), NO_ROW: len(images_there - named)}
    return {reason: count for reason, count in found.items() if count}


def _manifest(fresh: Sequence[Listed], about: pa.Table | None, *, label_column: str) -> pa.Table:
    """A row an image: key, etag, bytes, the name of its folder, and the columns of the metadata (null where absent)."""
    columns: dict[str, pa.Array] = {
        "key": pa.array([item.key for item in fresh], pa.string()),
        "etag": pa.array([item.etag for item in fresh], pa.string()),
        "bytes": pa.array([item.bytes for item in fresh], pa.int64()),
        "folder": pa.array([item.key.rpartition("/")[0].rpartition("/")[2] for item in fresh], pa.string()),
    }
    if about is not None:
        places = {name: place for place, name in enumerate(about.column("file_name").to_pylist())}
        rows = pa.array([places.get(item.key) for item in fresh], pa.int64())
        joined = about.take(rows).drop_columns(["file_name"])
        columns |= {name: joined.column(name) for name in joined.column_names}
    manifest = pa.table(columns)
    if label_column:
        tables.column(manifest, label_column, source="the metadata")
    return manifest


def _add_shard(stores: Stores, corpus: Corpus, *, number: int, manifest: pa.Table) -> None:
    """Write a manifest and its row."""
    lines = zip(manifest.column("key").to_pylist(), manifest.column("etag").to_pylist(), strict=True)
    key = hashlib.sha256("\n".join(f"{key}\t{etag}" for key, etag in lines).encode()).hexdigest()
    manifest_key = f"corpora/{corpus.name}/{number:06d}-{key[:16]}/manifest.parquet"
    checksum = stores.objects.write(manifest_key, tables.to_bytes(manifest))
    stores.db.add(
        Shard(
            corpus_id=corpus.id or 0,
            number=number,
            key=key,
            images=manifest.num_rows,
            manifest_key=manifest_key,
            manifest_sha256=checksum,
        )
    )
