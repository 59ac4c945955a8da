"""Which vectors from outside are about which rows of a corpus's manifests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.elements import Place
from storage.vector_files import COLUMNS, HEX, Part
from tasks.compute.matching import ABSENT, Digests, Names, Paths, digests

OURS, THEIRS = "sample_id", "sha256"  # of what is embedded; of an image as it was before others resized it, perhaps


class Rows(NamedTuple):
    """Manifest rows, and what they may be called."""

    places: Sequence[Place]
    keys: Sequence[str]

    @property
    def uris(self) -> list[str]:
        """(n,)"""
        return [place.uri for place in self.places]

    def paths(self) -> tuple[list[str], list[str]]:
        """Where each image lies, and its key; '' for boxes, which no image's name is meant for."""
        where = [f"{place.object_uri}/{place.member}" if place.member else place.object_uri for place in self.places]
        whole = [place.box is None for place in self.places]
        return (
            [path if one else "" for path, one in zip(where, whole, strict=True)],
            [key if one else "" for key, one in zip(self.keys, whole, strict=True)],
        )


class Given:
    """The vectors of all parts laid end to end, found by what their names say."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = [part.vectors for part in parts]
        self._starts = np.cumsum([0, *(len(vectors) for vectors in self._parts)])
        names = pa.concat_tables([part.names for part in parts], promote_options="default")
        columns = {name: _texts(names.column(name)) for name in COLUMNS if name in names.column_names}
        own = columns.pop(OURS, [""] * len(self))
        self._ids = Names(own, first=True)
        self._hashes = Names(columns.pop(THEIRS, []), first=True)
        # A row that says whose vector it is has no need of a name: other bytes may lie there by now.
        self._named = [
            _Named([name if not sample_id else "" for name, sample_id in zip(texts, own, strict=True)])
            for texts in columns.values()
        ]
        self.example = next((name for texts in [own, *columns.values()] for name in texts if name), "")
        self.used = np.zeros(len(self), np.bool_)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def has_ids(self) -> bool:
        """Whether some may be found by what an image holds."""
        return bool(len(self._ids) + len(self._hashes))

    @property
    def dim(self) -> int:
        """Of each vector."""
        return int(self._parts[0].shape[1])

    def by_name(self, rows: Rows) -> NDArray[np.int64]:
        """The vector (n,) of each manifest row by its name; ABSENT, or SEVERAL where a name is given twice."""
        found = np.full(len(rows.places), ABSENT, np.int64)
        for named in self._named:
            missing = np.flatnonzero(found < 0)
            if len(missing):
                some = Rows([rows.places[row] for row in missing], [rows.keys[row] for row in missing])
                taken = named.find(some)
                found[missing] = np.where(taken == ABSENT, found[missing], taken)
        return found

    def by_id(self, sample_ids: Sequence[str], image_ids: Sequence[str]) -> NDArray[np.int64]:
        """The vector (n,) of each sample by what it holds; ABSENT where there is none."""
        found = self._ids.find(sample_ids)
        whole = [name if name == image else "" for name, image in zip(sample_ids, image_ids, strict=True)]
        return np.where(found == ABSENT, self._hashes.find(whole), found)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit vectors (n, dim) of these rows; what has no direction is NaN."""
        found = np.empty((len(rows), self.dim), np.float32)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for owner in np.unique(owners).tolist():
            mine = np.flatnonzero(owners == owner)
            found[mine] = self._parts[owner][rows[mine] - self._starts[owner]]
        with np.errstate(all="ignore"):
            lengths = np.linalg.norm(found.astype(np.float64), axis=1, keepdims=True)
            unit: NDArray[np.float32] = (found / np.where(lengths > 0, lengths, np.nan)).astype(np.float32)
        return unit


class Matches:
    """Which vector is about which manifest row, by names: no vector is about two images."""

    def __init__(self, vectors: int) -> None:
        self.of_shard: dict[int, NDArray[np.int64]] = {}  # (rows,) of each shard; ABSENT where there is none
        self._ambiguous = np.zeros(vectors, np.bool_)
        self._images: Digests = np.zeros(vectors, "S16")  # of the URI that a vector is about
        self._owners = np.full((vectors, 2), -1, np.int64)  # shard and row

    @property
    def ambiguous(self) -> int:
        """Vectors whose names fit several images."""
        return int(self._ambiguous.sum())

    def add(self, shard_id: int, found: NDArray[np.int64], uris: Sequence[str]) -> None:
        """What was found (rows,) for a shard. An image that was listed anew, having changed, has the vector alone."""
        mine = self.of_shard[shard_id] = np.maximum(found, ABSENT)
        rows = np.flatnonzero(mine >= 0)
        images = digests([uris[row] for row in rows])
        for row, vector, image in zip(rows.tolist(), mine[rows].tolist(), images, strict=True):
            owner, before = self._owners[vector].tolist()
            if owner >= 0:
                self.of_shard[owner][before] = ABSENT
                self._ambiguous[vector] |= self._images[vector] != image
            if self._ambiguous[vector]:
                mine[row] = ABSENT
            self._owners[vector], self._images[vector] = (shard_id, row), image


class _Named:
    """One column of names."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._exact, self._paths = Names(texts), Paths(texts)

    def find(self, rows: Rows) -> NDArray[np.int64]:
        found = self._exact.find(rows.uris)
        missing = np.flatnonzero(found == ABSENT)
        if len(missing):
            paths, keys = Rows([rows.places[row] for row in missing], [rows.keys[row] for row in missing]).paths()
            found[missing] = self._paths.find(paths, keys)
        return found


def _texts(column: pa.ChunkedArray) -> list[str]:
    found = [text or "" for text in column.to_pylist()]
    return [text.lower() if HEX.fullmatch(text.lower()) else text for text in found]
