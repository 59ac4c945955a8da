"""Shards of vectors: float16 npy files, unit rows, with a Parquet of sample ids beside each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from weakref import ref

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.corpus import EmbeddedShard, Shard
from models.elements import apart
from models.errors import CorruptData
from storage import tables
from storage.cache import Cache
from storage.objects import ObjectStore, verified

IMAGE_ID = "image_id"
REBUILD = "delete the file and its row, then: dipnet embed CORPUS"


class Taken(NamedTuple):
    """Some rows of some shards, in the order asked for."""

    vectors: NDArray[np.float32]  # (n, dim)
    sample_ids: list[str]  # (n,)
    uris: list[str]  # (n,)
    shard_ids: list[int]  # (n,)
    image_ids: list[str]  # (n,) those of the whole images: where a sample is one, its own

    def at(self, places: NDArray[np.int64]) -> Taken:
        """Some of them, in the order given."""
        chosen = places.tolist()
        return Taken(
            self.vectors[places],
            [self.sample_ids[place] for place in chosen],
            [self.uris[place] for place in chosen],
            [self.shard_ids[place] for place in chosen],
            [self.image_ids[place] for place in chosen],
        )

    @classmethod
    def joined(cls, parts: Sequence[Taken]) -> Taken:
        """The rows of all parts, one after the other."""
        return cls(
            np.concatenate([part.vectors for part in parts]),
            [name for part in parts for name in part.sample_ids],
            [uri for part in parts for uri in part.uris],
            [shard for part in parts for shard in part.shard_ids],
            [image for part in parts for image in part.image_ids],
        )


@dataclass(frozen=True)
class VectorShard:
    """One shard's vectors, memory-mapped while somebody holds them, and the ids of their samples."""

    store: ObjectStore
    row: EmbeddedShard
    dim: int
    cache: Cache
    _mapped: list[ref[NDArray[np.float16]]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return self.row.readable

    @property
    def vectors(self) -> NDArray[np.float16]:
        """(n, dim), unit rows. Raises CorruptData when they are not what was written, NotFound when they are gone.

        The shard itself does not keep them: who goes through a thousand shards has one or two open.
        """
        known = self._mapped[-1]() if self._mapped else None
        if known is not None:
            return known
        try:
            found = self.cache.use(self.store, self.row.vectors_key, self.row.vectors_sha256, self._open)
        except CorruptData as problem:
            raise CorruptData(f"vectors cannot be used: {problem}; {REBUILD}") from None
        self._mapped[:] = [ref(found)]
        return found

    def _open(self, path: Path) -> NDArray[np.float16]:
        found: NDArray[np.float16] = np.load(path, mmap_mode="r" if len(self) else None, allow_pickle=False)
        if found.shape != (len(self), self.dim):
            raise CorruptData(f"'{path}' has shape {found.shape}, not ({len(self)}, {self.dim})")
        return found

    @cached_property
    def ids(self) -> pa.Table:
        """sample_id, manifest row and uri of each vector, and the image_id of those that are boxes."""
        return tables.from_bytes(verified(self.store, self.row.ids_key, self.row.ids_sha256))

    def manifest_rows(self) -> NDArray[np.int64]:
        """Manifest row (n,) of each vector. Not kept: a filter goes through every shard, and ids take 136 bytes a row."""
        data = verified(self.store, self.row.ids_key, self.row.ids_sha256)
        found: NDArray[np.int64] = tables.columns_of(data, ["row"]).column("row").to_numpy()
        return found

    @property
    def sample_ids(self) -> list[str]:
        """(n,)"""
        found: list[str] = self.ids.column("sample_id").to_pylist()
        return found


class Keys(NamedTuple):
    """Object keys of what a shard's embedding leaves. They follow from the bytes alone, so nothing is written over."""

    read: str
    vectors: str
    ids: str


def keys(corpus: str, encoder_key: str, shard: Shard, *, read_sha256: str, vectors_sha256: str) -> Keys:
    """Where a shard's read.parquet, vectors and ids belong. Encoders that read the same bytes share the first."""
    name = f"{shard.number:06d}-{shard.key[:16]}"
    stem = f"embeddings/{corpus}/{encoder_key[:16]}/{name}-{vectors_sha256[:8]}"
    return Keys(f"corpora/{corpus}/{name}/read-{read_sha256[:8]}.parquet", f"{stem}.npy", f"{stem}.parquet")


def npy_bytes(vectors: NDArray[np.float16]) -> bytes:
    """The array as npy."""
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(vectors, dtype=np.float16), allow_pickle=False)
    return sink.getvalue()


def from_npy(data: bytes) -> NDArray[np.float16]:
    """The array in npy bytes."""
    found: NDArray[np.float16] = np.load(io.BytesIO(data), allow_pickle=False)
    return found


def ids_table(
    sample_ids: Sequence[str],
    manifest_rows: Sequence[int],
    uris: Sequence[str],
    image_ids: Sequence[str] | None = None,
) -> pa.Table:
    """The Parquet beside a shard's vectors. `image_ids` are those of the whole images; none: every sample is one."""
    columns = {
        "sample_id": pa.array(sample_ids, pa.string()),
        "row": pa.array(manifest_rows, pa.int64()),
        "uri": pa.array(uris, pa.string()),
        IMAGE_ID: boxes_of(sample_ids, sample_ids if image_ids is None else image_ids),
    }
    return pa.table(columns)


def boxes_of(sample_ids: Sequence[str], image_ids: Sequence[str]) -> pa.Array:
    """Ids of whole images as they are stored: null where the sample is the image."""
    pairs = zip(sample_ids, image_ids, strict=True)
    return pa.array([apart(sample_id, image_id) or None for sample_id, image_id in pairs], pa.string())


def images_of(ids: pa.Table) -> list[str]:
    """The id (n,) of each row's whole image. What was written before 0.5 holds whole images alone."""
    names: list[str] = ids.column("sample_id").to_pylist()
    if IMAGE_ID not in ids.column_names:
        return names
    return [image or name for image, name in zip(ids.column(IMAGE_ID).to_pylist(), names, strict=True)]


def take(shards: Sequence[VectorShard], rows: NDArray[np.int64], *, dim: int) -> Taken:
    """The vectors and ids of rows (n,) counted over the shards laid end to end."""
    starts = np.concatenate([[0], np.cumsum([len(shard) for shard in shards])])
    owners = np.searchsorted(starts, rows, side="right") - 1
    blank = [""] * len(rows)
    found = Taken(np.zeros((len(rows), dim), np.float32), blank[:], blank[:], [0] * len(rows), blank[:])
    for owner in np.unique(owners).tolist():
        shard, places = shards[owner], np.flatnonzero(owners == owner)
        inside = rows[places] - starts[owner]
        found.vectors[places] = shard.vectors[inside]
        picked = shard.ids.take(pa.array(inside))
        named = zip(
            picked.column("sample_id").to_pylist(), picked.column("uri").to_pylist(), images_of(picked), strict=True
        )
        for place, (sample_id, uri, image_id) in zip(places.tolist(), named, strict=True):
            found.sample_ids[place], found.uris[place], found.shard_ids[place] = sample_id, uri, shard.row.shard_id
            found.image_ids[place] = image_id
    return found


def gather(
    shards: Sequence[VectorShard], sample_ids: Sequence[str], *, dim: int
) -> tuple[NDArray[np.float32], list[str]]:
    """Vectors (n, dim) of distinct samples in the order given, and the ids that no shard holds (their rows are zero)."""
    found = np.zeros((len(sample_ids), dim), dtype=np.float32)
    places = {sample_id: place for place, sample_id in enumerate(sample_ids)}
    for shard in shards:
        hits = [(row, places.pop(sample_id)) for row, sample_id in enumerate(shard.sample_ids) if sample_id in places]
        if hits:
            inside, outside = np.asarray(hits, dtype=np.int64).T
            found[outside] = shard.vectors[inside]
        if not places:
            break
    return found, list(places)
