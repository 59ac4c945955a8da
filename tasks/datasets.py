"""From labels to a frozen dataset version: which samples, with which class, in which split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from models.corpus import Corpus, Sample
from models.errors import BadInput
from models.labeling import Label, LabelBatch, LabelRequest
from models.learning import DatasetVersion
from models.retraining import RetrainPlan
from models.states import RequestState, Split
from storage import campaigns, corpora, labels, runs, tables
from storage.stores import Stores, open_stores
from tasks.steps import step


@step()
def freeze_dataset(plan: RetrainPlan) -> int:
    """The dataset version of a plan's corpora and its campaigns' answers; same content, same version."""
    with open_stores() as stores:
        named = plan.corpora or [corpus.name for corpus in corpora.list_corpora(stores.db, split=Split.TRAIN)]
        base = [_train_corpus(stores, name) for name in sorted(set(named))]
        campaign_names = list(plan.campaigns)
        if "*" in campaign_names:
            campaign_names = [campaign.name for campaign in campaigns.list_campaigns(stores.db)]
        for name in campaign_names:
            campaigns.get_campaign(stores.db, name=name)
        batches = labels.batches_of(stores.db, campaigns=list(campaign_names)) if campaign_names else []
        evaluation = _evaluation_ids(stores)

        listed = labels.labels_of_corpora(stores.db, corpora=base)
        parent = _save(stores, listing_of(listed, without=evaluation), parent=None, batches=[])
        if not batches:
            return parent.id or 0
        answers = labels.resolved_of_batches(stores.db, batches=batches)
        listing = listing_of([*listed, *answers], without=evaluation)
        return _save(stores, listing, parent=parent, batches=batches).id or 0


def listing_of(
    labelled: Sequence[tuple[Label | LabelRequest, Sample]], *, without: frozenset[str] | set[str]
) -> pa.Table:
    """A row a sample with its label: the last counts, and one that is skipped or empty, or names several classes, is none.

    Rows are in the order of the sample ids, so that the same labels make the same table.
    """
    resolved: dict[str, tuple[Label | LabelRequest, Sample]] = {}
    for label, sample in labelled:  # oldest first
        if label.state is RequestState.LABELLED and label.class_name and sample.id not in without:
            resolved[sample.id] = (label, sample)
    rows = [resolved[sample_id] for sample_id in sorted(resolved)]
    return pa.table(
        {
            "sample_id": pa.array([sample.id for _, sample in rows], pa.string()),
            "class_name": pa.array([label.class_name for label, _ in rows], pa.string()),
            "shard_id": pa.array([sample.shard_id for _, sample in rows], pa.int64()),
            "uri": pa.array([sample.uri for _, sample in rows], pa.string()),
        }
    )


def _train_corpus(stores: Stores, name: str) -> Corpus:
    corpus = corpora.get_corpus(stores.db, name=name)
    if corpus.split is not Split.TRAIN:
        raise BadInput(
            f"corpus '{name}' is not for training (split: {corpus.split or 'none'}); "
            "name one that was added with --split train"
        )
    return corpus


def _evaluation_ids(stores: Stores) -> set[str]:
    """Samples that must never be trained on, even where a train corpus holds the same bytes."""
    held = [c for split in (Split.DEVELOPMENT, Split.HOLDOUT) for c in corpora.list_corpora(stores.db, split=split)]
    return {sample.id for _, sample in labels.labels_of_corpora(stores.db, corpora=held)}


def _save(
    stores: Stores, listing: pa.Table, *, parent: DatasetVersion | None, batches: Sequence[LabelBatch]
) -> DatasetVersion:
    """The version with this content, made when it is new. Raises BadInput when it cannot train anything."""
    names, ids = listing.column("class_name").to_pylist(), listing.column("sample_id").to_pylist()
    class_names = sorted(set(names))
    if len(class_names) < 2:
        raise BadInput(
            f"{len(ids)} labels of {len(class_names)} classes are not enough to train on; embed a labelled corpus first "
            "with: dipnet embed CORPUS"
        )
    lines = "\n".join(f"{sample_id}\t{name}\ttrain" for sample_id, name in zip(ids, names, strict=True))
    content = hashlib.sha256(lines.encode()).hexdigest()
    found = runs.find_dataset(stores.db, content_hash=content)
    if found is None:
        key = f"datasets/{content}.parquet"
        found = DatasetVersion(
            content_hash=content,
            parent_id=parent.id if parent else None,
            listing_key=key,
            listing_sha256=stores.objects.write(key, tables.to_bytes(listing)),
            learnt_hash=content,
            samples=len(ids),
            splits={Split.TRAIN.value: len(ids)},
            class_names=class_names,
            adds_batches=[batch.id or 0 for batch in batches],
        )
        stores.db.add(found)
        stores.db.flush()
    return found
