"""Trainer `head`: a small classifier on frozen embeddings. Seconds, and the same bits every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from models.corpus import EncoderSpec
from models.errors import BadInput
from models.learning import DatasetVersion, ModelVersion, TrainingRun
from models.retraining import HeadOptions, RetrainPlan
from storage.stores import Stores
from tasks import features, heads
from tasks.compute import classifier, perceptron
from tasks.trainers.protocol import Answers, Job, Trained, Trainer, watchable


def _inputs(_stores: Stores, plan: RetrainPlan, _dataset: DatasetVersion) -> dict[str, Any]:
    """The options that count: a logistic head has no hidden layer."""
    options = plan.trainer.head.model_dump()
    return options if options["kind"] == "mlp" else {name: options[name] for name in options if name != "hidden"}


def _fit(stores: Stores, job: Job) -> Trained:
    """Fit on the train rows; development rows stop an MLP early. A bootstrap draws its rows by the seed."""
    options, classes = job.plan.trainer.head, len(job.dataset.class_names)
    train = _rows(stores, job, job.train)
    watched, notes = watchable(job) if options.kind == "mlp" else (job.development.slice(0, 0), [])
    development = _rows(stores, job, watched)
    if len(np.unique(train.targets)) < 2:
        raise BadInput("the train split holds labels of fewer than two classes; add some, or hold back less")
    if options.bootstrap:
        drawn = classifier.resample(train.targets, seed=job.plan.seed)
        train = perceptron.Rows(train.features[drawn], train.targets[drawn])

    head, history = fit_rows(train, development, options, classes, job.plan.seed)

    return Trained(
        weights_key=job.weights_key,
        sha256=stores.objects.write(job.weights_key, heads.to_bytes(head)),
        parameters=_inputs(stores, job.plan, job.dataset),
        history=history,
        environment={"device": "cpu", "threads": 1},
        unreadable={},
        notes=notes,
    )


def fit_rows(
    train: perceptron.Rows, development: perceptron.Rows, options: HeadOptions, classes: int, seed: int
) -> tuple[classifier.Head | perceptron.Perceptron, list[dict[str, float]]]:
    """A head as the options say, and a row an epoch of an MLP."""
    balanced = options.balance == "class-weights"
    if options.kind == "mlp":
        wanted = perceptron.Options(classes, options.hidden, options.regularisation, balanced, seed)
        found = perceptron.fit(train, development, wanted)
        return found.head, found.history
    head = classifier.fit(*train, classes=classes, regularisation=options.regularisation, balanced=balanced)
    return head, []


def _rows(stores: Stores, job: Job, listing: pa.Table) -> perceptron.Rows:
    if job.encoder is None:
        raise BadInput("trainer head needs an encoder; name one with --encoder")
    targets = classifier.as_targets(listing.column("class_name").to_pylist(), job.dataset.class_names)
    return perceptron.Rows(features.of_listing(stores, listing, job.encoder), targets)


def _predict(stores: Stores, model: ModelVersion, training: TrainingRun, listing: pa.Table) -> Answers:
    encoder = stores.db.get_one(EncoderSpec, training.encoder_id)
    found = heads.probabilities(heads.load(stores, model), features.of_listing(stores, listing, encoder))
    return Answers(found.argmax(axis=1).astype(np.int64), found)


TRAINER = Trainer(sees_vectors=True, inputs=_inputs, fit=_fit, predict=_predict)
