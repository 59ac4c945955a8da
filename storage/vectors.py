"""Shards of vectors: float16 npy files, unit rows, with a Parquet of sample ids beside each."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.corpus import EmbeddedShard, Shard
from models.errors import CorruptData
from storage import tables
from storage.objects import ObjectStore, verified

REBUILD = "embed the corpus again with: dipnet embed CORPUS"


@dataclass(frozen=True)
class VectorShard:
    """One shard's vectors, memory-mapped, and the ids of their samples."""

    shard_id: int
    vectors: NDArray[np.float16]  # (n, dim), unit rows
    sample_ids: NDArray[np.str_]  # (n,)
    uris: Sequence[str]  # (n,)


def keys(corpus: str, encoder_key: str, shard: Shard) -> tuple[str, str, str]:
    """Object keys of a shard's read.parquet, vectors and ids. They follow from the inputs alone."""
    name = f"{shard.number:06d}-{shard.key[:16]}"
    folder = f"embeddings/{corpus}/{encoder_key[:16]}"
    return f"corpora/{corpus}/{name}/read.parquet", f"{folder}/{name}.npy", f"{folder}/{name}.parquet"


def npy_bytes(vectors: NDArray[np.float16]) -> bytes:
    """The array as npy."""
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(vectors, dtype=np.float16), allow_pickle=False)
    return sink.getvalue()


def open_shard(store: ObjectStore, row: EmbeddedShard, *, dim: int, cache: Path) -> VectorShard:
    """Map a shard's vectors. Raises CorruptData when they are not what was written, NotFound when they are gone."""
    path = store.local_path(row.vectors_key, cache)
    with path.open("rb") as handle:
        if hashlib.file_digest(handle, "sha256").hexdigest() != row.vectors_sha256:
            raise CorruptData(f"vectors '{row.vectors_key}' are not what was written (checksum differs); {REBUILD}")
    ids = tables.from_bytes(verified(store, row.ids_key, row.ids_sha256))
    vectors: NDArray[np.float16] = np.load(path, mmap_mode="r" if row.readable else None, allow_pickle=False)
    if vectors.shape != (row.readable, dim) or ids.num_rows != row.readable:
        raise CorruptData(
            f"vectors '{row.vectors_key}' have shape {vectors.shape}, not ({row.readable}, {dim}); {REBUILD}"
        )
    return VectorShard(
        shard_id=row.shard_id,
        vectors=vectors,
        sample_ids=np.asarray(ids.column("sample_id").to_pylist(), dtype=np.str_),
        uris=ids.column("uri").to_pylist(),
    )


def open_shards(store: ObjectStore, rows: Sequence[EmbeddedShard], *, dim: int, cache: Path) -> Iterator[VectorShard]:
    """Shards one after the other."""
    for row in rows:
        yield open_shard(store, row, dim=dim, cache=cache)


def gather(
    shards: Iterator[VectorShard], sample_ids: Sequence[str], *, dim: int
) -> tuple[NDArray[np.float32], list[str]]:
    """Vectors (n, dim) in the order of `sample_ids`, and the ids that no shard holds (their rows are zero)."""
    wanted = {sample_id: place for place, sample_id in enumerate(sample_ids)}
    found = np.zeros((len(sample_ids), dim), dtype=np.float32)
    missing = dict.fromkeys(sample_ids)
    for shard in shards:
        hits = [(row, sample_id) for row, sample_id in enumerate(shard.sample_ids.tolist()) if sample_id in missing]
        for row, sample_id in hits:
            found[wanted[sample_id]] = shard.vectors[row]
            missing.pop(sample_id, None)
        if not missing:
            break
    return found, list(missing)


def ids_table(sample_ids: Sequence[str], manifest_rows: Sequence[int], uris: Sequence[str]) -> pa.Table:
    """The Parquet beside a shard's vectors."""
    return pa.table(
        {
            "sample_id": pa.array(sample_ids, pa.string()),
            "row": pa.array(manifest_rows, pa.int64()),
            "uri": pa.array(uris, pa.string()),
        }
    )
