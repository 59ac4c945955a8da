"""One shard of a corpus: what there is to read of it, and how what was found is put away, whole or not at all."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.base import utc_now
from models.corpus import Corpus, EmbeddedShard, EncoderSpec, Sample, Shard
from models.elements import Place, apart
from models.labeling import Label
from models.states import RequestState
from storage import corpora, labels, tables, vectors
from storage.objects import verified
from storage.stores import Stores, insist, open_stores
from tasks import vanished
from tasks.compute.images import Reason
from tasks.decoding import Seen
from tasks.ingesting import read_manifest, read_reads
from tasks.pipeline import Job
from tasks.sources import places_of


@dataclass(frozen=True)
class Opened:
    """A shard and the rows of it that are to be looked at: all, or those that were unreadable before."""

    shard: Shard
    corpus: Corpus
    encoder: EncoderSpec
    set_id: int
    manifest: pa.Table
    places: list[Place]  # of all rows
    etags: list[str]
    rows: list[int]  # of the job
    before: EmbeddedShard | None  # what an earlier run found, where unreadable images are looked at again

    def job(self, tag: int) -> Job:
        """These rows on their way."""
        return Job(tag, [self.places[row] for row in self.rows], [self.etags[row] for row in self.rows])


def open_shard(shard_id: int, encoder: EncoderSpec, *, retry: bool) -> Opened | None:
    """What there is to do of a shard under an encoder; None when there is nothing."""
    return insist(lambda: _opened(shard_id, encoder, retry=retry))


def _opened(shard_id: int, encoder: EncoderSpec, *, retry: bool) -> Opened | None:
    with open_stores() as stores:
        shard = stores.db.get_one(Shard, shard_id)
        corpus = stores.db.get_one(Corpus, shard.corpus_id)
        held = corpora.embedding_set(stores.db, corpus_id=corpus.id or 0, encoder_id=encoder.id or 0)
        before = corpora.embedded_shard(stores.db, set_id=held.id or 0, shard_id=shard_id)
        if before is not None and not (retry and before.quarantined):
            return None
        manifest = read_manifest(stores, shard)
        places, etags = places_of(stores, corpus, manifest)
        rows = list(range(manifest.num_rows))
        if before is not None:
            rows = [row for row, _ in quarantined_rows(stores, corpus, before)]
            if not rows:
                return None
        return Opened(shard, corpus, encoder, held.id or 0, manifest, places, etags, rows, before)


def put_away(opened: Opened, job: Job, *, backend: str) -> None:
    """Write a shard's three files, each whole, and then, in one transaction, its row and the labels that came along.

    A shard that somebody else completed meanwhile stays as it is.
    """
    insist(lambda: _put_away(opened, job, backend=backend))


def _put_away(opened: Opened, job: Job, *, backend: str) -> None:
    seen, found = _with_finite(job.seen, job.vectors(opened.encoder.dim))
    with open_stores() as stores:
        present = corpora.embedded_shard(stores.db, set_id=opened.set_id, shard_id=opened.shard.id or 0)
        if (present and present.vectors_sha256) != (opened.before and opened.before.vectors_sha256):
            return
        if present is not None:
            seen, found = _merged(stores, opened, present, seen, found)
        row = present or EmbeddedShard(
            embedding_set_id=opened.set_id, shard_id=opened.shard.id or 0, read_key="", vectors_key="", ids_key="",
            vectors_sha256="", ids_sha256="", readable=0,
        )  # fmt: skip
        stores.db.commit()  # hold no lock while files are written
        _write(stores, opened, row, seen, found)
        row.backend, row.seconds = backend, round(time.monotonic() - job.started, 3)
        stores.db.add(row)
        import_labels(stores, opened.corpus, opened.shard, opened.manifest, opened.places, seen)


def quarantined_rows(stores: Stores, corpus: Corpus, row: EmbeddedShard) -> list[tuple[int, str]]:
    """Manifest rows of a shard that could not be read, and why; without those that have vanished, which nobody can mend."""
    if not row.quarantined:
        return []
    reasons = read_reads(stores, row).column("reason").to_pylist()
    gone = set(vanished.rows_of(stores, corpus).get(row.shard_id, np.empty(0, np.int64)).tolist())
    return [(number, reason) for number, reason in enumerate(reasons) if reason and number not in gone]


def import_labels(
    stores: Stores, corpus: Corpus, shard: Shard, manifest: pa.Table, places: Sequence[Place], seen: Sequence[Seen]
) -> None:
    """Labels that came with the images become rows, now that the images have ids. An empty cell is no label."""
    if not corpus.label_column:
        return
    names = tables.column(manifest, corpus.label_column, source=f"corpus '{corpus.name}'")
    labelled = [
        (name, place.uri, one) for name, place, one in zip(names, places, seen, strict=True) if name and not one.reason
    ]
    corpora.ensure_samples(stores.db, samples=[_sample(one, uri, shard) for _, uri, one in labelled])
    labels.import_labels(
        stores.db,
        labels=[
            Label(
                sample_id=one.sample_id,
                state=RequestState.LABELLED,
                class_name=name,
                source=labels.import_source(corpus),
                external_id=one.sample_id,
                answered_at=utc_now(),
            )
            for name, _, one in labelled
        ],
    )


def _sample(one: Seen, uri: str, shard: Shard) -> Sample:
    return Sample(id=one.sample_id, uri=uri, shard_id=shard.id, image_id=apart(one.sample_id, one.image_id))


def _with_finite(seen: Sequence[Seen], found: NDArray[np.float16]) -> tuple[list[Seen], NDArray[np.float16]]:
    """What was seen, and the vectors (readable, dim), without those that are no vectors: their images are quarantined."""
    finite = np.atleast_1d(np.all(np.isfinite(found), axis=1))
    if bool(np.all(finite)):
        return list(seen), found
    good: Iterator[bool] = iter(finite.tolist())
    marked = [one if one.reason or next(good) else one._replace(reason=Reason.NOT_FINITE.value) for one in seen]
    return marked, found[finite]


def _merged(
    stores: Stores, opened: Opened, before: EmbeddedShard, seen: Sequence[Seen], found: NDArray[np.float16]
) -> tuple[list[Seen], NDArray[np.float16]]:
    """All rows of a shard: those of the job as they are now, the others as they were."""
    everything = seen_of(read_reads(stores, before))
    old = vectors.from_npy(verified(stores.objects, before.vectors_key, before.vectors_sha256))
    by_row = dict(zip((row for row, one in enumerate(everything) if not one.reason), old, strict=True))
    by_row |= dict(zip((row for row, one in zip(opened.rows, seen, strict=True) if not one.reason), found, strict=True))
    for row, one in zip(opened.rows, seen, strict=True):
        everything[row] = one
    ordered = [by_row[row] for row in sorted(by_row)]
    return everything, np.stack(ordered) if ordered else found


def _write(
    stores: Stores, opened: Opened, row: EmbeddedShard, seen: Sequence[Seen], found: NDArray[np.float16]
) -> None:
    """The three files; the row is told where they are."""
    readable = [number for number, one in enumerate(seen) if not one.reason]
    uris = [opened.places[number].uri for number in readable]
    ids = tables.to_bytes(
        vectors.ids_table(
            [seen[number].sample_id for number in readable],
            readable,
            uris,
            [seen[number].image_id for number in readable],
        )
    )
    reads, packed = tables.to_bytes(table_of(seen)), vectors.npy_bytes(found)
    row.read_sha256, row.vectors_sha256 = (hashlib.sha256(data).hexdigest() for data in (reads, packed))
    row.read_key, row.vectors_key, row.ids_key = vectors.keys(
        opened.corpus.name, opened.encoder.key, opened.shard,
        read_sha256=row.read_sha256, vectors_sha256=row.vectors_sha256,
    )  # fmt: skip
    stores.objects.write(row.read_key, reads)
    stores.objects.write(row.vectors_key, packed)
    row.ids_sha256 = stores.objects.write(row.ids_key, ids)
    row.readable = len(readable)
    row.quarantined = dict(Counter(one.reason for one in seen if one.reason))


def table_of(seen: Sequence[Seen]) -> pa.Table:
    """read.parquet: a row a manifest row."""
    columns = zip(*seen, strict=True)
    by_name = dict(zip(Seen._fields, columns, strict=True))
    return pa.table(
        {
            "sample_id": pa.array(by_name["sample_id"], pa.string()),
            vectors.IMAGE_ID: vectors.boxes_of(by_name["sample_id"], by_name["image_id"]),
            "width": pa.array(by_name["width"], pa.int32()),
            "height": pa.array(by_name["height"], pa.int32()),
            "taken_at": pa.array(by_name["taken_at"], pa.timestamp("us", "UTC")),
            "reason": pa.array(by_name["reason"], pa.string()),
        }
    )


def seen_of(reads: pa.Table) -> list[Seen]:
    """The rows of a read.parquet; what was read before 0.5 knows no times."""
    taken = [None] * reads.num_rows
    if "taken_at" in reads.column_names:
        taken = reads.column("taken_at").cast(pa.int64()).to_pylist()
    ids, widths, heights, reasons = (
        reads.column(name).to_pylist() for name in ("sample_id", "width", "height", "reason")
    )
    rows = zip(ids, vectors.images_of(reads), widths, heights, taken, reasons, strict=True)
    return [Seen(one, image, width, height, moment, 0, reason) for one, image, width, height, moment, reason in rows]
