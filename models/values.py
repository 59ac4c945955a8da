"""Frozen values: what a person decides (the forms of the Prefect UI) and what a step reports back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from models.states import RequestState, Split, Verdict

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,98}$")]


class Plan(BaseModel):
    """What a person decides. Every field becomes a field of the form."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class IngestPlan(Plan):
    """List the images under a prefix into a corpus."""

    corpus: Name = Field(description="Name of the corpus: lower-case letters, digits, . _ -")
    prefix: str = Field(min_length=1, description="Folder or s3://bucket/prefix that the images lie under")
    split: Literal["none", "train", "development", "holdout"] = Field(
        "none", description="What its labels may be used for; none for an unlabelled pool"
    )
    label_column: str = Field(
        "",
        description="Column of metadata.csv that holds the class, or 'folder' for a folder a class; empty: no labels",
    )

    @property
    def split_or_none(self) -> Split | None:
        """The split, or None for a pool."""
        return None if self.split == "none" else Split(self.split)


class EmbedPlan(Plan):
    """Turn the images of corpora into vectors."""

    corpora: list[str] = Field(min_length=1, description="Names of corpora")
    encoder: str = Field(
        "", description="MODEL/PRETRAINED of open_clip or a checkpoint's folder; empty: the default of the settings"
    )
    batch_size: int = Field(256, ge=1, le=65_536, description="Images that the encoder sees at once")


class SelectionPolicy(Plan):
    """How candidates are scored and chosen."""

    strategy: Literal["probe", "nearest", "random"] = Field(
        "probe", description="probe: whitened LDA; nearest: best similarity to an exemplar; random: the control arm"
    )
    budget: int = Field(200, ge=1, le=100_000, description="Label requests to send")
    near_duplicate_cosine: float = Field(
        0.995,
        gt=0.0,
        le=1.0,
        description="Two images at least this similar count as near-duplicates; 1 drops identical vectors only",
    )
    leak_cosine: float = Field(
        0.9995, gt=0.0, le=1.0, description="An image at least this similar to evaluation data is refused"
    )
    shrinkage: float = Field(0.1, ge=0.0, le=1.0, description="Shrinkage of the background covariance (probe)")
    seed: int = Field(0, ge=0, description="Seed of the random strategy and of the background sample")


class CampaignPlan(Plan):
    """Mine corpora for more of an issue, choose within a budget, and route the choice to be labelled."""

    campaign: Name = Field(description="Name of the campaign; it is made when it is new")
    issue: str = Field(min_length=1, description="Name of an issue that has exemplars")
    corpora: list[str] = Field(min_length=1, description="Names of embedded corpora to search")
    policy: SelectionPolicy = Field(default_factory=SelectionPolicy, description="How to score and choose")
    encoder: str = Field("", description="Encoder whose vectors are searched; empty: the default of the settings")
    class_names: list[str] = Field(
        default_factory=list, description="Answers that annotators choose from; empty: every class labelled so far"
    )
    model: str = Field("", description="Model version whose predictions go along as pre-annotations; empty: none")
    route: bool = Field(True, description="Send the choice to the labeller; otherwise stop after mining")


class SyncPlan(Plan):
    """Fetch answers for every open batch."""

    campaigns: list[str] = Field(default_factory=list, description="Only these campaigns; empty: all")


class RetrainPlan(Plan):
    """Freeze a dataset version, fit a classifier, evaluate it and compare it."""

    model: Name = Field(description="Name of the new model version")
    corpora: list[str] = Field(min_length=1, description="Labelled corpora whose train split is the base")
    campaigns: list[str] = Field(default_factory=list, description="Campaigns whose labels are added")
    scenarios: list[str] = Field(default_factory=list, description="Scenarios to evaluate on")
    compare_with: str = Field("", description="Model version to compare with on every scenario; empty: none")
    issue: str = Field("", description="Issue that the gate is about; empty: no gate")
    encoder: str = Field("", description="Encoder whose vectors are the features; empty: the default of the settings")
    regularisation: float = Field(
        10.0, gt=0.0, description="Inverse strength of the head's L2 penalty (scikit-learn's C)"
    )
    seed: int = Field(0, ge=0, description="Seed of the fit")
    resamples: int = Field(2_000, ge=200, le=100_000, description="Bootstrap resamples behind each interval")


class DiscoverPlan(Plan):
    """Find a slice of failures on development data and propose it as an issue."""

    model: str = Field(min_length=1, description="Model version that fails")
    scenario: str = Field(min_length=1, description="Scenario on development data; never a holdout")
    encoder: str = Field("", description="Encoder whose vectors are clustered; empty: the default of the settings")
    exemplars: int = Field(10, ge=1, le=1_000, description="Failures to keep as exemplars")
    seed: int = Field(0, ge=0, description="Seed of the clustering")


class Report(BaseModel):
    """What a step or a flow reports: counts and ids, never arrays."""

    model_config = ConfigDict(frozen=True)


class Ingested(Report):
    """Outcome of ingest-corpus."""

    corpus: str
    images: int
    new_images: int
    new_shards: int
    labels: int = 0


class Embedded(Report):
    """Outcome of embed-corpus for one corpus."""

    corpus: str
    encoder: str
    images: int
    vectors: int
    shards_done: int
    shards_skipped: int
    quarantined: dict[str, int] = Field(default_factory=dict)


class Mined(Report):
    """Outcome of mining."""

    run_id: int
    scanned: int
    candidates: int
    excluded: dict[str, int] = Field(default_factory=dict)


class Sent(Report):
    """Outcome of routing a run."""

    run_id: int
    batch_id: int
    project: str
    sent: int
    url: str = ""


class Synced(Report):
    """Outcome of one poll of a batch."""

    batch_id: int
    campaign: str
    new_labels: int
    rejected: int
    states: dict[RequestState, int]
    complete: bool


class Fitted(Report):
    """Outcome of a fit."""

    model_id: int
    model: str
    dataset_id: int
    samples: int
    reused: bool


class Compared(Report):
    """Outcome of a comparison."""

    comparison_id: int
    scenario: str
    before: str
    after: str


class Gated(Report):
    """A gate's verdict and its reasons."""

    issue: str
    verdict: Verdict
    reasons: list[str]


class RequestDraft(Report):
    """A label request on its way to a labeller."""

    key: str
    uri: str
    sample_id: str
    priority: int
    predicted_class: str = ""
    predicted_probability: float = 0.0
    model_version: str = ""


class ProjectBrief(Report):
    """What a labeller needs to know to open a project."""

    title: str
    class_names: list[str]
    instructions: str


class Answer(Report):
    """What a labeller says of one of our requests."""

    key: str
    external_id: str
    state: RequestState
    class_name: str = ""
    annotator: str = ""
    lead_seconds: float = 0.0
    answered_at: datetime


class Proposed(Report):
    """An issue that discovery opened or found again."""

    issue: str
    class_name: str
    taken_for: str
    failures: int
    exemplars: int
    slice_where: str


class CampaignOutcome(Report):
    """Outcome of run-campaign."""

    campaign: str
    mined: Mined
    sent: Sent | None = None


class Retrained(Report):
    """Outcome of retrain-and-evaluate."""

    fitted: Fitted
    evaluations: dict[str, int] = Field(description="evaluation by scenario")
    comparisons: list[Compared]
    gate: Gated | None = None


class ReportPlan(Plan):
    """What a report compares: a model before, one after a campaign, and one after its control arm."""

    issue: str = Field(description="Issue that the campaign was about")
    before: str = Field(description="Model version before")
    after: str = Field(description="Model version with the campaign's labels")
    control: str = Field(description="Model version with the control arm's labels")
    campaign: str = Field(description="Campaign")
    control_campaign: str = Field(description="Control campaign of equal budget")
    overall: str = Field(description="Scenario over all holdout data")
    slice: str = Field(description="Scenario of the issue's slice")
