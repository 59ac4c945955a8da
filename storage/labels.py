"""Queries about label batches, requests and labels. Session first; the caller commits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlmodel import Session, col, func, select

from models.campaign import Campaign, CampaignRun, Candidate
from models.corpus import Corpus, Sample
from models.labeling import Label, LabelBatch, LabelRequest
from models.states import CandidateState, RequestState, RunState, move
from models.values import Answer


def find_batch(db: Session, *, run_id: int) -> LabelBatch | None:
    """The batch of a run."""
    return db.exec(select(LabelBatch).where(LabelBatch.run_id == run_id)).first()


def open_batches(db: Session, *, campaigns: Sequence[str]) -> Sequence[tuple[LabelBatch, Campaign]]:
    """Batches that were sent and still wait for answers, of these campaigns or of all."""
    query = select(LabelBatch, Campaign).join(CampaignRun, col(CampaignRun.id) == LabelBatch.run_id).join(Campaign)
    query = query.where(col(LabelBatch.complete).is_(False), CampaignRun.state == RunState.SENT)
    query = query.order_by(col(LabelBatch.id))
    return db.exec(query.where(col(Campaign.name).in_(campaigns)) if campaigns else query).all()


def batches_of(db: Session, *, campaigns: Sequence[str]) -> Sequence[LabelBatch]:
    """Every batch of these campaigns, oldest first."""
    query = select(LabelBatch).join(CampaignRun, col(CampaignRun.id) == LabelBatch.run_id).join(Campaign)
    return db.exec(query.where(col(Campaign.name).in_(campaigns)).order_by(col(LabelBatch.id))).all()


def requests_of(db: Session, *, batch_id: int) -> Sequence[tuple[LabelRequest, Candidate]]:
    """A batch's requests with their candidates, best first."""
    query = select(LabelRequest, Candidate).join(Candidate).where(LabelRequest.batch_id == batch_id)
    return db.exec(query.order_by(col(Candidate.rank))).all()


def count_states(db: Session, *, batch_id: int) -> dict[RequestState, int]:
    """A batch's requests by state."""
    query = select(LabelRequest.state, func.count()).where(LabelRequest.batch_id == batch_id)
    return {RequestState(state): count for state, count in db.exec(query.group_by(LabelRequest.state)).all()}


def class_names(db: Session) -> list[str]:
    """Every class that a label names so far, sorted."""
    query = select(Label.class_name).where(Label.state == RequestState.LABELLED).distinct()
    return sorted(db.exec(query).all())


def import_labels(db: Session, *, labels: Iterable[Label]) -> int:
    """Add labels that are not there yet (by source, external id and time); return how many were new."""
    fresh = list({(label.source, label.external_id): label for label in labels}.values())
    if not fresh:
        return 0
    source = fresh[0].source
    known = set(db.exec(select(Label.external_id).where(Label.source == source)).all())
    fresh = [label for label in fresh if label.external_id not in known]
    db.add_all(fresh)
    db.flush()
    return len(fresh)


def record(db: Session, *, request: LabelRequest, candidate: Candidate, answer: Answer, source: str) -> bool:
    """Store an answer unless it is stored; the newest one decides the request's state. Returns whether it was new."""
    older = select(Label).where(Label.request_id == request.id, Label.source == source)
    known = db.exec(older).all()
    if any((label.external_id, label.answered_at) == (answer.external_id, answer.answered_at) for label in known):
        return False
    db.add(
        Label(
            sample_id=candidate.sample_id,
            request_id=request.id,
            state=answer.state,
            class_name=answer.class_name,
            source=source,
            external_id=answer.external_id,
            annotator=answer.annotator,
            lead_seconds=answer.lead_seconds,
            answered_at=answer.answered_at,
        )
    )
    if all(label.answered_at <= answer.answered_at for label in known):
        request.state = move(request.state, answer.state)
        done = CandidateState.LABELLED if answer.state is RequestState.LABELLED else CandidateState.SKIPPED
        candidate.state = move(candidate.state, done)
        db.add_all([request, candidate])
    db.flush()
    return True


def labels_of_corpora(db: Session, *, corpora: Sequence[Corpus]) -> Sequence[tuple[Label, Sample]]:
    """Labels that came with these corpora, oldest first; the same bytes may carry labels of several corpora."""
    query = select(Label, Sample).join(Sample, col(Sample.id) == Label.sample_id)
    query = query.where(col(Label.source).in_([import_source(corpus) for corpus in corpora]))
    return db.exec(query.order_by(col(Label.answered_at), col(Label.id))).all()


def import_source(corpus: Corpus) -> str:
    """The source of the labels that came with a corpus."""
    return f"import:{corpus.name}"


def labels_of_batches(db: Session, *, batches: Sequence[LabelBatch]) -> Sequence[tuple[Label, Sample]]:
    """Answers to these batches, oldest first, skips and empties included."""
    query = select(Label, Sample).join(Sample, col(Sample.id) == Label.sample_id)
    query = query.join(LabelRequest, col(LabelRequest.id) == Label.request_id)
    query = query.where(col(LabelRequest.batch_id).in_([batch.id for batch in batches]))
    return db.exec(query.order_by(col(Label.answered_at), col(Label.id))).all()


def labelled_samples(db: Session) -> set[str]:
    """Samples that carry a class already, whoever gave it."""
    return set(db.exec(select(Label.sample_id).where(Label.state == RequestState.LABELLED).distinct()).all())
