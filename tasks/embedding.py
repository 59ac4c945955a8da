"""From images to vectors: each image's bytes are read once, hashed, measured, decoded and encoded."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from models.base import utc_now
from models.corpus import Corpus, EmbeddedShard, EmbeddingSet, EncoderSpec, Sample, Shard
from models.errors import BadInput, NotFound
from models.labeling import Label
from models.states import RequestState
from models.values import Embedded
from storage import corpora, labels, tables, vectors
from storage.objects import ObjectStore
from storage.stores import Stores, open_stores
from tasks.compute import images
from tasks.compute.encoder import Encoder, EncoderError, OpenClipEncoder
from tasks.ingesting import read_manifest
from tasks.steps import step, track


class Read(NamedTuple):
    """What one read of an image's bytes found. `prepared` is None for an image in quarantine."""

    uri: str
    sample_id: str
    width: int
    height: int
    reason: str
    prepared: torch.Tensor | None


class ShardVectors(NamedTuple):
    """A shard's outcome: a read a manifest row, and a unit vector a readable one, in the same order."""

    reads: list[Read]  # without the pixels
    vectors: NDArray[np.float16]  # (readable, dim)


@lru_cache(maxsize=2)
def load_encoder(name: str, device: str) -> Encoder:
    """An encoder, loaded once a process. Raises BadInput, naming the way out."""
    try:
        return OpenClipEncoder(name, device=device)
    except EncoderError as error:
        raise BadInput(str(error)) from None


@step()
def pending_shards(corpus_name: str, encoder_name: str) -> list[int]:
    """Shards of a corpus that lack vectors; the encoder is registered on the way."""
    with open_stores() as stores:
        corpus = corpora.get_corpus(stores.db, name=corpus_name)
        shards = corpora.shards_of(stores.db, corpus_id=corpus.id or 0)
        encoder = _register(stores, load_encoder(encoder_name or stores.settings.encoder, stores.settings.device))

        held = corpora.embedding_set(stores.db, corpus_id=corpus.id or 0, encoder_id=encoder.id or 0)
        done = corpora.embedded_shard_ids(stores.db, set_id=held.id or 0)
    return [shard.id or 0 for shard in shards if shard.id not in done]


@step()
def embed_shards(shard_ids: Sequence[int], encoder_name: str, batch_size: int) -> int:
    """Embed a group of shards; each is complete, with its labels, or absent. Returns how many were done."""
    for shard_id in shard_ids:
        _embed_shard(shard_id, encoder_name, batch_size)
    return len(shard_ids)


@step()
def count_embedded(corpus_name: str, encoder_name: str, *, done: int) -> Embedded:
    """What a corpus now holds under an encoder, quarantine included."""
    with open_stores() as stores:
        corpus = corpora.get_corpus(stores.db, name=corpus_name)
        encoder = corpora.get_encoder(stores.db, name=encoder_name or stores.settings.encoder)
        rows = corpora.embedded_shards(stores.db, corpora=[corpus], encoder=encoder)
    quarantined: Counter[str] = Counter()
    for row in rows:
        quarantined.update(row.quarantined)
    readable = sum(row.readable for row in rows)
    return Embedded(
        corpus=corpus_name,
        encoder=encoder.name,
        images=readable + quarantined.total(),
        vectors=readable,
        shards_done=done,
        shards_skipped=len(rows) - done,
        quarantined=dict(quarantined),
    )


def _register(stores: Stores, encoder: Encoder) -> EncoderSpec:
    """The encoder's row, made when it is new."""
    spec = encoder.spec
    found = corpora.find_encoder(stores.db, key=spec.key)
    if found is None:
        found = EncoderSpec(
            key=spec.key,
            name=spec.name,
            dim=spec.dim,
            weights_sha256=spec.weights_sha256,
            preprocessing=spec.preprocessing,
        )
        stores.db.add(found)
        stores.db.flush()
    return found


def _embed_shard(shard_id: int, encoder_name: str, batch_size: int) -> None:
    """Read, encode and store one shard in one transaction; a shard that is there already is left alone."""
    with open_stores() as stores:
        shard = stores.db.get_one(Shard, shard_id)
        corpus = stores.db.get_one(Corpus, shard.corpus_id)
        network = load_encoder(encoder_name or stores.settings.encoder, stores.settings.device)
        encoder = _register(stores, network)
        held = corpora.embedding_set(stores.db, corpus_id=corpus.id or 0, encoder_id=encoder.id or 0)
        manifest = read_manifest(stores, shard)
        stores.db.commit()  # hold no lock while images are read

        source, keys = stores.images(corpus.prefix), manifest.column("key").to_pylist()
        found = _read_and_encode(source, keys, network, batch_size=batch_size, max_pixels=stores.settings.max_pixels)

        if shard.id not in corpora.embedded_shard_ids(stores.db, set_id=held.id or 0):
            stores.db.add(_store(stores, shard, encoder, held, found))
            _import_labels(stores, corpus, shard, manifest, found.reads)


def _read_and_encode(
    source: ObjectStore, keys: Sequence[str], encoder: Encoder, *, batch_size: int, max_pixels: int
) -> ShardVectors:
    """Threads read and decode ahead of the encoder, at most two batches ahead, so that memory stays bounded."""
    reads: list[Read] = []
    parts: list[NDArray[np.float16]] = [np.empty((0, encoder.spec.dim), np.float16)]
    batch: list[torch.Tensor] = []

    def encode() -> None:
        parts.append(encoder.encode_images(batch).astype(np.float16))
        batch.clear()

    with ThreadPoolExecutor(max_workers=min(32, 2 * len(os.sched_getaffinity(0)))) as pool:
        jobs = _ahead(pool, lambda key: _read(source, key, encoder, max_pixels=max_pixels), keys, 2 * batch_size)
        for read in _with_progress(jobs, keys):
            reads.append(read._replace(prepared=None))
            if read.prepared is not None:
                batch.append(read.prepared)
            if len(batch) == batch_size:
                encode()
    if batch:
        encode()
    return ShardVectors(reads, np.concatenate(parts))


def _with_progress(jobs: Iterator[Read], keys: Sequence[str]) -> Iterator[Read]:
    """The reads, with progress."""
    for _, read in zip(track(keys, "embedding"), jobs, strict=False):
        yield read


def _ahead(pool: ThreadPoolExecutor, work: Callable[[str], Read], keys: Sequence[str], window: int) -> Iterator[Read]:
    """Results in the order of the keys, with at most `window` under way."""
    waiting: deque[Future[Read]] = deque()
    for key in keys:
        waiting.append(pool.submit(work, key))
        if len(waiting) >= window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(source: ObjectStore, key: str, encoder: Encoder, *, max_pixels: int) -> Read:
    """One image: bytes once, then hash, size and pixels. What cannot be read is a value, not an error."""
    uri = source.uri(key)
    try:
        data = source.read(key)
    except NotFound:
        return Read(uri, "", 0, 0, images.Reason.MISSING, None)
    sample_id = images.fingerprint(data)
    try:
        decoded = images.decode(data, max_pixels=max_pixels)
    except images.Unreadable as problem:
        return Read(uri, sample_id, 0, 0, problem.reason, None)
    return Read(uri, sample_id, decoded.width, decoded.height, "", encoder.prepare(decoded.image))


def _store(
    stores: Stores, shard: Shard, encoder: EncoderSpec, held: EmbeddingSet, found: ShardVectors
) -> EmbeddedShard:
    """Write the shard's three files, whole; the row that says they are complete is the caller's to add."""
    corpus = stores.db.get_one(Corpus, shard.corpus_id)
    read_key, vectors_key, ids_key = vectors.keys(corpus.name, encoder.key, shard)
    readable = [row for row, read in enumerate(found.reads) if not read.reason]
    ids = vectors.ids_table(
        [found.reads[row].sample_id for row in readable], readable, [found.reads[row].uri for row in readable]
    )
    stores.objects.write(read_key, tables.to_bytes(_reads_table(found.reads)))
    return EmbeddedShard(
        embedding_set_id=held.id or 0,
        shard_id=shard.id or 0,
        read_key=read_key,
        vectors_key=vectors_key,
        ids_key=ids_key,
        vectors_sha256=stores.objects.write(vectors_key, vectors.npy_bytes(found.vectors)),
        ids_sha256=stores.objects.write(ids_key, tables.to_bytes(ids)),
        readable=len(readable),
        quarantined=dict(Counter(read.reason for read in found.reads if read.reason)),
    )


def _reads_table(reads: Sequence[Read]) -> pa.Table:
    return pa.table(
        {
            "sample_id": pa.array([read.sample_id for read in reads], pa.string()),
            "width": pa.array([read.width for read in reads], pa.int32()),
            "height": pa.array([read.height for read in reads], pa.int32()),
            "reason": pa.array([read.reason for read in reads], pa.string()),
        }
    )


def _import_labels(stores: Stores, corpus: Corpus, shard: Shard, manifest: pa.Table, reads: Sequence[Read]) -> None:
    """Labels that came with the images become rows, now that the images have ids. An empty cell is no label."""
    if not corpus.label_column:
        return
    names = tables.column(manifest, corpus.label_column, source=f"corpus '{corpus.name}'")
    labelled = [(name, read) for name, read in zip(names, reads, strict=True) if name and not read.reason]
    corpora.ensure_samples(
        stores.db, samples=[Sample(id=read.sample_id, uri=read.uri, shard_id=shard.id) for _, read in labelled]
    )
    labels.import_labels(
        stores.db,
        labels=[
            Label(
                sample_id=read.sample_id,
                state=RequestState.LABELLED,
                class_name=name,
                source=labels.import_source(corpus),
                external_id=read.sample_id,
                answered_at=utc_now(),
            )
            for name, read in labelled
        ],
    )
