"""An index of corpora for interactive search: built once for the vectors there are, resumable, measured, then mapped."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.errors import BadInput, CorruptData, NotFound
from models.values import Indexed
from storage import corpora, vectors
from storage.stores import Stores, open_stores
from tasks import features
from tasks.compute import index
from tasks.compute.index import Effort, Opened, Truth
from tasks.compute.scan import Ranked
from tasks.steps import step, track

METHOD = "opq-ivf-hnsw-pq-1"  # part of the key: to be raised when the same vectors would give another index
SEED = 0
PART_ROWS = 1_000_000  # what a kill costs at most: some minutes
MOST_PARTS = 256  # a part repeats the trained index, which is 100 MB for a billion vectors
NEAREST = 100
QUERIES = 200  # to tune on, and as many others to report on
TARGET = 0.975  # mean recall that tuning asks for on its half, so that the other half stays above .95 with its interval
ABANDONED_SECONDS = 24 * 3_600


class Source(NamedTuple):
    """What an index is of."""

    key: str
    corpora: list[str]
    encoder: str
    dim: int
    shards: list[vectors.VectorShard]

    @property
    def starts(self) -> NDArray[np.int64]:
        """(shards + 1,) rows that the shards begin at, and the end of the last."""
        return np.cumsum([0, *(len(shard) for shard in self.shards)], dtype=np.int64)

    def object(self, name: str) -> str:
        """Key of one of the index's objects."""
        return f"indexes/{self.key}/{name}"

    def groups(self) -> list[range]:
        """Consecutive shards that make one part each."""
        least = max(PART_ROWS, int(self.starts[-1]) // MOST_PARTS)
        groups, start, rows = [], 0, 0
        for number, shard in enumerate(self.shards):
            rows += len(shard)
            if rows >= least or number == len(self.shards) - 1:
                groups.append(range(start, number + 1))
                start, rows = number + 1, 0
        return groups

    def draw(self, count: int, *, seed: int) -> NDArray[np.float32]:
        """Up to `count` vectors (n, dim), each row equally likely, in corpus order."""
        total = int(self.starts[-1])
        rows = np.sort(np.random.default_rng(seed).choice(total, size=min(count, total), replace=False))
        cuts = np.searchsorted(rows, self.starts)
        parts = [
            np.asarray(shard.vectors[rows[start:stop] - first], dtype=np.float32)
            for shard, first, start, stop in zip(self.shards, self.starts, cuts[:-1], cuts[1:], strict=False)
            if stop > start
        ]
        return np.concatenate(parts)


class OpenIndex(NamedTuple):
    """An index ready to search, and what was measured when it was built."""

    report: Indexed
    source: Source
    opened: Opened

    def search(self, probes: NDArray[np.float32], *, keep: int, offsets: NDArray[np.float32] | None = None) -> Ranked:
        """The best rows found for probes (p, dim), over the source's shards laid end to end, with exact scores."""
        effort = Effort(self.report.nprobe, max(self.report.depth, self.report.depth * keep // NEAREST))
        return self.opened.search(probes, keep=keep, effort=effort, offsets=offsets)


@step()
def build_index(corpus_names: list[str], encoder_name: str = "") -> Indexed:
    """Train, fill and merge the index of these corpora, and measure its recall. Twice, or after a kill, the same."""
    with open_stores() as stores:
        source = _source(stores, corpus_names, encoder_name)
        known = _report(stores, source)
        if known is not None:
            return known

        with _workshop(stores, source) as folder:
            report = _build(stores, source, folder)

        stores.objects.write(source.object("report.json"), report.model_dump_json(indent=2).encode())
        for name in ("trained.faiss", *_part_names(source)):
            stores.objects.remove(source.object(name))
    return report


def open_index(stores: Stores, corpus_names: Sequence[str], encoder_name: str = "") -> OpenIndex:
    """The index of these corpora as they are now. Raises NotFound when it was not built since they last grew."""
    source = _source(stores, corpus_names, encoder_name)
    report = _report(stores, source)
    if report is None:
        raise NotFound(
            f"there is no index of {', '.join(source.corpora)} as they are now; build it with: "
            f"dipnet index {' '.join(source.corpora)}"
        )
    fetched = [(index.INDEX, report.index_sha256), (index.LISTS, report.lists_sha256)]
    files = [partial(stores.cache.use, stores.objects, source.object(name), sha256) for name, sha256 in fetched]
    try:
        # One inside the other: neither file is evicted before both are mapped.
        opened = files[0](lambda header: files[1](lambda lists: _opened(source, header, lists)))
    except CorruptData as problem:
        raise CorruptData(f"the index cannot be used: {problem}; delete indexes/{source.key}, then build it") from None
    return OpenIndex(report, source, opened)


def _source(stores: Stores, corpus_names: Sequence[str], encoder_name: str) -> Source:
    if not corpus_names:
        raise BadInput("an index is of one corpus at least; name it")
    encoder = corpora.get_encoder(stores.db, name=encoder_name or stores.settings.encoder)
    found = [corpora.get_corpus(stores.db, name=name) for name in sorted(set(corpus_names))]
    rows = corpora.embedded_shards(stores.db, corpora=found, encoder=encoder)
    inputs = [METHOD, SEED, encoder.key, [row.vectors_sha256 for row in rows]]
    key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
    shards = features.open_shards(stores, rows, encoder)
    return Source(key, [corpus.name for corpus in found], encoder.name, encoder.dim, shards)


def _report(stores: Stores, source: Source) -> Indexed | None:
    """The report, which is written last: with it, the index is complete."""
    key = source.object("report.json")
    return Indexed.model_validate_json(stores.objects.read(key)) if stores.objects.exists(key) else None


def _build(stores: Stores, source: Source, folder: Path) -> Indexed:
    """What is in the object store already is not made again."""
    started = time.monotonic()
    if not int(source.starts[-1]):
        raise BadInput(f"{', '.join(source.corpora)}: no readable image to index; ingest some")
    trained = _made(stores, source, "trained.faiss", folder, lambda to: _train(source, to))
    parts = [
        _made(stores, source, name, folder, partial(_fill, source, trained, group))
        for name, group in zip(_part_names(source), track(source.groups(), "indexing"), strict=True)
    ]

    index.merge(trained, parts, folder)
    opened = _opened(source, folder / index.INDEX, folder / index.LISTS)
    effort, recall, queries = _measure(source, opened)

    for name in (index.INDEX, index.LISTS):
        stores.objects.write_file(source.object(name), folder / name)
    return Indexed(
        key=source.key,
        corpora=source.corpora,
        encoder=source.encoder,
        vectors=opened.rows,
        recall=recall.mean,
        recall_low=recall.low,
        recall_high=recall.high,
        queries=queries,
        lists=opened.lists,
        nprobe=effort.nprobe,
        depth=effort.depth,
        seconds=round(time.monotonic() - started, 3),
        index_sha256=_sha256(folder / index.INDEX),
        lists_sha256=_sha256(folder / index.LISTS),
    )


def _part_names(source: Source) -> list[str]:
    return [f"parts/{number:04d}.faiss" for number in range(len(source.groups()))]


def _made(stores: Stores, source: Source, name: str, folder: Path, make: index.Maker) -> Path:
    """A local file of an object, which is made and put in place first where it is missing."""
    if stores.objects.exists(source.object(name)):
        return stores.objects.local_path(source.object(name), folder)
    made = folder / name.replace("/", "-")
    make(made)
    stores.objects.write_file(source.object(name), made)
    return made


def _train(source: Source, to: Path) -> None:
    shape = index.shape_for(int(source.starts[-1]), source.dim)
    index.train(shape, source.draw(shape.train_rows, seed=SEED), to, seed=SEED)


def _fill(source: Source, trained: Path, group: range, to: Path) -> None:
    shards = (source.shards[number].vectors for number in group)
    index.fill(trained, shards, int(source.starts[group.start]), to)


def _opened(source: Source, header: Path, lists: Path) -> Opened:
    return Opened(header, lists, [partial(getattr, shard, "vectors") for shard in source.shards], source.starts)


def _measure(source: Source, opened: Opened) -> tuple[Effort, index.Recall, int]:
    """The least effort that is enough on some queries, its recall on others, and how many those are."""
    queries = np.random.default_rng(SEED).permutation(source.draw(2 * QUERIES, seed=SEED + 1))
    truth = index.truth_of(queries, (shard.vectors for shard in source.shards), k=min(NEAREST, opened.rows))
    half = max(1, len(queries) // 2)
    effort = index.tune(opened, Truth(truth.queries[:half], truth.scores[:half]), target=TARGET)
    others = Truth(truth.queries[-half:], truth.scores[-half:])
    return effort, index.mean_recall(index.recalls(opened, others, effort), seed=SEED), len(others.queries)


@contextmanager
def _workshop(stores: Stores, source: Source) -> Iterator[Path]:
    """A folder on the disk that the cache is on; those that kills left behind are cleared away after a day."""
    prefix = "index-"
    stores.cache.folder.mkdir(parents=True, exist_ok=True)
    for old in stores.cache.folder.glob(f"{prefix}*"):
        if time.time() - old.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{source.key[:8]}-", dir=stores.cache.folder) as folder:
        yield Path(folder).absolute()


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
