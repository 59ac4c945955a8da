"""What is sent to be labelled, and what came back."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.base import UtcDateTime, created_at, enum_type
from models.states import BatchState, RequestState


class LabelProject(SQLModel, table=True):
    """Where a campaign's requests are answered: one project of one labeller, for all batches of the campaign."""

    __table_args__ = (UniqueConstraint("campaign_id", "labeler"),)

    id: int | None = Field(default=None, primary_key=True)
    campaign_id: int = Field(foreign_key="campaign.id", index=True)
    labeler: str = Field(max_length=40, description="oracle or label-studio")
    external_id: str = Field(default="", max_length=100, description="the labeller's own id; empty until it is open")
    class_names: list[str] = Field(default_factory=list, sa_type=JSON, description="the answers that are offered")
    multiple: bool = Field(default=False, description="whether an answer may name several classes")
    opinions: int = Field(default=1, description="annotators whose answers an item needs")
    watermark: datetime | None = Field(
        default=None, sa_type=UtcDateTime, description="changes up to here are stored, by the labeller's own clock"
    )
    swept_at: datetime | None = Field(default=None, sa_type=UtcDateTime, description="when all was last looked at")
    census: dict[str, int] = Field(
        default_factory=dict, sa_type=JSON, description="what it held when it was last polled: ours, foreign, doubled"
    )
    media_until: datetime | None = Field(
        default=None, sa_type=UtcDateTime, description="when its links to images expire; none: they do not"
    )
    created_at: datetime = created_at()


class LabelBatch(SQLModel, table=True):
    """What one run sends to a labeller. One of which nothing was asked has no project."""

    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(foreign_key="campaignrun.id", unique=True)
    project_id: int | None = Field(default=None, foreign_key="labelproject.id", index=True)
    labeler: str = Field(max_length=40, description="oracle or label-studio")
    policy: dict[str, Any] = Field(default_factory=dict, sa_type=JSON, description="the LabelPolicy it was made under")
    state: BatchState = Field(default=BatchState.OPEN, sa_type=enum_type(BatchState))
    reason: str = Field(default="", description="why it is quarantined, released or rejected")
    released: bool = Field(default=False, description="whether an engineer let it pass, whatever its golden items say")
    announced: BatchState = Field(
        default=BatchState.OPEN, sa_type=enum_type(BatchState), description="the last state that an event told of"
    )
    created_at: datetime = created_at()


class LabelRequest(SQLModel, table=True):
    """One item of a batch, and what its answers amount to. `key` travels with it and finds it again.

    A golden item has no candidate and a known answer, `expected`: it measures annotators and is never learnt from.
    """

    id: int | None = Field(default=None, primary_key=True)
    batch_id: int = Field(foreign_key="labelbatch.id", index=True)
    candidate_id: int | None = Field(default=None, foreign_key="candidate.id", unique=True)
    sample_id: str = Field(foreign_key="sample.id", max_length=64, index=True)
    key: str = Field(unique=True, max_length=64)
    position: int = Field(default=0, description="place in the order in which annotators see the batch")
    expected: str = Field(default="", max_length=200, description="a golden item's known class")
    predicted_class: str = Field(default="", max_length=200, description="the pre-annotation that goes along")
    predicted_probability: float = 0.0
    external_id: str = Field(default="", max_length=100, description="the labeller's id; empty until it was sent")
    opinions: int = Field(default=1, description="answers that it needs; a disagreement asks for another one")
    state: RequestState = Field(default=RequestState.PENDING, sa_type=enum_type(RequestState))
    class_name: str = Field(default="", max_length=200, description="the resolved label, where it is one class")
    class_names: list[str] = Field(default_factory=list, sa_type=JSON, description="the resolved label, all of it")
    confidence: float = Field(default=0.0, description="share of the answers, or posterior, that stand behind it")
    changed_at: datetime | None = Field(
        default=None, sa_type=UtcDateTime, description="when the labeller said that it changed, as last seen"
    )
    gone: bool = Field(default=False, description="whether a person deleted it at the labeller")

    stale: bool = Field(default=False, description="whether answers were stored that the resolved label does not know")

    def names(self, class_name: str) -> bool:
        """Whether the resolved label names a class."""
        return class_name in (self.class_name, *self.class_names)


class Label(SQLModel, table=True):
    """One version of one answer, append-only. A correction is a new row of the same external id; so is a withdrawal.

    Of a request, the resolved label is derived from the newest versions (tasks.resolving) and stands in the request.
    """

    __table_args__ = (UniqueConstraint("source", "external_id", "sample_id", "version"),)

    id: int | None = Field(default=None, primary_key=True)
    sample_id: str = Field(foreign_key="sample.id", max_length=64, index=True)
    request_id: int | None = Field(default=None, foreign_key="labelrequest.id", index=True)
    state: RequestState = Field(sa_type=enum_type(RequestState), description="deleted: the answer was withdrawn")
    class_name: str = Field(default="", max_length=200, description="the class, where it is one")
    class_names: list[str] = Field(default_factory=list, sa_type=JSON, description="every class of a multiple choice")
    rejected: str = Field(default="", description="why it does not count: it is not in the schema")
    source: str = Field(max_length=100, description="import:CORPUS, oracle or label-studio")
    external_id: str = Field(max_length=200, description="the source's id of the answer")
    version: int = Field(default=0, description="0, 1, …: corrections and withdrawals of the same answer")
    item_id: str = Field(default="", max_length=100, description="the source's id of what was answered")
    annotator: str = Field(default="", max_length=200)
    origin: str = Field(default="", max_length=40, description="made by hand, or from the pre-annotation")
    lead_seconds: float = 0.0
    answered_at: datetime = Field(sa_type=UtcDateTime)
