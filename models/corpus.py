"""Corpora, their shards, and the samples that somebody touched."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.base import created_at, enum_type
from models.states import Split

DECLARED = "declared: "  # what the preprocessing of an encoder begins with that is known by its vectors alone


class Corpus(SQLModel, table=True):
    """A named, append-only set of images under one prefix. With a split, its samples are labelled data."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True, max_length=100)
    prefix: str = Field(description="directory or s3://bucket/prefix that the images lie under, or a list of images")
    split: Split | None = Field(
        default=None, sa_type=enum_type(Split), description="use of its labels; none: an unlabelled pool"
    )
    label_column: str = Field(
        default="", max_length=200, description="manifest column that holds the class; empty: none"
    )
    vanished: int = Field(default=0, description="rows of the manifests that the last listing no longer had")
    vanished_key: str = Field(default="", description="Parquet: shard_id and row of each; empty: none")
    vanished_sha256: str = Field(default="", max_length=64)
    created_at: datetime = created_at()


class Shard(SQLModel, table=True):
    """Up to `shard_size` elements of a corpus: the unit of work, of retry and of parallelism."""

    __table_args__ = (UniqueConstraint("corpus_id", "number"), UniqueConstraint("corpus_id", "key"))

    id: int | None = Field(default=None, primary_key=True)
    corpus_id: int = Field(foreign_key="corpus.id", index=True)
    number: int = Field(description="0, 1, … in the order of listing")
    key: str = Field(max_length=64, description="hash of the listed keys and etags")
    images: int = Field(description="rows of the manifest: images, or boxes of images where the corpus has boxes")
    manifest_key: str
    manifest_sha256: str = Field(max_length=64)
    created_at: datetime = created_at()


class Sample(SQLModel, table=True):
    """An image that a decision refers to, or a box of one. See models.elements for ids and URIs."""

    id: str = Field(primary_key=True, max_length=64)
    uri: str = Field(description="where the bytes were found")
    shard_id: int | None = Field(default=None, foreign_key="shard.id", index=True)
    image_id: str = Field(default="", max_length=64, description="of a box: the id of its image; empty: it is one")
    created_at: datetime = created_at()

    @property
    def image(self) -> str:
        """The id of the whole image."""
        return self.image_id or self.id


class EncoderSpec(SQLModel, table=True):
    """Model, weights and preprocessing that make vectors. Vectors of two specs never meet."""

    id: int | None = Field(default=None, primary_key=True)
    key: str = Field(unique=True, max_length=64, description="hash of all that follows")
    name: str = Field(description="MODEL/PRETRAINED or the folder of a local checkpoint")
    dim: int
    weights_sha256: str = Field(max_length=64)
    preprocessing: str = Field(description="open_clip's transform, as text")
    created_at: datetime = created_at()

    @property
    def declared(self) -> bool:
        """Whether it is known by its vectors alone: nothing here can make more of them."""
        return self.preprocessing.startswith(DECLARED)


class EmbeddingSet(SQLModel, table=True):
    """The vectors of one corpus under one encoder."""

    __table_args__ = (UniqueConstraint("corpus_id", "encoder_id"),)

    id: int | None = Field(default=None, primary_key=True)
    corpus_id: int = Field(foreign_key="corpus.id", index=True)
    encoder_id: int = Field(foreign_key="encoderspec.id", index=True)
    backend: str = Field(
        default="", description="what its next shards are made with where that runs; empty: not chosen"
    )
    created_at: datetime = created_at()


class EmbeddedShard(SQLModel, table=True):
    """A shard whose vectors are complete. The row is written last: no row, no vectors."""

    __table_args__ = (UniqueConstraint("embedding_set_id", "shard_id"),)

    id: int | None = Field(default=None, primary_key=True)
    embedding_set_id: int = Field(foreign_key="embeddingset.id", index=True)
    shard_id: int = Field(foreign_key="shard.id", index=True)
    read_key: str = Field(description="Parquet: what one read of every image's bytes found")
    read_sha256: str = Field(default="", max_length=64, description="empty: made before 0.5")
    vectors_key: str = Field(description="npy: float16 (readable, dim), unit rows")
    ids_key: str = Field(description="Parquet: sample_id and manifest row of each vector")
    vectors_sha256: str = Field(max_length=64)
    ids_sha256: str = Field(max_length=64)
    readable: int
    quarantined: dict[str, int] = Field(default_factory=dict, sa_type=JSON, description="images by reason")
    backend: str = Field(default="", description="what encoded it, such as torch-fp32; empty: made before 0.5")
    seconds: float = Field(default=0.0, description="from its first image to its last")
    created_at: datetime = created_at()
