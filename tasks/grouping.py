"""Which labelled images belong together, and which groups of campaigns' images are held back from training."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.corpus import Corpus, EmbeddedShard, EncoderSpec, Sample, Shard
from models.errors import BadInput
from models.retraining import SplitPolicy
from models.states import Split
from storage import corpora, labels
from storage.stores import Stores
from tasks import features
from tasks.compute import groups, intervals
from tasks.ingesting import read_manifest, read_reads

NEAR_DUPLICATES = "near-duplicates"
RANKS = (Split.TRAIN, Split.DEVELOPMENT, Split.HOLDOUT)  # a later one wins where groups merge


class Rule(NamedTuple):
    """What belongs together. Without an encoder nothing is a near-duplicate of anything."""

    policy: SplitPolicy
    encoder: EncoderSpec | None
    corpora: Sequence[Corpus]  # whose metadata columns count, beside those of where a sample was found


class _Related(NamedTuple):
    edges: groups.Edges
    values: list[list[str]]  # (n,) what each sample's column holds; nothing where no column counts


def names_of(stores: Stores, samples: Sequence[Sample], rule: Rule) -> dict[str, str]:
    """The group of each distinct sample: the column's value, or else a hash of the group's smallest image id.

    What is of one image is one group, whatever else belongs together. Samples that nothing is known of, such as those
    without vectors, are groups of their own.
    """
    related = _related(stores, samples, rule)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(groups.components(len(samples), related.edges).tolist()):
        members[number].append(place)
    found: dict[str, str] = {}
    for places in members.values():
        values = [value for place in places for value in related.values[place]]
        name = min(values, default="") or own_name(
            min((samples[place] for place in places), key=lambda sample: sample.image)
        )
        found |= {samples[place].id: name for place in places}
    return found


def within(listing: pa.Table, sample_ids: Sequence[str]) -> intervals.Grouping:
    """Which of some samples belong together, as a listing says; each is its own where it says nothing."""
    if "group" not in listing.column_names:
        return intervals.grouping(None, len(sample_ids))
    known = dict(zip(*(listing.column(name).to_pylist() for name in ("sample_id", "group")), strict=True))
    names = np.asarray([known.get(sample_id) or sample_id for sample_id in sample_ids])
    return intervals.grouping(names, len(sample_ids))


def held_back(stores: Stores, rule: Rule) -> dict[str, Split]:
    """The split of every sample that any campaign ever asked about, from the hash of its group.

    All requests count, whatever came back and whichever campaigns a dataset version adds, in the order in which they were
    made: so a group keeps its split in every version. Where groups merge, holdout goes before development before train.
    """
    policy = rule.policy
    if not policy.development + policy.holdout:
        return {}
    samples = labels.asked_samples(stores.db)
    related = _related(stores, samples, rule)
    own = np.asarray(
        [
            max(_rank(value, policy) for value in values or [sample.image])
            for sample, values in zip(samples, related.values, strict=True)
        ],
        np.int8,
    )
    if rule.policy.group_by == NEAR_DUPLICATES:
        ranks = groups.handed_down(related.edges, own)
    else:
        ranks = _highest(groups.components(len(samples), related.edges), own)
    return {sample.id: RANKS[rank] for sample, rank in zip(samples, ranks.tolist(), strict=True)}


def _highest(numbers: NDArray[np.int64], own: NDArray[np.int8]) -> NDArray[np.int8]:
    found = np.zeros(len(own), np.int8)
    np.maximum.at(found, numbers, own)
    return found[numbers]


def _rank(name: str, policy: SplitPolicy) -> int:
    """Place in RANKS by the hash of a group's name: the lowest hashes are holdout, those next to them development."""
    share = int(hashlib.sha256(f"split {name}".encode()).hexdigest()[:13], 16) / 16**13
    if share < policy.holdout:
        return RANKS.index(Split.HOLDOUT)
    return RANKS.index(Split.DEVELOPMENT if share < policy.holdout + policy.development else Split.TRAIN)


def own_name(sample: Sample) -> str:
    """The name of a sample's group where that is of one image, or where its image has the smallest id."""
    return hashlib.sha256(sample.image.encode()).hexdigest()[:16]


def _related(stores: Stores, samples: Sequence[Sample], rule: Rule) -> _Related:
    """What is of one image, and beyond that what the policy says."""
    nothing: list[list[str]] = [[] for _ in samples]
    of_one_image = groups.joined([[sample.image] for sample in samples])
    if not samples or not rule.policy.group_by:
        return _Related(of_one_image, nothing)
    if rule.policy.group_by != NEAR_DUPLICATES:
        known = _values(stores, samples, rule)
        values = [sorted(known.get(sample.id, ())) for sample in samples]
        return _Related(groups.united(of_one_image, groups.joined(values)), values)
    if rule.encoder is None:
        return _Related(of_one_image, nothing)
    vectors, _ = features.of_stored(stores, samples, rule.encoder)
    alike = groups.near_duplicates(vectors, cosine=rule.policy.near_duplicate_cosine)
    return _Related(groups.united(of_one_image, alike), nothing)


def _values(stores: Stores, samples: Sequence[Sample], rule: Rule) -> Mapping[str, set[str]]:
    """What the column holds for each sample, wherever its bytes lie. Raises BadInput where no corpus has the column."""
    column, wanted = rule.policy.group_by, {sample.id for sample in samples}
    found: dict[str, set[str]] = {}
    there, seen = False, set()
    for shard, row in _shards(stores, samples, rule.corpora):
        manifest = read_manifest(stores, shard)
        seen |= set(manifest.column_names)
        if column not in manifest.column_names:
            continue
        there = True
        ids = read_reads(stores, row, ["sample_id"]).column("sample_id").to_pylist()
        texts = pc.cast(manifest.column(column), "string").to_pylist()
        for sample_id, text in zip(ids, texts, strict=True):
            if text and sample_id in wanted:
                found.setdefault(sample_id, set()).add(text)
    if not there:
        raise BadInput(
            f"no labelled corpus has a column '{column}' to group by (there are: {', '.join(sorted(seen))}); name one of "
            f"these, or {NEAR_DUPLICATES}"
        )
    return found


def _shards(
    stores: Stores, samples: Sequence[Sample], named: Sequence[Corpus]
) -> Iterable[tuple[Shard, EmbeddedShard]]:
    """Shards of these corpora and of where samples were found, and what was read of each."""
    rows = {row.shard_id: row for corpus in named for row in corpora.read_shards(stores.db, corpus_id=corpus.id or 0)}
    others = {sample.shard_id for sample in samples if sample.shard_id is not None} - set(rows)
    rows |= corpora.read_rows(stores.db, shard_ids=sorted(others))
    return [(stores.db.get_one(Shard, shard_id), row) for shard_id, row in sorted(rows.items())]
