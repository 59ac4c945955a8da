"""From labels to a classifier: freeze a dataset version, fit a head on frozen embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import pyarrow as pa

from models.corpus import Corpus, EncoderSpec, Sample
from models.errors import BadInput
from models.labeling import Label, LabelBatch, LabelRequest
from models.learning import DatasetVersion, ModelVersion, TrainingRun
from models.plans import RetrainPlan
from models.states import RequestState, Split
from models.values import Fitted
from storage import campaigns, corpora, labels, runs, tables
from storage.stores import Stores, open_stores
from tasks import features, heads
from tasks.compute import classifier
from tasks.steps import step


@step()
def freeze_dataset(corpus_names: Sequence[str], campaign_names: Sequence[str]) -> int:
    """The dataset version of these corpora's train labels and these campaigns' answers; same content, same version."""
    with open_stores() as stores:
        base = [_train_corpus(stores, name) for name in sorted(set(corpus_names))]
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


@step()
def fit_head(dataset_id: int, plan: RetrainPlan) -> Fitted:
    """Fit a logistic head on a dataset version. The same inputs give the model that is there already."""
    with open_stores() as stores:
        dataset = stores.db.get_one(DatasetVersion, dataset_id)
        encoder = corpora.get_encoder(stores.db, name=plan.encoder or stores.settings.encoder)
        key = _training_key(plan, dataset, encoder)
        found = runs.find_training(stores.db, key=key)
        if found is not None:
            return _fitted(found[1], dataset, reused=True)

        listing = tables.from_bytes(stores.objects.read(dataset.listing_key))
        inputs = features.of_listing(stores, listing, encoder)
        targets = classifier.as_targets(listing.column("class_name").to_pylist(), dataset.class_names)
        head = classifier.fit(inputs, targets, classes=len(dataset.class_names), regularisation=plan.regularisation)

        weights_key = f"models/{key}.safetensors"
        checksum = stores.objects.write(weights_key, heads.to_bytes(head))
        run = TrainingRun(
            key=key,
            dataset_id=dataset_id,
            encoder_id=encoder.id or 0,
            trainer="head",
            parameters={"regularisation": plan.regularisation},
            seed=plan.seed,
        )
        stores.db.add(run)
        stores.db.flush()
        model = ModelVersion(
            training_run_id=run.id or 0,
            name=plan.model,
            weights_key=weights_key,
            weights_sha256=checksum,
            class_names=dataset.class_names,
        )
        stores.db.add(model)
        stores.db.flush()
    return _fitted(model, dataset, reused=False)


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
        stores.objects.write(key, tables.to_bytes(listing))
        found = DatasetVersion(
            content_hash=content,
            parent_id=parent.id if parent else None,
            listing_key=key,
            samples=len(ids),
            class_names=class_names,
            adds_batches=[batch.id or 0 for batch in batches],
        )
        stores.db.add(found)
        stores.db.flush()
    return found


def _training_key(plan: RetrainPlan, dataset: DatasetVersion, encoder: EncoderSpec) -> str:
    inputs = [plan.model, dataset.content_hash, encoder.key, "head", plan.regularisation, plan.seed]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _fitted(model: ModelVersion, dataset: DatasetVersion, *, reused: bool) -> Fitted:
    return Fitted(
        model_id=model.id or 0, model=model.name, dataset_id=dataset.id or 0, samples=dataset.samples, reused=reused
    )
