"""Which images annotators may see: those of label requests, and the exemplars that a project's instructions show."""

from __future__ import annotations

from sqlmodel import Session, col, select

from models.campaign import Campaign, Exemplar
from models.corpus import Sample
from models.labeling import LabelBatch, LabelProject, LabelRequest
from models.states import BatchState


def sample_of_request(db: Session, *, key: str) -> Sample | None:
    """The sample of a label request that nobody deleted, of a batch that was not rejected."""
    query = select(Sample).join(LabelRequest).join(LabelBatch)
    query = query.where(LabelRequest.key == key, col(LabelRequest.gone).is_(False))
    return db.exec(query.where(LabelBatch.state != BatchState.REJECTED)).first()


def sample_of_example(db: Session, *, project_id: int, sample_id: str) -> Sample | None:
    """The sample, where it is an exemplar of the issue that a project's campaign is about."""
    query = select(Sample).join(Exemplar).join(Campaign, col(Campaign.issue_id) == Exemplar.issue_id)
    query = query.join(LabelProject, col(LabelProject.campaign_id) == Campaign.id)
    return db.exec(query.where(LabelProject.id == project_id, Sample.id == sample_id)).first()
