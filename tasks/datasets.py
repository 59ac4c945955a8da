"""From labels to a frozen dataset version: which samples, with which class, in which split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from models.corpus import Corpus, Sample
from models.errors import BadInput
from models.labeling import Label, LabelBatch, LabelRequest
from models.learning import DatasetVersion
from models.retraining import RetrainPlan
from models.states import RequestState, Split
from storage import campaigns, corpora, labels, runs, tables
from storage.stores import Stores, open_stores
from tasks import grouping
from tasks.grouping import RANKS, Rule
from tasks.steps import step

EVERY = "*"
IN_EVALUATION, RELATED = "in evaluation data", "related to evaluation data"
RELATED_TO_HOLDOUT = "related to holdout data"
SEVERAL, NAMELESS = "several classes", "no class"

Labelled = Sequence[tuple[Label | LabelRequest, Sample]]


class Row(NamedTuple):
    """A sample with the class that counts."""

    sample: Sample
    class_name: str
    split: Split = Split.TRAIN


class Decided(NamedTuple):
    """What goes where, and why the rest does not."""

    rows: dict[str, Row]  # by sample id
    excluded: dict[str, str]  # reason by the id of a sample whose label is left out; evaluation data may hold it


class _Given(NamedTuple):
    """What a version is made of. The labels of each are oldest first."""

    base: list[Corpus]  # train corpora
    batches: Sequence[LabelBatch]  # of campaigns
    train: Labelled  # of train corpora and of campaigns
    answered: frozenset[str]  # samples that the campaigns asked about
    evaluation: dict[Split, Labelled]
    kept: Mapping[str, Split]  # by sample that is never trained on, whatever the plan says
    corpora: list[Corpus]


@step()
def freeze_dataset(plan: RetrainPlan) -> int:
    """The dataset version of a plan's train corpora, all evaluation corpora, and its campaigns' answers.

    The same content is the same version. A version with campaigns has the one without as its parent. Related images are
    never in two splits: what is related to evaluation data is left out of training, and counted by reason. What a scenario
    holds is never trained on, and what was ever held back stays so, unless the plan may shrink it. Raises BadInput when an
    earlier version of the same corpora and batches had evaluation samples that this one would lack.
    """
    with open_stores() as stores:
        base = train_corpora(stores, plan.corpora)
        batches = _batches(stores, plan.campaigns)
        kept = of_scenarios(stores) if plan.splits.may_shrink else _held_before(stores) | of_scenarios(stores)
        parent = _freeze(stores, plan, _given(stores, base, [], kept), parent=None)
        if not batches:
            return parent.id or 0
        return _freeze(stores, plan, _given(stores, base, batches, kept), parent=parent).id or 0


def read_listing(stores: Stores, dataset: DatasetVersion) -> pa.Table:
    """A version's rows. Raises CorruptData when they are not what was written, where their checksum is known.

    Those from before 0.4 were for training only, and each sample is a group of its own.
    """
    listing = tables.read(stores.objects, dataset.listing_key, dataset.listing_sha256)
    if "split" not in listing.column_names:
        listing = listing.append_column("split", pa.array([Split.TRAIN.value] * listing.num_rows, pa.string()))
    if "group" not in listing.column_names:
        listing = listing.append_column("group", listing.column("sample_id"))
    return listing


def of_split(listing: pa.Table, split: Split) -> pa.Table:
    """A listing's rows of one split."""
    return listing.filter(pc.equal(listing.column("split"), split.value))


def usable(labelled: Iterable[tuple[Label | LabelRequest, Sample]]) -> Decided:
    """The label of each sample that counts: the last that names one class. Samples without one are left out, with the reason."""
    rows: dict[str, Row] = {}
    reasons: dict[str, str] = {}
    for label, sample in labelled:  # oldest first
        if label.state is RequestState.LABELLED and label.class_name:
            rows[sample.id] = Row(sample, label.class_name)
        elif label.state is RequestState.LABELLED:
            reasons[sample.id] = SEVERAL if label.class_names else NAMELESS
        else:
            reasons[sample.id] = label.state.value
    return Decided(rows, {sample_id: reason for sample_id, reason in reasons.items() if sample_id not in rows})


def listing_of(labelled: Labelled, *, without: frozenset[str] | set[str] = frozenset()) -> pa.Table:
    """A row a sample with the label that counts, in the order of the sample ids: the same labels make the same table."""
    found = usable(labelled).rows
    return table_of([found[sample_id] for sample_id in sorted(found) if sample_id not in without])


def table_of(rows: Sequence[Row], groups: Mapping[str, str] | None = None) -> pa.Table:
    """The rows as a listing, with split and group where groups are known."""
    columns = {
        "sample_id": pa.array([row.sample.id for row in rows], pa.string()),
        "class_name": pa.array([row.class_name for row in rows], pa.string()),
    }
    if groups is not None:
        columns["split"] = pa.array([row.split.value for row in rows], pa.string())
        columns["group"] = pa.array([groups[row.sample.id] for row in rows], pa.string())
    columns["shard_id"] = pa.array([row.sample.shard_id for row in rows], pa.int64())
    columns["uri"] = pa.array([row.sample.uri for row in rows], pa.string())
    return pa.table(columns)


def decide(
    train: Decided,
    evaluation: Mapping[str, Row],
    held: Mapping[str, Split],
    groups: Mapping[str, str],
    elsewhere: Mapping[str, Split] | None = None,
) -> Decided:
    """The split of every sample, so that no group is in two.

    A group's split is the highest of what its evaluation samples have, whether this version has them or not (`elsewhere`),
    and of what is held back of its answers (`held`).
    Held-back answers go along with it; train samples do not, since nobody decided that they are for evaluation, and
    neither do development samples that are related to holdout data. These are left out.
    """
    rows, reasons, elsewhere = dict(evaluation), dict(train.excluded), dict(elsewhere or {})
    for sample_id, row in train.rows.items():
        if sample_id in evaluation or sample_id in elsewhere:
            reasons[sample_id] = IN_EVALUATION
        else:
            rows[sample_id] = row._replace(split=held.get(sample_id, Split.TRAIN))
    highest = _highest(elsewhere | {sample_id: row.split for sample_id, row in rows.items()}, groups)
    for sample_id, row in list(rows.items()):
        split = highest[groups[sample_id]]
        if row.split is split:
            continue
        if sample_id in held and sample_id not in evaluation and row.split is not Split.TRAIN:
            rows[sample_id] = row._replace(split=split)
        else:
            reasons[sample_id] = RELATED if row.split is Split.TRAIN else RELATED_TO_HOLDOUT
            del rows[sample_id]
    return Decided(rows, reasons)


def _highest(splits: Mapping[str, Split], groups: Mapping[str, str]) -> dict[str, Split]:
    """The highest split of each group's samples."""
    found: dict[str, Split] = {}
    for sample_id, split in splits.items():
        group = groups[sample_id]
        found[group] = max(found.get(group, Split.TRAIN), split, key=RANKS.index)
    return found


def train_corpora(stores: Stores, names: Sequence[str]) -> list[Corpus]:
    """These corpora, or all for training. Raises BadInput for one that is not, and where there is none."""
    found = [corpora.get_corpus(stores.db, name=name) for name in sorted(set(names))]
    for corpus in found:
        if corpus.split is not Split.TRAIN:
            raise BadInput(
                f"corpus '{corpus.name}' is not for training (split: {corpus.split or 'none'}); "
                "name one that was added with --split train"
            )
    found = found or list(corpora.list_corpora(stores.db, split=Split.TRAIN))
    if not found:
        raise BadInput(
            "there is no corpus to train on; add one with: dipnet corpus add NAME PREFIX --split train --labels COLUMN"
        )
    return found


def _batches(stores: Stores, names: Sequence[str]) -> Sequence[LabelBatch]:
    """Every batch of these campaigns; *: of all there are."""
    if EVERY in names:
        return labels.batches_of(stores.db)
    for name in names:
        campaigns.get_campaign(stores.db, name=name)
    return labels.batches_of(stores.db, campaigns=list(names)) if names else []


def _freeze(stores: Stores, plan: RetrainPlan, given: _Given, *, parent: DatasetVersion | None) -> DatasetVersion:
    decided, groups = _decided(stores, plan, given)
    version = _version(decided, groups, given)
    if not plan.splits.may_shrink:
        _require_whole_evaluation(stores, version, decided)
    found = runs.find_dataset(stores.db, content_hash=version.content_hash)
    if found is None:
        found = version
        found.parent_id = parent.id if parent else None
        rows = [decided.rows[sample_id] for sample_id in sorted(decided.rows)]
        found.listing_sha256 = stores.objects.write(found.listing_key, tables.to_bytes(table_of(rows, groups)))
        stores.db.add(found)
        stores.db.flush()
    return found


def _given(stores: Stores, base: list[Corpus], batches: Sequence[LabelBatch], kept: Mapping[str, Split]) -> _Given:
    held = {split: corpora.list_corpora(stores.db, split=split) for split in (Split.DEVELOPMENT, Split.HOLDOUT)}
    answers = labels.resolved_of_batches(stores.db, batches=batches) if batches else []
    return _Given(
        base=base,
        batches=batches,
        train=[*labels.labels_of_corpora(stores.db, corpora=base), *answers],
        answered=frozenset(sample.id for _, sample in answers),
        evaluation={split: labels.labels_of_corpora(stores.db, corpora=some) for split, some in held.items()},
        kept=kept,
        corpora=[*base, *(corpus for some in held.values() for corpus in some)],
    )


def of_scenarios(stores: Stores) -> dict[str, Split]:
    """The split of what the newest version of any scenario holds, since models are evaluated on it."""
    developing = {corpus.name for corpus in corpora.list_corpora(stores.db, split=Split.DEVELOPMENT)}
    found: list[dict[str, Split]] = []
    for scenario in runs.newest_scenarios(stores.db):
        listing = tables.read(stores.objects, scenario.listing_key, scenario.listing_sha256, ["sample_id"])
        split = Split.DEVELOPMENT if developing & set(scenario.corpora) else Split.HOLDOUT
        found.append(dict.fromkeys(listing.column("sample_id").to_pylist(), split))
    return _highest_of(found, {sample_id for some in found for sample_id in some})


def _held_before(stores: Stores) -> dict[str, Split]:
    """The split of what the newest version with campaigns that has it does not train on."""
    found: dict[str, Split] = {}
    for dataset in runs.list_datasets(stores.db):  # oldest first
        if dataset.adds_batches:
            listing = read_listing(stores, dataset)
            splits = map(Split, listing.column("split").to_pylist())
            found |= zip(listing.column("sample_id").to_pylist(), splits, strict=True)
    return {sample_id: split for sample_id, split in found.items() if split is not Split.TRAIN}


def _highest_of(splits: Sequence[Mapping[str, Split]], wanted: Iterable[str]) -> dict[str, Split]:
    """The highest split that any of these gives a sample; train, where none does."""
    return {
        one: max((some.get(one, Split.TRAIN) for some in splits), key=RANKS.index, default=Split.TRAIN)
        for one in wanted
    }


def _decided(stores: Stores, plan: RetrainPlan, given: _Given) -> tuple[Decided, dict[str, str]]:
    """What goes where, and the group of every sample that was looked at."""
    train, evaluation = usable(given.train), dict[str, Row]()
    for split in (Split.DEVELOPMENT, Split.HOLDOUT):  # what is in both is holdout
        found = usable(given.evaluation[split]).rows
        evaluation |= {sample_id: row._replace(split=split) for sample_id, row in found.items()}

    encoder = None
    if plan.splits.group_by == grouping.NEAR_DUPLICATES:
        encoder = corpora.get_encoder(stores.db, name=plan.encoder or stores.settings.encoder)
    rule = Rule(plan.splits, encoder, given.corpora)
    looked_at = corpora.known_samples(stores.db, ids=sorted(given.kept.keys() - evaluation.keys()))
    kept = {sample_id: given.kept[sample_id] for sample_id in looked_at}
    looked_at |= {sample_id: row.sample for sample_id, row in (train.rows | evaluation).items()}
    groups = grouping.names_of(stores, [looked_at[sample_id] for sample_id in sorted(looked_at)], rule)
    held = grouping.held_back(stores, rule) if given.answered else {}
    answers = given.answered & train.rows.keys()
    of_group = _highest(kept, groups)  # whoever joins a group that was held back goes along
    joins = {sample_id: of_group[groups[sample_id]] for sample_id in answers if groups[sample_id] in of_group}
    held = _highest_of([held, joins], answers)
    elsewhere = {sample_id: split for sample_id, split in kept.items() if sample_id not in answers}
    return decide(train, evaluation, held, groups, elsewhere), groups


def _version(decided: Decided, groups: Mapping[str, str], given: _Given) -> DatasetVersion:
    """The version with this content, without its listing. Raises BadInput when it cannot train anything."""
    rows = [decided.rows[sample_id] for sample_id in sorted(decided.rows)]
    learnt = [row for row in rows if row.split is not Split.HOLDOUT]
    class_names = sorted({row.class_name for row in rows if row.split is Split.TRAIN})
    splits = Counter(row.split.value for row in rows)
    excluded = Counter(decided.excluded.values())
    content = _hash(rows, groups, excluded)
    if len(class_names) < 2:
        without = "; ".join(f"{count} {reason}" for reason, count in sorted(excluded.items()))
        raise BadInput(
            f"{splits['train']} labels of {len(class_names)} classes are not enough to train on"
            f"{f' (left out: {without})' if without else ''}; embed a labelled corpus first with: dipnet embed CORPUS"
        )
    return DatasetVersion(
        content_hash=content,
        listing_key=f"datasets/{content}.parquet",
        learnt_hash=_hash(learnt, groups),
        samples=len(rows),
        splits={split.value: splits[split.value] for split in RANKS if splits[split.value]},
        excluded=dict(sorted(excluded.items())),
        class_names=class_names,
        corpora=[corpus.name for corpus in given.base],
        adds_batches=[batch.id or 0 for batch in given.batches],
    )


def _require_whole_evaluation(stores: Stores, version: DatasetVersion, decided: Decided) -> None:
    """Raises BadInput when evaluation samples are gone that the newest comparable version had.

    Comparable is what drew on the same train corpora and on no other batches. Development samples may have become holdout,
    or be left out for being related to it.
    """
    before = runs.newest_dataset(stores.db, corpora=version.corpora, batches=version.adds_batches)
    if before is None or before.content_hash == version.content_hash:
        return
    listing, rows = read_listing(stores, before), decided.rows
    gone: dict[Split, int] = {}
    for split in (Split.HOLDOUT, Split.DEVELOPMENT):
        allowed = RANKS[RANKS.index(split) :]
        lost = [
            sample_id
            for sample_id in of_split(listing, split).column("sample_id").to_pylist()
            if not (sample_id in rows and rows[sample_id].split in allowed)
            and not (split is Split.DEVELOPMENT and decided.excluded.get(sample_id) == RELATED_TO_HOLDOUT)
        ]
        if lost:
            gone[split] = len(lost)
    if gone:
        told = " and ".join(f"{count} {split.value} samples" for split, count in gone.items())
        raise BadInput(
            f"{told} of dataset version {before.id} would be gone from evaluation, so that results could not be compared; "
            "keep its splits and bring the labels back (dipnet labels list), or, where it is meant, set splits.may_shrink"
        )


def _hash(rows: Sequence[Row], groups: Mapping[str, str], excluded: Mapping[str, int] | None = None) -> str:
    """Of the rows, of the groups that are not a sample's own, and of what was left out, where anything was."""
    lines = []
    for row in rows:
        group = groups[row.sample.id]
        own = group == grouping.own_name(row.sample)
        lines.append("\t".join([row.sample.id, row.class_name, row.split.value, *([] if own else [group])]))
    lines += [f"left out\t{reason}\t{count}" for reason, count in sorted((excluded or {}).items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
