"""Queries about corpora, shards, samples and embeddings. Session first; the caller commits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlmodel import Session, col, func, select

from models.corpus import Corpus, EmbeddedShard, EmbeddingSet, EncoderSpec, Sample, Shard
from models.errors import Incompatible, NotFound
from models.states import Split


def find_corpus(db: Session, *, name: str) -> Corpus | None:
    """The corpus of that name, if there is one."""
    return db.exec(select(Corpus).where(Corpus.name == name)).first()


def get_corpus(db: Session, *, name: str) -> Corpus:
    """The corpus of that name. Raises NotFound."""
    corpus = find_corpus(db, name=name)
    if corpus is None:
        known = ", ".join(c.name for c in list_corpora(db)) or "none yet"
        raise NotFound(f"there is no corpus '{name}' (known: {known}); add it with: dipnet corpus add {name} PREFIX")
    return corpus


def list_corpora(db: Session, *, split: Split | None = None) -> Sequence[Corpus]:
    """Every corpus, or those with a split, by name."""
    query = select(Corpus).order_by(Corpus.name)
    return db.exec(query.where(Corpus.split == split) if split else query).all()


def shards_of(db: Session, *, corpus_id: int) -> Sequence[Shard]:
    """A corpus's shards in order."""
    return db.exec(select(Shard).where(Shard.corpus_id == corpus_id).order_by(col(Shard.number))).all()


def add_shards(db: Session, *, corpus: Corpus, shards: Sequence[Shard]) -> None:
    """Add shards to a corpus, which may be new itself."""
    db.add(corpus)
    db.flush()
    for shard in shards:
        shard.corpus_id = corpus.id or 0
    db.add_all(shards)
    db.flush()


def find_encoder(db: Session, *, key: str) -> EncoderSpec | None:
    """The encoder with that key."""
    return db.exec(select(EncoderSpec).where(EncoderSpec.key == key)).first()


def get_encoder(db: Session, *, name: str) -> EncoderSpec:
    """The newest encoder of that name. Raises NotFound when nothing was embedded with it."""
    query = select(EncoderSpec).where(EncoderSpec.name == name).order_by(col(EncoderSpec.id).desc())
    encoder = db.exec(query).first()
    if encoder is None:
        known = ", ".join(db.exec(select(EncoderSpec.name).distinct()).all()) or "none yet"
        raise NotFound(
            f"no vectors of encoder '{name}' (there are: {known}); make some with: dipnet embed CORPUS --encoder {name}"
        )
    return encoder


def embedding_set(db: Session, *, corpus_id: int, encoder_id: int) -> EmbeddingSet:
    """The set of a corpus under an encoder, made when it is new."""
    query = select(EmbeddingSet).where(EmbeddingSet.corpus_id == corpus_id, EmbeddingSet.encoder_id == encoder_id)
    found = db.exec(query).first()
    if found is None:
        found = EmbeddingSet(corpus_id=corpus_id, encoder_id=encoder_id)
        db.add(found)
        db.flush()
    return found


def embedded_shards(db: Session, *, corpora: Sequence[Corpus], encoder: EncoderSpec) -> Sequence[EmbeddedShard]:
    """Complete shards of these corpora under one encoder, in order. Raises Incompatible for a corpus without any."""
    rows: list[EmbeddedShard] = []
    for corpus in corpora:
        query = (
            select(EmbeddedShard)
            .join(EmbeddingSet, col(EmbeddingSet.id) == EmbeddedShard.embedding_set_id)
            .join(Shard, col(Shard.id) == EmbeddedShard.shard_id)
            .where(EmbeddingSet.corpus_id == corpus.id, EmbeddingSet.encoder_id == encoder.id)
            .order_by(col(Shard.number))
        )
        found = db.exec(query).all()
        if not found:
            raise Incompatible(_no_vectors(db, corpus=corpus, encoder=encoder))
        rows.extend(found)
    return rows


def shards_without(db: Session, *, corpus: Corpus, encoder: EncoderSpec) -> int:
    """How many of a corpus's shards lack vectors of an encoder."""
    done = select(EmbeddedShard.shard_id).join(EmbeddingSet).where(EmbeddingSet.encoder_id == encoder.id)
    query = select(func.count(col(Shard.id))).where(Shard.corpus_id == corpus.id, col(Shard.id).not_in(done))
    return db.exec(query).one()


def shards_under(db: Session, *, encoder_id: int) -> Sequence[EmbeddedShard]:
    """Complete shards of any corpus under an encoder, in order."""
    query = select(EmbeddedShard).join(EmbeddingSet, col(EmbeddingSet.id) == EmbeddedShard.embedding_set_id)
    return db.exec(query.where(EmbeddingSet.encoder_id == encoder_id).order_by(col(EmbeddedShard.shard_id))).all()


def embedded_rows(db: Session, *, set_id: int) -> Sequence[EmbeddedShard]:
    """Shards that are complete in an embedding set."""
    return db.exec(select(EmbeddedShard).where(EmbeddedShard.embedding_set_id == set_id)).all()


def versions_of(db: Session, *, shard_ids: Sequence[int]) -> set[tuple[int, str]]:
    """Which of these shards are complete, under any encoder, each with the checksum of what reading it found."""
    query = select(EmbeddedShard.shard_id, EmbeddedShard.read_sha256).where(col(EmbeddedShard.shard_id).in_(shard_ids))
    return set(db.exec(query).all())


def embedded_shard(db: Session, *, set_id: int, shard_id: int) -> EmbeddedShard | None:
    """One shard's row in an embedding set, when it is complete."""
    query = select(EmbeddedShard).where(EmbeddedShard.embedding_set_id == set_id, EmbeddedShard.shard_id == shard_id)
    return db.exec(query).first()


def backend_of(db: Session, *, encoder_id: int, shard_ids: Sequence[int]) -> str:
    """What these shards' vectors are to be made with, by the set of the first; '' where that was not chosen."""
    if not shard_ids:
        return ""
    query = select(EmbeddingSet.backend).join(Shard, col(Shard.corpus_id) == EmbeddingSet.corpus_id)
    return db.exec(query.where(EmbeddingSet.encoder_id == encoder_id, Shard.id == shard_ids[0])).first() or ""


def named(db: Session, *, shard_ids: Sequence[int]) -> tuple[list[str], int]:
    """The corpora that shards belong to, by name, and how many rows the shards have."""
    names: set[str] = set()
    total = 0
    for start in range(0, len(shard_ids), 500):  # SQLite binds a bounded number of parameters
        query = select(Corpus.name, func.sum(Shard.images)).join(Shard, col(Shard.corpus_id) == Corpus.id)
        query = query.where(col(Shard.id).in_(shard_ids[start : start + 500])).group_by(Corpus.name)
        for name, images in db.exec(query).all():
            names.add(name)
            total += int(images)
    return sorted(names), total


def embeddings_of(db: Session, *, corpus_id: int) -> Sequence[tuple[str, int, int]]:
    """(encoder name, complete shards, vectors) for each encoder that saw the corpus."""
    query = (
        select(EncoderSpec.name, func.count(col(EmbeddedShard.id)), func.sum(EmbeddedShard.readable))
        .join(EmbeddingSet, col(EmbeddingSet.encoder_id) == EncoderSpec.id)
        .join(EmbeddedShard, col(EmbeddedShard.embedding_set_id) == EmbeddingSet.id)
        .where(EmbeddingSet.corpus_id == corpus_id)
        .group_by(EncoderSpec.name)
    )
    return db.exec(query).all()


def embedding_sets(db: Session) -> Sequence[tuple[Corpus, EncoderSpec, int, int]]:
    """Every set that has vectors, by corpus: (corpus, encoder, complete shards, vectors)."""
    query = (
        select(Corpus, EncoderSpec, func.count(col(EmbeddedShard.id)), func.sum(EmbeddedShard.readable))
        .join(EmbeddingSet, col(EmbeddingSet.corpus_id) == Corpus.id)
        .join(EncoderSpec, col(EncoderSpec.id) == EmbeddingSet.encoder_id)
        .join(EmbeddedShard, col(EmbeddedShard.embedding_set_id) == EmbeddingSet.id)
        .group_by(col(Corpus.id), col(EncoderSpec.id))
        .order_by(Corpus.name, col(EncoderSpec.id))
    )
    return db.exec(query).all()


def read_shards(db: Session, *, corpus_id: int) -> Sequence[EmbeddedShard]:
    """One complete row a shard whose images were read, in order; any encoder read the same bytes."""
    query = select(EmbeddedShard).join(Shard).where(Shard.corpus_id == corpus_id)
    rows = db.exec(query.order_by(col(Shard.number), col(EmbeddedShard.id))).all()
    return list({row.shard_id: row for row in rows}.values())


def read_rows(db: Session, *, shard_ids: Sequence[int]) -> dict[int, EmbeddedShard]:
    """One complete row of each of these shards whose images were read, by shard; those that were not read are absent."""
    found: dict[int, EmbeddedShard] = {}
    for start in range(0, len(shard_ids), 500):  # SQLite binds a bounded number of parameters
        some = shard_ids[start : start + 500]
        query = select(EmbeddedShard).where(col(EmbeddedShard.shard_id).in_(some)).order_by(col(EmbeddedShard.id))
        found |= {row.shard_id: row for row in db.exec(query).all()}
    return found


def ensure_samples(db: Session, *, samples: Iterable[Sample]) -> int:
    """Add the samples that are not there yet; return how many were new."""
    wanted = {sample.id: sample for sample in samples}
    known = set(known_samples(db, ids=list(wanted)))
    fresh = [sample for sample_id, sample in wanted.items() if sample_id not in known]
    db.add_all(fresh)
    db.flush()
    return len(fresh)


def known_samples(db: Session, *, ids: Sequence[str]) -> dict[str, Sample]:
    """Samples by id; those unknown are absent."""
    found: dict[str, Sample] = {}
    for start in range(0, len(ids), 500):  # SQLite binds a bounded number of parameters
        for sample in db.exec(select(Sample).where(col(Sample.id).in_(ids[start : start + 500]))).all():
            found[sample.id] = sample
    return found


def _no_vectors(db: Session, *, corpus: Corpus, encoder: EncoderSpec) -> str:
    others = ", ".join(name for name, _, _ in embeddings_of(db, corpus_id=corpus.id or 0))
    has = f"has vectors of {others}, not of {encoder.name}" if others else "has no vectors yet"
    return f"corpus '{corpus.name}' {has}; embed it with: dipnet embed {corpus.name} --encoder {encoder.name}"


def embedded_by_shard(db: Session, *, shard_ids: Sequence[int], encoder_id: int) -> Sequence[EmbeddedShard]:
    """Complete rows of these shards under an encoder; shards without vectors are absent."""
    query = select(EmbeddedShard).join(EmbeddingSet, col(EmbeddingSet.id) == EmbeddedShard.embedding_set_id)
    query = query.where(EmbeddingSet.encoder_id == encoder_id, col(EmbeddedShard.shard_id).in_(sorted(set(shard_ids))))
    return db.exec(query.order_by(col(EmbeddedShard.shard_id))).all()
