"""From images to vectors: which shards lack them, and the steps that make them. Each image's bytes are read once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from models.corpus import EmbeddingSet, EncoderSpec, Shard
from models.errors import BadInput
from models.settings import Settings, load_settings
from models.values import Embedded, EmbeddedGroup
from storage import corpora
from storage.claims import Claims, claims_of
from storage.stores import Stores, insist, open_stores
from tasks import pipeline, shards, stages, steps
from tasks.compute.encoder import FP32, Encoder, Spec, resolve_device
from tasks.decoding import Chunk, Decoders, local_decoders
from tasks.encoders import choose_backend, load_encoder, require_backend
from tasks.pipeline import Batches, Job, Meter
from tasks.steps import step

ASK_EVERY_S = 1.0  # whether another embedder is done
TELL_EVERY_S = 1.0


@step()
def pending_shards(corpus_name: str, encoder_name: str, *, backend: str = "", retry: bool = False) -> list[int]:
    """Shards of a corpus that lack vectors, or, to retry, hold unreadable images.

    The encoder is registered on the way, and what it runs on is chosen: a set stays with what made it, unless told
    otherwise. Raises BadInput for an encoder or a backend that cannot be had.
    """
    settings = load_settings()
    spec = load_encoder(encoder_name or settings.encoder, settings.device).spec
    if backend:
        require_backend(backend, settings.device)
    held, pending = insist(lambda: _pending(corpus_name, spec, retry=retry))
    if pending and (backend or not held.backend):
        asked = settings.model_copy(update={"backend": backend}) if backend else settings
        # No lock is held while backends are measured, which may take minutes.
        held.backend = choose_backend(spec.name, asked, images=sum(shard.images for shard in pending))
        with open_stores() as stores:
            stores.db.add(held)
    return [shard.id or 0 for shard in pending]


def _pending(corpus_name: str, spec: Spec, *, retry: bool) -> tuple[EmbeddingSet, list[Shard]]:
    """A corpus's set under an encoder, and the shards of it that there is something to do for."""
    with open_stores() as stores:
        corpus = corpora.get_corpus(stores.db, name=corpus_name)
        encoder = register(stores, spec)
        held = corpora.embedding_set(stores.db, corpus_id=corpus.id or 0, encoder_id=encoder.id or 0)
        done = {row.shard_id: row for row in corpora.embedded_rows(stores.db, set_id=held.id or 0)}
        return held, [
            shard
            for shard in corpora.shards_of(stores.db, corpus_id=corpus.id or 0)
            if shard.id not in done or (retry and done[shard.id].quarantined)
        ]


@step()
def embed_shards(
    shard_ids: Sequence[int], encoder_name: str, batch_size: int = 0, *, retry: bool = False, wait: bool = False
) -> EmbeddedGroup:
    """Embed a group of shards; each is complete, with its labels, or absent.

    Shards that another embedder is at work on are left to it and named in the outcome; with `wait` they are waited for,
    and taken over should it end before they are done.
    """
    settings = load_settings()
    with claims_of(settings) as claims:
        embedder = Embedder(settings, encoder_name, claims, local_decoders(settings), retry=retry)
        embedder.embed_all(shard_ids, batch_size, wait=wait)
    return embedder.outcome()


@step()
def count_embedded(
    corpus_name: str, encoder_name: str, *, groups: Sequence[EmbeddedGroup] = (), seconds: float = 0.0
) -> Embedded:
    """What a corpus now holds under an encoder, quarantine included, and how the run went that took so many seconds."""
    with open_stores() as stores:
        corpus = corpora.get_corpus(stores.db, name=corpus_name)
        encoder = corpora.get_encoder(stores.db, name=encoder_name or stores.settings.encoder)
        rows = corpora.embedded_shards(stores.db, corpora=[corpus], encoder=encoder)
    quarantined: Counter[str] = Counter()
    for row in rows:
        quarantined.update(row.quarantined)
    readable = sum(row.readable for row in rows)
    run = stages.together(groups, seconds=seconds)
    return Embedded(
        corpus=corpus_name,
        encoder=encoder.name,
        backend=", ".join(sorted({row.backend for row in rows if row.backend})),
        images=readable + quarantined.total(),
        vectors=readable,
        shards_done=run.shards,
        shards_skipped=len(rows) - run.shards,
        quarantined=dict(quarantined),
        images_per_second=round(run.images / run.seconds, 1) if run.seconds else 0.0,
        megabytes_per_second=round(run.bytes / run.seconds / 1e6, 2) if run.seconds else 0.0,
        share_of_limit=round(stages.share_of_limit(run), 3),
        bottleneck=stages.bottleneck(run),
    )


class Embedder:
    """One encoder and its decoders at work on shards of a corpus, which it claims one after the other."""

    def __init__(
        self, settings: Settings, encoder_name: str, claims: Claims, decoders: Decoders, *, retry: bool = False
    ) -> None:
        self._settings, self._claims, self._decoders, self._retry = settings, claims, decoders, retry
        self._name = encoder_name or settings.encoder
        self._opened: dict[int, shards.Opened] = {}
        self._left: list[int] = []
        self._done, self._told = 0, 0.0
        self._meter = Meter(decoders.workers)
        self._device = resolve_device(settings.device)

    def embed_all(self, shard_ids: Sequence[int], batch_size: int, *, wait: bool) -> None:
        """Embed what nobody else is at work on; with `wait` the others too, should they be left."""
        left = self.embed(shard_ids, batch_size)
        while left and wait:
            time.sleep(ASK_EVERY_S)
            left = self.embed(left, batch_size)

    def embed(self, shard_ids: Sequence[int], batch_size: int) -> list[int]:
        """Embed what nobody else is at work on; return the others."""
        self._left = []
        plain = load_encoder(self._name, self._settings.device)
        spec, backend = insist(lambda: self._registered(plain.spec, shard_ids))
        encoder = _on(backend, self._name, self._settings.device)
        bar = bar_of(self._settings, shard_ids)
        batches = Batches(encoder, batch_size or encoder.batch, self._meter)
        self._meter.begin()
        try:
            pipeline.run(
                self._jobs(shard_ids, spec), self._decoders, batches, frame=encoder.frame,
                sink=lambda job: self._finish(job, encoder.backend), watch=lambda chunk: self._watch(chunk, bar),
            )  # fmt: skip
        finally:
            batches.close()
        return self._left

    def _registered(self, spec: Spec, shard_ids: Sequence[int]) -> tuple[EncoderSpec, str]:
        """The encoder's row, and what these shards are to be made with."""
        with open_stores(self._settings) as stores:
            encoder = register(stores, spec)
            return encoder, corpora.backend_of(stores.db, encoder_id=encoder.id or 0, shard_ids=shard_ids)

    def outcome(self) -> EmbeddedGroup:
        """What was done until now."""
        meter = self._meter
        on_gpu = self._device != "cpu"
        return EmbeddedGroup(
            left=self._left, shards=self._done, images=meter.images, bytes=meter.bytes, seconds=meter.seconds,
            cores=meter.cores, workers=meter.workers, device=self._device, read_seconds=meter.read_seconds,
            decode_seconds=meter.decode_seconds,
            encode_seconds=meter.encode_seconds if on_gpu else meter.processor_seconds(),
        )  # fmt: skip

    def _jobs(self, shard_ids: Sequence[int], spec: EncoderSpec) -> Iterator[Job]:
        for shard_id in shard_ids:
            name = claim_of(shard_id, spec)
            if not self._claims.take(name):
                self._left.append(shard_id)
                continue
            opened = shards.open_shard(shard_id, spec, retry=self._retry)
            if opened is None:
                self._claims.release(name)
                continue
            self._opened[shard_id] = opened
            yield opened.job(shard_id)

    def _finish(self, job: Job, backend: str) -> None:
        """In the writer's thread."""
        opened = self._opened.pop(job.tag)
        shards.put_away(opened, job, backend=backend)
        self._claims.release(claim_of(job.tag, opened.encoder))
        self._done += 1

    def _watch(self, chunk: Chunk, bar: steps.Counter) -> None:
        self._meter.add(chunk)
        bar(len(chunk.seen))
        if time.monotonic() - self._told > TELL_EVERY_S:
            self._told = time.monotonic()
            bar.tell(stages.told(self.outcome()))


def claim_of(shard_id: int, encoder: EncoderSpec) -> str:
    """What is held by whoever makes a shard's vectors."""
    return f"embed-{encoder.id}-{shard_id}"


def bar_of(settings: Settings, shard_ids: Sequence[int]) -> steps.Counter:
    """What somebody who looks sees of these shards."""
    with open_stores(settings) as stores:
        names, total = corpora.named(stores.db, shard_ids=shard_ids)
    return steps.counting(total, f"embedding {', '.join(names)}")


def register(stores: Stores, spec: Spec) -> EncoderSpec:
    """The encoder's row, made when it is new."""
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


def _on(backend: str, name: str, device: str) -> Encoder:
    """The encoder on what its set is made with, or, where that does not run here, on what every machine has."""
    try:
        return load_encoder(name, device, backend or FP32)
    except BadInput:
        return load_encoder(name, device, FP32)
