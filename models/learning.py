"""Frozen data, fitted classifiers, and what is known of how good they are."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.base import UtcDateTime, created_at, enum_type
from models.states import ScenarioKind, Verdict


class DatasetVersion(SQLModel, table=True):
    """An immutable list of (sample, label, split). The same list has the same content hash, hence the same row."""

    id: int | None = Field(default=None, primary_key=True)
    content_hash: str = Field(unique=True, max_length=64)
    parent_id: int | None = Field(default=None, foreign_key="datasetversion.id")
    listing_key: str = Field(description="Parquet: sample_id, class_name, split, group, shard_id, uri")
    listing_sha256: str = Field(default="", max_length=64, description="empty: made before 0.4, and not checked")
    learnt_hash: str = Field(default="", max_length=64, description="of the rows that a fit sees: all but the holdout")
    samples: int
    splits: dict[str, int] = Field(default_factory=dict, sa_type=JSON, description="samples by split")
    excluded: dict[str, int] = Field(
        default_factory=dict, sa_type=JSON, description="labelled samples left out, by reason"
    )
    class_names: list[str] = Field(default_factory=list, sa_type=JSON)
    corpora: list[str] = Field(
        default_factory=list, sa_type=JSON, description="train corpora that it draws on; empty: made before 0.4"
    )
    adds_batches: list[int] = Field(default_factory=list, sa_type=JSON, description="label batches beyond the parent")
    created_at: datetime = created_at()


class TrainingRun(SQLModel, table=True):
    """A fit on a frozen dataset version, or what is known of one that was made elsewhere."""

    id: int | None = Field(default=None, primary_key=True)
    key: str = Field(unique=True, max_length=64)
    dataset_id: int | None = Field(
        default=None, foreign_key="datasetversion.id", index=True, description="none: predictions came from outside"
    )
    encoder_id: int | None = Field(
        default=None, foreign_key="encoderspec.id", description="whose vectors are the features; none: it sees pixels"
    )
    trainer: str = Field(max_length=40, description="head, finetune, external or imported")
    parameters: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    seed: int = 0
    environment: dict[str, Any] = Field(default_factory=dict, sa_type=JSON, description="versions, device, threads")
    history: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON, description="a row an epoch")
    log_key: str = Field(default="", description="what an external training wrote; empty: nothing")
    seconds: float = 0.0
    created_at: datetime = created_at()


class ModelVersion(SQLModel, table=True):
    """A fitted classifier: a version of a name. `NAME` means the newest, `NAME@2` the second."""

    __table_args__ = (UniqueConstraint("name", "version"),)

    id: int | None = Field(default=None, primary_key=True)
    training_run_id: int = Field(foreign_key="trainingrun.id", unique=True)
    name: str = Field(max_length=100)
    version: int = Field(default=1, description="1, 2, … of its name")
    weights_key: str = Field(description="safetensors; empty: only its predictions are known")
    weights_sha256: str = Field(max_length=64)
    class_names: list[str] = Field(default_factory=list, sa_type=JSON)
    created_at: datetime = created_at()

    @property
    def reference(self) -> str:
        """How people name this very version."""
        return f"{self.name}@{self.version}"


class Scenario(SQLModel, table=True):
    """A named subset to evaluate on; each version is frozen, and a later one holds all samples of the one before."""

    __table_args__ = (UniqueConstraint("name", "version"),)

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=200)
    version: int = Field(default=1, description="1, 2, … of its name")
    parent_id: int | None = Field(default=None, foreign_key="scenario.id")
    kind: ScenarioKind = Field(default=ScenarioKind.SLICE, sa_type=enum_type(ScenarioKind))
    issue_id: int | None = Field(default=None, foreign_key="issue.id")
    corpora: list[str] = Field(default_factory=list, sa_type=JSON, description="evaluation corpora that it draws on")
    where: str = Field(default="", description="SQL over manifest columns that its samples meet")
    group_by: str = Field(
        default="", max_length=200, description="what belongs together: near-duplicates, or a column; empty: nothing"
    )
    listing_key: str = Field(description="Parquet: sample_id, class_name, group, shard_id, uri, and metadata columns")
    listing_sha256: str = Field(max_length=64)
    samples: int
    created_at: datetime = created_at()

    @property
    def reference(self) -> str:
        """How people name this very version."""
        return f"{self.name}@{self.version}"


class InferenceSet(SQLModel, table=True):
    """One model's predictions on a scenario."""

    __table_args__ = (UniqueConstraint("model_id", "scenario_id"),)

    id: int | None = Field(default=None, primary_key=True)
    model_id: int = Field(foreign_key="modelversion.id", index=True)
    scenario_id: int = Field(foreign_key="scenario.id", index=True)
    predictions_key: str = Field(
        description="Parquet: sample_id, class_name, predicted, and where there are probabilities a column p:CLASS each"
    )
    predictions_sha256: str = Field(default="", max_length=64, description="empty: made before 0.4, and not checked")
    source: str = Field(default="computed", max_length=40, description="computed, external or imported")
    unreadable: dict[str, int] = Field(
        default_factory=dict, sa_type=JSON, description="images of which nothing was seen, by reason"
    )
    created_at: datetime = created_at()


class Evaluation(SQLModel, table=True):
    """The metrics of a model on a scenario."""

    id: int | None = Field(default=None, primary_key=True)
    inference_id: int = Field(foreign_key="inferenceset.id", unique=True)
    metrics: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    created_at: datetime = created_at()


class Comparison(SQLModel, table=True):
    """Two models on the same samples."""

    __table_args__ = (UniqueConstraint("before_id", "after_id", "scenario_id", "resamples", "seed"),)

    id: int | None = Field(default=None, primary_key=True)
    before_id: int = Field(foreign_key="modelversion.id", index=True)
    after_id: int = Field(foreign_key="modelversion.id", index=True)
    scenario_id: int = Field(foreign_key="scenario.id", index=True)
    samples: int = 0
    groups: int = Field(default=0, description="clusters that were resampled; as many as samples where each is its own")
    resamples: int = 0
    seed: int = 0
    changes_key: str = Field(default="", description="Parquet: samples that improved and worsened")
    summary: dict[str, Any] = Field(
        default_factory=dict, sa_type=JSON, description="McNemar's test, class names, confusion after − before"
    )
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
    p: float = Field(default=1.0, description="two-sided, of no difference")
    q: float = Field(
        default=1.0, description="p after Benjamini and Hochberg over the comparison's deltas of this metric"
    )
    detectable: float = Field(default=0.0, description="least difference that such a comparison shows in 80 % of cases")


class Gate(SQLModel, table=True):
    """The verdict on a change: did it help where it should, and break nothing elsewhere?"""

    id: int | None = Field(default=None, primary_key=True)
    key: str = Field(unique=True, max_length=64, description="hash of both models, issue, policy and comparisons")
    issue_id: int | None = Field(default=None, foreign_key="issue.id", index=True, description="none: it is about all")
    before_id: int | None = Field(default=None, foreign_key="modelversion.id")
    after_id: int | None = Field(default=None, foreign_key="modelversion.id", index=True)
    policy: dict[str, Any] = Field(default_factory=dict, sa_type=JSON, description="the GatePolicy")
    verdict: Verdict = Field(sa_type=enum_type(Verdict))
    reasons: list[str] = Field(default_factory=list, sa_type=JSON)
    findings: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON, description="a row a test that was made")
    samples_needed: int | None = Field(
        default=None, description="of the target scenario, to decide what is inconclusive"
    )
    settled: bool = Field(default=False, description="whether the issue has moved with it, and its campaigns")
    created_at: datetime = created_at()


class Promotion(SQLModel, table=True):
    """A model that became champion. The champion is that of the newest promotion that was not undone."""

    id: int | None = Field(default=None, primary_key=True)
    model_id: int = Field(foreign_key="modelversion.id", index=True)
    gate_id: int | None = Field(default=None, foreign_key="gate.id", description="none: by hand, or the first of all")
    reason: str = ""
    undone_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    created_at: datetime = created_at()


class Uplift(SQLModel, table=True):
    """What a campaign's labels gave beyond as many of its control arm, over several training seeds."""

    id: int | None = Field(default=None, primary_key=True)
    key: str = Field(unique=True, max_length=64, description="hash of all that went in")
    campaign_id: int = Field(foreign_key="campaign.id", index=True)
    control_id: int = Field(foreign_key="campaign.id")
    scenario_id: int = Field(foreign_key="scenario.id")
    class_name: str = Field(default="", max_length=200, description="empty: over all classes")
    metric: str = Field(max_length=40)
    budget: int = Field(description="labels of each arm that were learnt from")
    seeds: list[int] = Field(default_factory=list, sa_type=JSON)
    by_seed: list[dict[str, float]] = Field(default_factory=list, sa_type=JSON, description="control, campaign")
    mean: float
    low: float
    high: float
    created_at: datetime = created_at()
