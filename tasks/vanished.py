"""Elements that the last listing no longer had: kept, because decisions refer to them, and chosen no more."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.corpus import Corpus
from storage import tables
from storage.stores import Stores


def mark(stores: Stores, corpus: Corpus, table: pa.Table) -> None:
    """Note these rows (shard_id, row), and only these, as vanished."""
    corpus.vanished = table.num_rows
    if not table.num_rows:
        corpus.vanished_key = corpus.vanished_sha256 = ""
        return
    data = tables.to_bytes(table)
    corpus.vanished_key = f"corpora/{corpus.name}/vanished-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    corpus.vanished_sha256 = stores.objects.write(corpus.vanished_key, data)


def rows_of(stores: Stores, corpus: Corpus) -> dict[int, NDArray[np.int64]]:
    """Manifest rows (n,) that vanished, by shard; shards without any are absent."""
    if not corpus.vanished_key:
        return {}
    table = tables.read(stores.objects, corpus.vanished_key, corpus.vanished_sha256)
    shards, rows = table.column("shard_id").to_numpy(), table.column("row").to_numpy()
    order = np.argsort(shards, kind="stable")
    numbers, starts = np.unique(shards[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(rows[order], starts[1:]), strict=True))
