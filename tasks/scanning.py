"""The pool's best rows for a run's probes: shard group by shard group, each kept until the run is mined."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from models.campaign import CampaignRun
from models.corpus import EncoderSpec
from models.errors import BadInput, CorruptData
from models.plans import SelectionPolicy
from storage.stores import Stores
from tasks import indexing
from tasks.choosing import Ranking
from tasks.compute import scan
from tasks.compute.encoder import resolve_device
from tasks.compute.portable import Scorer
from tasks.pool import Pool
from tasks.steps import track

GROUP_ROWS = 2_000_000  # some seconds of work: what a kill costs at most


def ranking(stores: Stores, run: CampaignRun, scorer: Scorer, pool: Pool) -> Ranking:
    """A function that gives the pool's best rows for a number of them. A large pool is scanned once a depth, resumably.

    Where the policy asks for the index, candidates come from there, and scores are exact all the same.
    """
    if SelectionPolicy.model_validate(run.policy).scan == "index":
        return _by_index(stores, run, scorer, pool)
    groups = _groups(pool)

    def best(count: int) -> NDArray[np.int64]:
        parts = []
        for group in track(groups, "scanning"):
            key = f"{_folder(run)}/{_digest(scorer, pool, group, count)}.safetensors" if len(groups) > 1 else ""
            parts.append(_group(stores, key, scorer, pool, group, count))
        return scan.merge(parts, keep=count).rows

    return best


def _by_index(stores: Stores, run: CampaignRun, scorer: Scorer, pool: Pool) -> Ranking:
    """Raises NotFound without an index, BadInput for a run that is about other shards than the index."""
    encoder = stores.db.get_one(EncoderSpec, run.encoder_id)
    opened = indexing.open_index(stores, run.corpora, encoder.name)
    if [shard.row.id for shard in opened.source.shards] != [shard.row.id for shard in pool.shards]:
        raise BadInput(
            f"the index of {', '.join(run.corpora)} is of other shards than this run, which looks at new ones alone; "
            "leave out --set scan=index"
        )

    def best(count: int) -> NDArray[np.int64]:
        looked_for = count
        while True:
            found = opened.search(scorer.vectors, keep=looked_for, offsets=scorer.offsets).rows
            rows = found[pool.allows(found)]
            if len(rows) >= count or looked_for >= pool.total:
                return rows[:count]
            looked_for = min(4 * looked_for, pool.total)

    return best


def forget(stores: Stores, run: CampaignRun) -> None:
    """Remove the parts of a run's scan: nobody needs them once it is mined, or was only a dry run."""
    for part in list(stores.objects.list(_folder(run))):
        stores.objects.remove(part.key)


def _folder(run: CampaignRun) -> str:
    return f"scans/{run.key}"


def _digest(scorer: Scorer, pool: Pool, group: range, count: int) -> str:
    """Hash of all that a part follows from: probes, vectors and which of them count, the first row, how many are kept."""
    found = hashlib.sha256(f"{_first_row(pool, group)}:{count}:{scorer.vectors.shape}".encode())
    found.update(scorer.vectors.tobytes())
    found.update(scorer.offsets.tobytes())
    for number in group:
        mask = pool.allowed[number]
        found.update(f"{pool.shards[number].row.vectors_sha256}:{mask is None}".encode())
        found.update(b"" if mask is None else np.packbits(mask).tobytes())
    return found.hexdigest()


def _first_row(pool: Pool, group: range) -> int:
    return sum(len(shard) for shard in pool.shards[: group.start])


def _groups(pool: Pool) -> list[range]:
    """Consecutive shards of at least GROUP_ROWS rows together."""
    groups, start, rows = [], 0, 0
    for number, shard in enumerate(pool.shards):
        rows += len(shard)
        if rows >= GROUP_ROWS or number == len(pool.shards) - 1:
            groups.append(range(start, number + 1))
            start, rows = number + 1, 0
    return groups


def _group(stores: Stores, key: str, scorer: Scorer, pool: Pool, group: range, count: int) -> scan.Ranked:
    """The best rows of some shards; with a key, kept there and found again. Raises CorruptData for vectors with NaN."""
    if key and stores.objects.exists(key):
        held = from_safetensors(stores.objects.read(key))
        return scan.Ranked(held["rows"], held["scores"])
    first = _first_row(pool, group)
    try:
        found = scan.best(
            scorer.vectors,
            (pool.shards[number].vectors for number in group),
            keep=count,
            offsets=scorer.offsets,
            allowed=[pool.allowed[number] for number in group],
            device=resolve_device(stores.settings.device),
        )
    except ValueError as problem:
        keys = ", ".join(pool.shards[number].row.vectors_key for number in list(group)[:3])
        raise CorruptData(f"vectors cannot be scored ({problem}) in {keys}; embed the corpus again") from None
    found = scan.Ranked(found.rows + first, found.scores)
    if key:
        stores.objects.write(key, bytes(to_safetensors({"rows": found.rows, "scores": found.scores})))
    return found
