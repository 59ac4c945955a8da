"""From a dataset version to a classifier."""

from __future__ import annotations

import hashlib
import json

from models.corpus import EncoderSpec
from models.learning import DatasetVersion, ModelVersion, TrainingRun
from models.retraining import RetrainPlan
from models.states import Split
from models.values import Fitted
from storage import corpora, runs
from storage.stores import open_stores
from tasks import datasets, features, heads
from tasks.compute import classifier
from tasks.steps import step


@step()
def fit(dataset_id: int, plan: RetrainPlan) -> Fitted:
    """Fit a logistic head on a dataset version. The same inputs give the model that is there already."""
    with open_stores() as stores:
        dataset = stores.db.get_one(DatasetVersion, dataset_id)
        encoder = corpora.get_encoder(stores.db, name=plan.encoder or stores.settings.encoder)
        key = _training_key(plan, dataset, encoder)
        found = runs.find_training(stores.db, key=key)
        if found is not None:
            return _fitted(found[1], dataset, reused=True)

        listing = datasets.of_split(datasets.read_listing(stores, dataset), Split.TRAIN)
        inputs = features.of_listing(stores, listing, encoder)
        targets = classifier.as_targets(listing.column("class_name").to_pylist(), dataset.class_names)
        head = classifier.fit(
            inputs, targets, classes=len(dataset.class_names), regularisation=plan.trainer.head.regularisation
        )

        weights_key = f"models/{key}.safetensors"
        checksum = stores.objects.write(weights_key, heads.to_bytes(head))
        run = TrainingRun(
            key=key,
            dataset_id=dataset_id,
            encoder_id=encoder.id or 0,
            trainer="head",
            parameters={"regularisation": plan.trainer.head.regularisation},
            seed=plan.seed,
        )
        stores.db.add(run)
        stores.db.flush()
        model = ModelVersion(
            training_run_id=run.id or 0,
            name=plan.model,
            version=runs.next_version(stores.db, name=plan.model),
            weights_key=weights_key,
            weights_sha256=checksum,
            class_names=dataset.class_names,
        )
        stores.db.add(model)
        stores.db.flush()
    return _fitted(model, dataset, reused=False)


def _training_key(plan: RetrainPlan, dataset: DatasetVersion, encoder: EncoderSpec) -> str:
    inputs = [plan.model, dataset.learnt_hash, encoder.key, "head", plan.trainer.head.regularisation, plan.seed]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _fitted(model: ModelVersion, dataset: DatasetVersion, *, reused: bool) -> Fitted:
    samples = dataset.splits[Split.TRAIN]
    return Fitted(model_id=model.id or 0, model=model.name, dataset_id=dataset.id or 0, samples=samples, reused=reused)
