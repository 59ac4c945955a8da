"""Issues, campaigns, their runs and candidates."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.base import created_at, enum_type
from models.states import Arm, CampaignState, CandidateState, IssueState, RunState


class Issue(SQLModel, table=True):
    """A named group of failures of one class. `version` moves with every change of its exemplars."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True, max_length=100)
    class_name: str = Field(max_length=200, description="the class that the model gets wrong")
    slice_where: str = Field(default="", description="SQL over manifest columns that delimits the issue's slice")
    description: str = ""
    state: IssueState = Field(default=IssueState.TRIAGE, sa_type=enum_type(IssueState))
    version: int = 0
    created_at: datetime = created_at()


class Exemplar(SQLModel, table=True):
    """A sample that shows the issue (positive) or what it is not (negative)."""

    __table_args__ = (UniqueConstraint("issue_id", "sample_id"),)

    id: int | None = Field(default=None, primary_key=True)
    issue_id: int = Field(foreign_key="issue.id", index=True)
    sample_id: str = Field(foreign_key="sample.id", max_length=64)
    positive: bool = True
    added_in_version: int
    created_at: datetime = created_at()


class Campaign(SQLModel, table=True):
    """An issue, corpora, a policy and a budget. Each execution is a CampaignRun."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True, max_length=100)
    issue_id: int = Field(foreign_key="issue.id", index=True)
    plan: dict[str, Any] = Field(default_factory=dict, sa_type=JSON, description="the plan it was last run with")
    state: CampaignState = Field(default=CampaignState.ACTIVE, sa_type=enum_type(CampaignState))
    stopped_because: str = ""
    created_at: datetime = created_at()


class CampaignRun(SQLModel, table=True):
    """One execution: a round of a series, keyed by all that went in, so that the same inputs never run twice."""

    __table_args__ = (UniqueConstraint("plan_key", "series", "round"),)

    id: int | None = Field(default=None, primary_key=True)
    campaign_id: int = Field(foreign_key="campaign.id", index=True)
    key: str = Field(unique=True, max_length=64)
    plan_key: str = Field(max_length=64, description="hash of issue version, policy, filters, encoder and model")
    series: int = Field(description="1, 2, …: a budget is spent once a series; new shards begin another")
    round: int = Field(description="1, 2, … within the series")
    budget: int = Field(default=0, description="how many elements it may choose")
    shards_key: str = Field(max_length=64, description="hash of the vectors that were there")
    shards: list[int] = Field(
        default_factory=list, sa_type=JSON, description="a standing campaign's: the embedded shards it is about"
    )
    watermark_key: str = Field(
        default="", max_length=64, description="a standing campaign's: what its shards are scored under"
    )
    last_shard: int = Field(description="the newest embedded shard that was there")
    encoder_id: int = Field(foreign_key="encoderspec.id")
    issue_version: int
    corpora: list[str] = Field(default_factory=list, sa_type=JSON)
    policy: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    condition: str = Field(default="", description="SQL over manifest columns that the pool is filtered by")
    model_id: int | None = Field(default=None, foreign_key="modelversion.id", description="whose predictions are shown")
    state: RunState = Field(default=RunState.PLANNED, sa_type=enum_type(RunState))
    excluded: dict[str, int] = Field(default_factory=dict, sa_type=JSON, description="elements left out, by reason")
    scanned: int = Field(default=0, description="elements that were scored or drawn from")
    scorer_key: str = Field(default="", description="object that holds the probes; empty for the random strategy")
    found: dict[str, Any] = Field(default_factory=dict, sa_type=JSON, description="adequacy, scores, expected yield")
    created_at: datetime = created_at()


class Candidate(SQLModel, table=True):
    """A mined element, and why it was chosen."""

    __table_args__ = (UniqueConstraint("run_id", "sample_id"),)

    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(foreign_key="campaignrun.id", index=True)
    sample_id: str = Field(foreign_key="sample.id", max_length=64, index=True)
    rank: int = Field(description="0 is the best")
    score: float = Field(description="0..1; score_version says what it means")
    score_version: str = Field(max_length=40)
    nearest_exemplar: str = Field(max_length=64, description="sample id of the most similar positive exemplar")
    similarity: float = Field(description="cosine to that exemplar")
    near_duplicates: int = Field(default=0, description="elements dropped because this one stands for them")
    prototype: int = Field(default=0, description="the probe that it matches best; 0 is the only or the largest")
    arm: Arm = Field(sa_type=enum_type(Arm))
    predicted_class: str = Field(default="", max_length=200)
    predicted_probability: float = 0.0
    state: CandidateState = Field(default=CandidateState.UNSORTED, sa_type=enum_type(CandidateState))


class ScoredShard(SQLModel, table=True):
    """A standing campaign's watermark: these vectors were scored under this issue version, filter and strategy."""

    __table_args__ = (UniqueConstraint("campaign_id", "embedded_shard_id", "watermark_key"),)

    id: int | None = Field(default=None, primary_key=True)
    campaign_id: int = Field(foreign_key="campaign.id", index=True)
    embedded_shard_id: int = Field(foreign_key="embeddedshard.id")
    watermark_key: str = Field(max_length=64)
    run_id: int = Field(foreign_key="campaignrun.id", index=True)
