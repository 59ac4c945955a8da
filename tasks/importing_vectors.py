"""Vectors that were made elsewhere become an embedding set of a corpus that is there: no image is encoded again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.corpus import Corpus, EmbeddedShard, EncoderSpec, Shard
from models.errors import BadInput, DipnetError, Incompatible
from models.plans import VectorsPlan
from models.settings import load_settings
from models.values import VectorsImported
from storage import corpora, vector_files
from storage.claims import Claims, claims_of
from storage.stores import Stores, open_stores
from tasks import declared, exporting_vectors, features, shards
from tasks.compute.encoder import Encoder, Spec
from tasks.compute.frame import Frame
from tasks.compute.images import Reason
from tasks.compute.matching import ABSENT
from tasks.decoding import Decoders, Seen, local_decoders
from tasks.embedding import claim_of, register
from tasks.ingesting import read_manifest, read_reads
from tasks.naming import Given, Matches, Rows
from tasks.pipeline import Job, decoded
from tasks.shards import Opened
from tasks.sources import places_of
from tasks.steps import counting, step, track

BACKEND = "imported"
SMALL = Frame(8, 8)  # images are looked at, not encoded
WITHOUT = (Reason.NO_VECTOR.value, Reason.NOT_FINITE.value)  # of images that can be read all the same
COMPARED, LEAST = (
    8,
    0.9,
)  # images that the encoder is tried on, and the median cosine that shows that it made the vectors


@step()
def import_vectors(plan: VectorsPlan) -> VectorsImported:
    """Take the vectors of images that a corpus holds, each found by its name, or by the hash of its bytes.

    A shard is taken whole or not at all, and one that has vectors of this encoder stays as it is: twice adds nothing.
    Shards of which no image has a vector are left for `dipnet embed`. Raises BadInput for files that cannot be used,
    vectors that are about none of the corpus's images, and ones that the encoder does not make.
    """
    parts, said = _opened(plan)
    given = Given(parts)
    settings = load_settings()
    with open_stores(settings) as stores:
        corpus = corpora.get_corpus(stores.db, name=plan.corpus)
        spec, network = declared.spec_of(plan, settings, dim=given.dim, said=said)
        there = corpora.shards_of(stores.db, corpus_id=corpus.id or 0)
        matches = _by_name(stores, corpus, there, given)
        read = {row.shard_id: row for row in corpora.read_shards(stores.db, corpus_id=corpus.id or 0)}
        work = _Work(corpus.name, register(stores, spec), network, given, matches, read)
    with claims_of(settings) as claims:
        work.take([shard.id or 0 for shard in there], claims, local_decoders(settings))
    return work.told()


def _opened(plan: VectorsPlan) -> tuple[list[vector_files.Part], Spec | None]:
    """The files, and what dipnet said of a folder that it exported."""
    if plan.folder:
        folder = Path(plan.folder).expanduser()
        parts = vector_files.of_folder(folder)
        said = exporting_vectors.spec_in(folder)
    else:
        parts = [vector_files.of_files(Path(plan.vectors).expanduser(), Path(plan.ids).expanduser())]
        said = None
    if not sum(len(part.vectors) for part in parts):
        raise BadInput(f"'{plan.folder or plan.vectors}' holds no vectors; name another")
    return parts, said


def _by_name(stores: Stores, corpus: Corpus, there: Sequence[Shard], given: Given) -> Matches:
    """What names tell, over all shards: a name must fit one image of the whole corpus."""
    found = Matches(len(given))
    for shard in track(there, "matching names"):
        manifest = read_manifest(stores, shard)
        places, _ = places_of(stores, corpus, manifest)
        rows = Rows(places, manifest.column("key").to_pylist())
        found.add(shard.id or 0, given.by_name(rows), rows.uris)
    return found


@dataclass
class _Work:
    """One import on its way through the shards."""

    corpus: str
    encoder: EncoderSpec
    network: Encoder | None
    given: Given
    matches: Matches
    read: dict[int, EmbeddedShard]  # a row a shard whose images were read, for whatever encoder
    cosine: float | None = None
    counts: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)

    def take(self, shard_ids: Sequence[int], claims: Claims, decoders: Decoders) -> None:
        """Every shard that lacks vectors and is given some; those whose images were never read are read now, once."""
        unread: list[int] = []
        for shard_id in track(shard_ids, "importing vectors"):
            if shard_id not in self.read:
                unread.append(shard_id)
                continue
            with open_stores() as stores:
                seen = shards.seen_of(read_reads(stores, self.read[shard_id]))
            with _held(claims, claim_of(shard_id, self.encoder)) as mine:
                opened = self._open(shard_id, mine=mine)
                if opened is None:
                    self._use(self._rows(shard_id, seen))
                else:
                    self._finish(opened, seen)
        if unread:
            self._take_unread(unread, claims, decoders)

    def _take_unread(self, shard_ids: Sequence[int], claims: Claims, decoders: Decoders) -> None:
        """The same, of images that are read on the way."""
        opened: dict[int, Opened] = {}

        def jobs() -> Iterator[Job]:
            for shard_id in shard_ids:
                if not self.given.has_ids and (self.matches.of_shard[shard_id] < 0).all():
                    self.counts["left"] += 1
                    continue
                name = claim_of(shard_id, self.encoder)
                mine = claims.take(name)
                found = self._open(shard_id, mine=mine)
                if found is None:
                    if mine:
                        claims.release(name)
                else:
                    opened[shard_id] = found
                    yield found.job(shard_id)

        done = counting(sum(len(self.matches.of_shard[shard_id]) for shard_id in shard_ids), "reading images")
        with closing(decoded(jobs(), decoders, SMALL)) as chunks:
            for job, chunk in chunks:
                chunk.release()
                done(len(chunk.seen))
                if job.complete:
                    self._finish(opened.pop(job.tag), job.seen)
                    claims.release(claim_of(job.tag, self.encoder))

    def _open(self, shard_id: int, *, mine: bool) -> Opened | None:
        if not mine:
            self.counts["left"] += 1
            return None
        opened = shards.open_shard(shard_id, self.encoder, retry=False)
        self.counts["skipped"] += opened is None
        return opened

    def _rows(self, shard_id: int, seen: Sequence[Seen]) -> NDArray[np.int64]:
        """The vector (rows,) of each manifest row, by its name or by what it holds."""
        by_name = self.matches.of_shard[shard_id]
        by_id = self.given.by_id([one.sample_id for one in seen], [one.image_id for one in seen])
        return np.where(by_name == ABSENT, by_id, by_name)

    def _use(self, rows: NDArray[np.int64]) -> None:
        self.given.used[rows[rows >= 0]] = True

    def _finish(self, opened: Opened, seen: Sequence[Seen]) -> None:
        """Put a shard away, whole."""
        rows = self._rows(opened.shard.id or 0, seen)
        self._use(rows)
        readable = [one._replace(reason="") if one.reason in WITHOUT else one for one in seen]
        has = np.asarray([not one.reason for one in readable]) & (rows >= 0)
        if not has.any():
            self.counts["left"] += 1
            return
        found = self.given.take(rows[has])
        self._compare(opened, np.flatnonzero(has), found)
        told = [
            one if one.reason or taken else one._replace(reason=Reason.NO_VECTOR.value)
            for one, taken in zip(readable, has.tolist(), strict=True)
        ]
        vectors: Future[NDArray[np.float16]] = Future()
        vectors.set_result(found.astype(np.float16))
        job = opened.job(opened.shard.id or 0)
        job.started, job.seen, job.parts = time.monotonic(), told, [vectors]
        shards.put_away(opened, job, backend=BACKEND)
        finite = int(np.isfinite(found).all(axis=1).sum())
        self.counts.update(done=1, vectors=finite, without=sum(one.reason == Reason.NO_VECTOR for one in told))
        self.quarantined.update(one.reason for one in told if one.reason)
        if finite < len(found):
            self.quarantined[Reason.NOT_FINITE.value] += len(found) - finite

    def _compare(self, opened: Opened, rows: NDArray[np.int64], found: NDArray[np.float32]) -> None:
        """Once, before anything is written. Raises Incompatible for vectors that the encoder does not make."""
        if self.network is None or self.cosine is not None:
            return
        cosines: list[float] = []
        with open_stores() as stores:
            for row, vector in zip(rows.tolist(), found, strict=True):
                uri = opened.places[row].uri
                try:
                    made = features.vector_of(stores, self.network, stores.read_uri(uri), uri=uri)
                except DipnetError:  # gone since
                    continue
                cosines += [float(made @ vector)] if np.isfinite(vector).all() else []
                if len(cosines) == COMPARED:
                    break
        if not cosines:
            return
        self.cosine = round(float(np.median(cosines)), 4)
        if self.cosine < LEAST:
            raise Incompatible(
                f"encoder '{self.encoder.name}' did not make these vectors: of {len(cosines)} images it makes others (median "
                f"cosine {self.cosine:.2f}); name what made them, or give it a name of its own: --encoder NAME --dim "
                f"{self.given.dim}"
            )

    def told(self) -> VectorsImported:
        """The outcome. Raises BadInput where no vector is about any image."""
        used = int(self.given.used.sum())
        if not used:
            raise BadInput(
                f"none of the {len(self.given):,} vectors is about an image of corpus '{self.corpus}': they name "
                f"'{self.given.example}'; see what the corpus calls its images with: dipnet search, or name another corpus"
            )
        return VectorsImported(
            corpus=self.corpus,
            encoder=self.encoder.name,
            declared=self.network is None,
            given=len(self.given),
            vectors=self.counts["vectors"],
            unmatched=len(self.given) - used - self.matches.ambiguous,
            ambiguous=self.matches.ambiguous,
            without=self.counts["without"],
            shards_done=self.counts["done"],
            shards_skipped=self.counts["skipped"],
            shards_left=self.counts["left"],
            quarantined=dict(self.quarantined),
            cosine=self.cosine,
        )


@contextmanager
def _held(claims: Claims, name: str) -> Iterator[bool]:
    """Whether the name is ours for the block."""
    mine = claims.take(name)
    try:
        yield mine
    finally:
        if mine:
            claims.release(name)
