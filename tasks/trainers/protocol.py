"""What a trainer is: what its result depends on, how it fits, and how its models answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.corpus import EncoderSpec
from models.learning import DatasetVersion, ModelVersion, TrainingRun
from models.retraining import RetrainPlan
from storage.stores import Stores

PROBABILITY = "p:"  # before a class's name: the column of its probabilities, in every table of predictions


class Job(NamedTuple):
    """A fit that is to be made. Development rows stop it early and are never learnt from."""

    key: str
    plan: RetrainPlan
    dataset: DatasetVersion
    encoder: EncoderSpec | None  # none: the trainer sees no vectors
    train: pa.Table
    development: pa.Table

    @property
    def weights_key(self) -> str:
        """Where its weights go."""
        return f"models/{self.key}.safetensors"

    @property
    def log_key(self) -> str:
        """Where what it wrote goes."""
        return f"models/{self.key}/log.txt"

    @property
    def predictions_key(self) -> str:
        """Where its answers go, when they are all that is known of it."""
        return f"models/{self.key}/predictions.parquet"


class Trained(NamedTuple):
    """What a fit left."""

    weights_key: str  # empty: only its predictions are known
    sha256: str  # of the weights, or of the predictions
    parameters: dict[str, Any]
    history: list[dict[str, Any]]
    environment: dict[str, Any]  # device and threads
    unreadable: dict[str, int]  # training images left out, by reason
    notes: list[str]
    log_key: str = ""


class Answers(NamedTuple):
    """A model's answers about the rows of a listing."""

    predicted: NDArray[np.int64]  # (n,) places in the model's class names
    probabilities: NDArray[np.float32] | None  # (n, classes); none: it gives none
    reasons: dict[int, str] = {}  # noqa: RUF012  rows of which nothing was seen; their probabilities are uniform


class Trainer(NamedTuple):
    """One way to fit a classifier."""

    sees_vectors: bool
    inputs: Callable[[Stores, RetrainPlan, DatasetVersion], dict[str, Any]]  # beside data, encoder, seed: JSON
    fit: Callable[[Stores, Job], Trained]
    predict: Callable[[Stores, ModelVersion, TrainingRun, pa.Table], Answers]
    source: str = "computed"  # of its inference sets


def watchable(job: Job) -> tuple[pa.Table, list[str]]:
    """The development rows that early stopping can go by, those of a class that is learnt, and a note about the others."""
    mask = pc.is_in(job.development.column("class_name"), value_set=pa.array(job.dataset.class_names, pa.string()))
    known = job.development.filter(mask)
    others = job.development.num_rows - known.num_rows
    note = f"{others} development images are of classes that training does not have: left out of early stopping"
    return known, [note] if others else []


def checkpoint_key(key: str) -> str:
    """Where an unfinished fit keeps how far it has come."""
    return f"models/{key}/checkpoint"
