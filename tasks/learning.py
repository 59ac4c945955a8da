"""From a dataset version to a classifier, by the trainer that the plan names."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import time
from typing import Any

from models.corpus import EncoderSpec
from models.errors import BadInput
from models.learning import DatasetVersion, ModelVersion, TrainingRun
from models.outcomes import Fitted
from models.retraining import RetrainPlan
from models.states import Split
from storage import corpora, runs
from storage.stores import Stores, alone, open_stores
from tasks import datasets, preparing
from tasks.steps import step
from tasks.trainers.protocol import Job, Trained, checkpoint_key
from tasks.trainers.registry import trainer_of

VERSIONS = ("numpy", "scikit-learn", "torch", "torchvision")


@step()
def fit(dataset_id: int, plan: RetrainPlan) -> Fitted:
    """Fit a classifier on a dataset version's train rows. The same inputs under the same name give the model that is there.

    Other inputs under a known name make its next version. One fit of a name goes on at a time; a fit that was killed is
    taken up where its trainer can, and begins anew where it cannot.
    """
    preparing.require_own_name(plan.model)
    with alone(f"fit-{plan.model}"):
        with open_stores() as stores:
            dataset = stores.db.get_one(DatasetVersion, dataset_id)
            job = _job(stores, plan, dataset)
            found = runs.find_training(stores.db, key=job.key)
            if found is None:
                stores.db.commit()  # nobody waits for the database meanwhile
                started = time.monotonic()
                trained = trainer_of(plan.trainer.name).fit(stores, job)
                stores.db.commit()  # SQLite refuses to write on top of an old view
                model = _save(stores, job, trained, time.monotonic() - started)
        stores.objects.remove(
            checkpoint_key(job.key)
        )  # once the row is there; a kill before leaves it to the next call
    if found is not None:
        return _fitted(found[1], dataset, found[0].environment, reused=True)
    return _fitted(model, dataset, {"unreadable": trained.unreadable, "notes": trained.notes}, reused=False)


def _job(stores: Stores, plan: RetrainPlan, dataset: DatasetVersion) -> Job:
    trainer = trainer_of(plan.trainer.name)
    encoder = None
    if trainer.sees_vectors:
        encoder = corpora.get_encoder(stores.db, name=plan.encoder or stores.settings.encoder)
    key = _training_key(plan, dataset, encoder, trainer.inputs(stores, plan, dataset))
    listing = datasets.read_listing(stores, dataset)
    train, development = (datasets.of_split(listing, split) for split in (Split.TRAIN, Split.DEVELOPMENT))
    if not train.num_rows:
        raise BadInput(f"dataset version {dataset.id} has no rows to train on; hold back less, or add labels")
    return Job(key, plan, dataset, encoder, train, development)


def _training_key(
    plan: RetrainPlan, dataset: DatasetVersion, encoder: EncoderSpec | None, inputs: dict[str, Any]
) -> str:
    """Hash of all that a fit depends on, and of the name under which it is kept: a name's versions are its own."""
    parts = {
        "model": plan.model,
        "data": dataset.learnt_hash or dataset.content_hash,
        "class_names": dataset.class_names,
        "encoder": encoder.key if encoder else "",
        "trainer": plan.trainer.name,
        "inputs": inputs,
        "seed": plan.seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _save(stores: Stores, job: Job, trained: Trained, seconds: float) -> ModelVersion:
    """The rows that say that the fit is done; its files are in place."""
    run = TrainingRun(
        key=job.key,
        dataset_id=job.dataset.id,
        encoder_id=job.encoder.id if job.encoder else None,
        trainer=job.plan.trainer.name,
        parameters=trained.parameters,
        seed=job.plan.seed,
        environment={
            **environment(),
            **trained.environment,
            "unreadable": trained.unreadable,
            "notes": trained.notes,
        },
        history=trained.history,
        log_key=trained.log_key,
        seconds=round(seconds, 3),
    )
    stores.db.add(run)
    stores.db.flush()
    model = ModelVersion(
        training_run_id=run.id or 0,
        name=job.plan.model,
        version=runs.next_version(stores.db, name=job.plan.model),
        weights_key=trained.weights_key,
        weights_sha256=trained.sha256,
        class_names=job.dataset.class_names,
    )
    stores.db.add(model)
    stores.db.flush()
    return model


def environment() -> dict[str, Any]:
    """What a fit's bits may depend on beside its inputs."""
    versions = {name.replace("-", "_"): importlib.metadata.version(name) for name in VERSIONS}
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}


def _fitted(model: ModelVersion, dataset: DatasetVersion, found: dict[str, Any], *, reused: bool) -> Fitted:
    return Fitted(
        model_id=model.id or 0,
        model=model.name,
        version=model.version,
        dataset_id=dataset.id or 0,
        samples=(dataset.splits or {}).get(Split.TRAIN.value, dataset.samples),
        reused=reused,
        unreadable=found.get("unreadable", {}),
        notes=found.get("notes", []),
    )
