"""What a run may choose from: the shards of its corpora, less what its filters rule out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.corpus import Corpus, EmbeddedShard, EncoderSpec, Shard
from storage import tables, vectors
from storage.stores import Stores
from tasks import features, vanished
from tasks.ingesting import READ_COLUMNS, manifest_schema, read_manifest, read_reads


class Pool(NamedTuple):
    """Rows are counted over the shards laid end to end, those ruled out included."""

    shards: list[vectors.VectorShard]
    allowed: list[NDArray[np.bool_] | None]  # a mask a shard; None: all of it
    dim: int

    @property
    def total(self) -> int:
        """Rows of all shards."""
        return sum(len(shard) for shard in self.shards)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows that may be chosen, by shard."""
        pairs = zip(self.shards, self.allowed, strict=True)
        return np.asarray([len(shard) if mask is None else mask.sum() for shard, mask in pairs], dtype=np.int64)

    def take(self, rows: NDArray[np.int64]) -> vectors.Taken:
        """Vectors and ids of rows (n,)."""
        return vectors.take(self.shards, rows, dim=self.dim)

    def allows(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these rows (n,) may be chosen."""
        starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        owners = np.searchsorted(starts, rows, side="right") - 1
        found = np.ones(len(rows), dtype=np.bool_)
        for owner in np.unique(owners).tolist():
            mask, places = self.allowed[owner], owners == owner
            if mask is not None:
                found[places] = mask[rows[places] - starts[owner]]
        return found

    def draw(self, count: int, *, seed: int) -> NDArray[np.int64]:
        """Up to `count` rows that may be chosen, each equally likely, in random order; the same for a seed."""
        sizes = self.sizes
        total, ends = int(sizes.sum()), np.cumsum(sizes)
        picked = np.random.default_rng(seed).choice(total, size=min(count, total), replace=False)
        owners = np.searchsorted(ends, picked, side="right")
        inside = picked - (ends - sizes)[owners]
        starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        for owner in np.unique(owners).tolist():
            mask = self.allowed[owner]
            if mask is not None:
                places = owners == owner
                inside[places] = np.flatnonzero(mask)[inside[places]]
        return np.asarray(starts[owners] + inside, dtype=np.int64)


def open_pool(stores: Stores, rows: Sequence[EmbeddedShard], encoder: EncoderSpec, *, condition: str) -> Pool:
    """The pool of these embedded shards, without what vanished. Raises BadInput for a condition that cannot be used."""
    shards = features.open_shards(stores, rows, encoder)
    known = _columns(stores, rows) if condition else {}
    gone = _vanished(stores, rows)
    masks: list[NDArray[np.bool_] | None] = []
    for shard in shards:
        meets = _meets(stores, shard, condition, known) if condition else None
        if shard.row.shard_id in gone:
            meets = np.ones(_rows_of(stores, shard), dtype=np.bool_) if meets is None else meets
            meets[gone[shard.row.shard_id]] = False
        masks.append(None if meets is None else meets[shard.manifest_rows()])
    return Pool(shards, masks, encoder.dim)


def _rows_of(stores: Stores, shard: vectors.VectorShard) -> int:
    return stores.db.get_one(Shard, shard.row.shard_id).images


def _vanished(stores: Stores, rows: Sequence[EmbeddedShard]) -> dict[int, NDArray[np.int64]]:
    """Manifest rows that vanished, by shard."""
    owners = {stores.db.get_one(Shard, row.shard_id).corpus_id for row in rows}
    found: dict[int, NDArray[np.int64]] = {}
    for owner in sorted(owners):
        found |= vanished.rows_of(stores, stores.db.get_one(Corpus, owner))
    return found


def _meets(
    stores: Stores, shard: vectors.VectorShard, condition: str, known: dict[str, pa.DataType]
) -> NDArray[np.bool_]:
    """Which rows of a shard's manifest meet the condition."""
    manifest = read_manifest(stores, stores.db.get_one(Shard, shard.row.shard_id))
    for name, column in _measured(stores, shard.row, condition).items():
        if name not in known:
            manifest = manifest.append_column(name, column)
    for name, kind in known.items():
        if name not in manifest.column_names:
            manifest = manifest.append_column(name, pa.nulls(manifest.num_rows, kind))
    meets = np.zeros(manifest.num_rows, dtype=np.bool_)
    meets[tables.matching(manifest, condition)] = True
    return meets


def _measured(stores: Stores, row: EmbeddedShard, condition: str) -> dict[str, pa.ChunkedArray]:
    """What reading found of each image, as far as the condition may be about it. Null where nothing was found."""
    wanted = [name for name in READ_COLUMNS if name in condition.lower()]
    if not wanted:
        return {}
    read = read_reads(stores, row)
    readable = pc.equal(read.column("reason"), "")
    found = {}
    for name in wanted:
        kind = READ_COLUMNS[name]
        column = read.column(name) if name in read.column_names else pa.nulls(read.num_rows, kind)
        found[name] = pc.if_else(readable, column, pa.scalar(None, column.type))
    return found


def _columns(stores: Stores, rows: Sequence[EmbeddedShard]) -> dict[str, pa.DataType]:
    """Columns of any manifest: a corpus may get its metadata late, and a shard that lacks a column has nulls there."""
    found: dict[str, pa.DataType] = {}
    for row in rows:
        for field in manifest_schema(stores, stores.db.get_one(Shard, row.shard_id)):
            found.setdefault(field.name, field.type)
    return found


def names(corpora: Sequence[Corpus]) -> str:
    """Names of corpora, for a message."""
    return ", ".join(corpus.name for corpus in corpora)
