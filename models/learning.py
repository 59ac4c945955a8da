"""Frozen data, fitted classifiers, and what is known of how good they are."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.base import created_at, enum_type
from models.states import Verdict


class DatasetVersion(SQLModel, table=True):
    """An immutable list of (sample, label, split). The same list has the same content hash, hence the same row."""

    id: int | None = Field(default=None, primary_key=True)
    content_hash: str = Field(unique=True, max_length=64)
    parent_id: int | None = Field(default=None, foreign_key="datasetversion.id")
    listing_key: str = Field(description="Parquet: sample_id, class_name, split, shard_id, uri")
    samples: int
    class_names: list[str] = Field(default_factory=list, sa_type=JSON)
    adds_batches: list[int] = Field(default_factory=list, sa_type=JSON, description="label batches beyond the parent")
    created_at: datetime = created_at()


class TrainingRun(SQLModel, table=True):
    """A fit on a frozen dataset version."""

    id: int | None = Field(default=None, primary_key=True)
    key: str = Field(unique=True, max_length=64)
    dataset_id: int = Field(foreign_key="datasetversion.id", index=True)
    encoder_id: int = Field(foreign_key="encoderspec.id")
    trainer: str = Field(max_length=40)
    parameters: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    seed: int = 0
    created_at: datetime = created_at()


class ModelVersion(SQLModel, table=True):
    """A fitted classifier."""

    id: int | None = Field(default=None, primary_key=True)
    training_run_id: int = Field(foreign_key="trainingrun.id", unique=True)
    name: str = Field(max_length=100)
    weights_key: str = Field(description="safetensors")
    weights_sha256: str = Field(max_length=64)
    class_names: list[str] = Field(default_factory=list, sa_type=JSON)
    created_at: datetime = created_at()


class Scenario(SQLModel, table=True):
    """A named, frozen subset to evaluate on."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True, max_length=200)
    issue_id: int | None = Field(default=None, foreign_key="issue.id")
    listing_key: str = Field(description="Parquet: sample_id, class_name, shard_id, uri")
    listing_sha256: str = Field(max_length=64)
    samples: int
    created_at: datetime = created_at()


class InferenceSet(SQLModel, table=True):
    """One model's predictions on a scenario."""

    __table_args__ = (UniqueConstraint("model_id", "scenario_id"),)

    id: int | None = Field(default=None, primary_key=True)
    model_id: int = Field(foreign_key="modelversion.id", index=True)
    scenario_id: int = Field(foreign_key="scenario.id", index=True)
    predictions_key: str = Field(description="Parquet: sample_id, class_name, predicted, and one column a class")
    created_at: datetime = created_at()


class Evaluation(SQLModel, table=True):
    """The metrics of a model on a scenario."""

    id: int | None = Field(default=None, primary_key=True)
    inference_id: int = Field(foreign_key="inferenceset.id", unique=True)
    metrics: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    created_at: datetime = created_at()


class Comparison(SQLModel, table=True):
    """Two models on the same samples."""

    __table_args__ = (UniqueConstraint("before_id", "after_id", "scenario_id"),)

    id: int | None = Field(default=None, primary_key=True)
    before_id: int = Field(foreign_key="modelversion.id", index=True)
    after_id: int = Field(foreign_key="modelversion.id", index=True)
    scenario_id: int = Field(foreign_key="scenario.id", index=True)
    created_at: datetime = created_at()


class MetricDelta(SQLModel, table=True):
    """A difference with its paired 95 % interval."""

    __table_args__ = (UniqueConstraint("comparison_id", "class_name", "metric"),)

    id: int | None = Field(default=None, primary_key=True)
    comparison_id: int = Field(foreign_key="comparison.id", index=True)
    class_name: str = Field(default="", max_length=200, description="empty: over all classes")
    metric: str = Field(max_length=40)
    before: float
    after: float
    low: float
    high: float


class Gate(SQLModel, table=True):
    """The verdict on a change for an issue: did it help there, and break nothing elsewhere?"""

    __table_args__ = (UniqueConstraint("issue_id", "slice_comparison_id", "overall_comparison_id"),)

    id: int | None = Field(default=None, primary_key=True)
    issue_id: int = Field(foreign_key="issue.id", index=True)
    slice_comparison_id: int = Field(foreign_key="comparison.id")
    overall_comparison_id: int = Field(foreign_key="comparison.id")
    verdict: Verdict = Field(sa_type=enum_type(Verdict))
    reasons: list[str] = Field(default_factory=list, sa_type=JSON)
    created_at: datetime = created_at()
