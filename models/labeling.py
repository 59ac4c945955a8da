"""What is sent to be labelled, and what came back."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.base import UtcDateTime, created_at, enum_type
from models.states import RequestState


class LabelBatch(SQLModel, table=True):
    """What one run sends to a labeller."""

    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(foreign_key="campaignrun.id", unique=True)
    labeler: str = Field(max_length=40, description="oracle or label-studio")
    project: str = Field(description="the labeller's own id of the project")
    class_names: list[str] = Field(default_factory=list, sa_type=JSON, description="the answers that count")
    complete: bool = False
    watermark: datetime | None = Field(default=None, sa_type=UtcDateTime, description="answers up to here are stored")
    created_at: datetime = created_at()


class LabelRequest(SQLModel, table=True):
    """One item of a batch. `key` travels with it and finds it again, whatever the labeller calls it."""

    id: int | None = Field(default=None, primary_key=True)
    batch_id: int = Field(foreign_key="labelbatch.id", index=True)
    candidate_id: int = Field(foreign_key="candidate.id", unique=True)
    key: str = Field(unique=True, max_length=64)
    external_id: str = Field(default="", max_length=100, description="the labeller's id; empty until it was sent")
    state: RequestState = Field(default=RequestState.PENDING, sa_type=enum_type(RequestState))


class Label(SQLModel, table=True):
    """One answer, append-only. A correction is a new row; the newest per sample and source is the resolved label."""

    __table_args__ = (UniqueConstraint("source", "external_id", "answered_at"),)

    id: int | None = Field(default=None, primary_key=True)
    sample_id: str = Field(foreign_key="sample.id", max_length=64, index=True)
    request_id: int | None = Field(default=None, foreign_key="labelrequest.id", index=True)
    state: RequestState = Field(sa_type=enum_type(RequestState))
    class_name: str = Field(default="", max_length=200)
    source: str = Field(max_length=100, description="import, oracle or label-studio")
    external_id: str = Field(max_length=200, description="the source's id of the answer")
    annotator: str = Field(default="", max_length=200)
    lead_seconds: float = 0.0
    answered_at: datetime = Field(sa_type=UtcDateTime)
