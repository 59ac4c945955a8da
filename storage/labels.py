"""Queries about label projects, batches, requests and labels. Session first; the caller commits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, insert, update
from sqlalchemy.sql.selectable import Select
from sqlmodel import Session, col, func, select

from models.campaign import Campaign, CampaignRun, Candidate
from models.corpus import Corpus, Sample
from models.errors import NotFound
from models.labeling import Label, LabelBatch, LabelProject, LabelRequest
from models.states import BatchState, CampaignState, CandidateState, RequestState
from models.values import Settled, Waiting

UNUSABLE = (BatchState.QUARANTINED, BatchState.REJECTED)


def find_project(db: Session, *, campaign_id: int, labeler: str) -> LabelProject | None:
    """A campaign's project at a labeller."""
    query = select(LabelProject).where(LabelProject.campaign_id == campaign_id, LabelProject.labeler == labeler)
    return db.exec(query).first()


def get_project(db: Session, *, project_id: int) -> LabelProject:
    """The project of that id (ours). Raises NotFound."""
    project = db.get(LabelProject, project_id)
    if project is None:
        raise NotFound(f"there is no label project {project_id}; see: dipnet labels list")
    return project


def open_projects(db: Session) -> Sequence[LabelProject]:
    """Projects with a batch that waits for answers."""
    waiting = select(LabelBatch.project_id).where(LabelBatch.state == BatchState.OPEN)
    query = select(LabelProject).where(col(LabelProject.id).in_(waiting), LabelProject.external_id != "")
    return db.exec(query.order_by(col(LabelProject.id))).all()


def projects_to_poll(db: Session, *, campaigns: Sequence[str]) -> Sequence[LabelProject]:
    """Projects of these campaigns or, of all, those that somebody may still answer in or correct."""
    query = select(LabelProject).join(Campaign).where(LabelProject.external_id != "").order_by(col(LabelProject.id))
    if campaigns:
        return db.exec(query.where(col(Campaign.name).in_(campaigns))).all()
    waiting = select(LabelBatch.project_id).where(LabelBatch.state == BatchState.OPEN)
    return db.exec(query.where((col(Campaign.state) == CampaignState.ACTIVE) | col(LabelProject.id).in_(waiting))).all()


def get_batch(db: Session, *, batch_id: int) -> LabelBatch:
    """A batch by id. Raises NotFound."""
    batch = db.get(LabelBatch, batch_id)
    if batch is None:
        raise NotFound(f"there is no label batch {batch_id}; see: dipnet labels list")
    return batch


def find_batch(db: Session, *, run_id: int) -> LabelBatch | None:
    """The batch of a run."""
    return db.exec(select(LabelBatch).where(LabelBatch.run_id == run_id)).first()


def batches_of(db: Session, *, campaigns: Sequence[str] = (), project_id: int | None = None) -> Sequence[LabelBatch]:
    """Every batch of these campaigns, or of one project, or all there are; oldest first."""
    query = select(LabelBatch).join(CampaignRun, col(CampaignRun.id) == LabelBatch.run_id).join(Campaign)
    if campaigns:
        query = query.where(col(Campaign.name).in_(campaigns))
    if project_id is not None:
        query = query.where(LabelBatch.project_id == project_id)
    return db.exec(query.order_by(col(LabelBatch.id))).all()


def requests_of(db: Session, *, batch_id: int) -> Sequence[LabelRequest]:
    """A batch's requests in their order, golden items among them."""
    return db.exec(
        select(LabelRequest).where(LabelRequest.batch_id == batch_id).order_by(col(LabelRequest.position))
    ).all()


def candidates_of(db: Session, *, requests: Sequence[LabelRequest]) -> dict[int, Candidate]:
    """Candidates of requests, by their ids."""
    ids = [request.candidate_id for request in requests if request.candidate_id is not None]
    found: dict[int, Candidate] = {}
    for some in _pieces(ids):
        found |= {one.id or 0: one for one in db.exec(select(Candidate).where(col(Candidate.id).in_(some))).all()}
    return found


def requests_by_key(db: Session, *, project_id: int, keys: Sequence[str]) -> dict[str, LabelRequest]:
    """Those of the keys that are requests of a project."""
    query = select(LabelRequest).join(LabelBatch).where(LabelBatch.project_id == project_id)
    found: dict[str, LabelRequest] = {}
    for some in _pieces(list(keys)):
        found |= {one.key: one for one in db.exec(query.where(col(LabelRequest.key).in_(some))).all()}
    return found


class Draft(NamedTuple):
    """What is sent of a request, as plain columns."""

    key: str
    sample_id: str
    uri: str
    priority: int
    predicted_class: str
    predicted_probability: float


def drafts_of(db: Session, *, run_id: int, pending: bool) -> list[Draft]:
    """A run's requests in their order, or those alone that were sent and wait."""
    asked = LabelRequest
    query = (
        select(
            asked.key, asked.sample_id, Sample.uri, asked.position, asked.predicted_class, asked.predicted_probability
        )  # type: ignore[call-overload]
        .join(Sample, col(Sample.id) == asked.sample_id)
        .join(LabelBatch, col(LabelBatch.id) == asked.batch_id)
        .where(LabelBatch.run_id == run_id)
        .order_by(col(asked.position))
    )
    if pending:
        query = query.where(asked.state == RequestState.PENDING, asked.external_id != "")
    return [Draft(*row) for row in db.exec(query).all()]


def add_requests(db: Session, *, rows: Sequence[dict[str, Any]]) -> None:
    """Add requests, all columns of each but the id."""
    db.connection().execute(insert(LabelRequest), list(rows))


def drop_requests(db: Session, *, keys: Sequence[str]) -> None:
    """Forget requests that were never sent."""
    for some in _pieces(list(keys)):
        db.connection().execute(delete(LabelRequest).where(col(LabelRequest.key).in_(some)))


def keys_of(db: Session, *, batch_id: int) -> dict[str, int | None]:
    """Candidates of a batch's requests by key; None for golden items."""
    query = select(LabelRequest.key, LabelRequest.candidate_id).where(LabelRequest.batch_id == batch_id)
    return dict(db.exec(query).all())


def note_sent(db: Session, *, batch_id: int, external: Mapping[str, str]) -> None:
    """Write down what the labeller calls a batch's requests; their candidates are sent."""
    this_one = (col(LabelRequest.batch_id) == batch_id) & (col(LabelRequest.key) == bindparam("of"))
    statement = update(LabelRequest).where(this_one).values(external_id=bindparam("called"))
    db.connection().execute(statement, [{"of": key, "called": name} for key, name in external.items()])
    asked = select(LabelRequest.candidate_id).where(LabelRequest.batch_id == batch_id)
    asked = asked.where(col(LabelRequest.candidate_id).is_not(None))
    # A discard that came after a killed send had sent it came too late: whoever answers it is heard.
    unsent = [CandidateState.UNSORTED, CandidateState.ACCEPTED, CandidateState.DISCARDED]
    moved = update(Candidate).where(col(Candidate.id).in_(asked), col(Candidate.state).in_(unsent))
    db.connection().execute(moved.values(state=CandidateState.SENT))
    db.expire_all()


def requests_by_id(db: Session, *, ids: Sequence[int]) -> list[LabelRequest]:
    """Requests by their ids."""
    found: list[LabelRequest] = []
    for some in _pieces(list(ids)):
        found += db.exec(select(LabelRequest).where(col(LabelRequest.id).in_(some))).all()
    return found


def sent_requests(db: Session, *, project_id: int) -> Sequence[LabelRequest]:
    """A project's requests that were sent."""
    query = select(LabelRequest).join(LabelBatch).where(LabelBatch.project_id == project_id)
    return db.exec(query.where(LabelRequest.external_id != "").order_by(col(LabelRequest.id))).all()


def waiting(db: Session, *, project_id: int) -> dict[str, Waiting]:
    """Requests of a project's open batches that were sent and have too few answers, by key."""
    query = select(LabelRequest).join(LabelBatch).where(LabelBatch.project_id == project_id)
    query = query.where(LabelBatch.state == BatchState.OPEN, LabelRequest.external_id != "")
    found = db.exec(query.where(LabelRequest.state == RequestState.PENDING)).all()
    offered = tuple(get_project(db, project_id=project_id).class_names)
    return {one.key: Waiting(sample_id=one.sample_id, opinions=one.opinions, offered=offered) for one in found}


def unannounced(db: Session) -> Sequence[tuple[LabelBatch, Campaign]]:
    """Batches whose last state nobody was told of."""
    query = select(LabelBatch, Campaign).join(CampaignRun, col(CampaignRun.id) == LabelBatch.run_id).join(Campaign)
    return db.exec(query.where(LabelBatch.state != LabelBatch.announced).order_by(col(LabelBatch.id))).all()


def count_states(db: Session, *, batch_id: int) -> dict[RequestState, int]:
    """A batch's requests by state, without golden items."""
    query = select(LabelRequest.state, func.count()).where(LabelRequest.batch_id == batch_id)
    query = query.where(col(LabelRequest.candidate_id).is_not(None)).group_by(LabelRequest.state)
    return {RequestState(state): count for state, count in db.exec(query).all()}


def requests_with_answers(db: Session, *, project_id: int, stale: bool) -> Sequence[LabelRequest]:
    """A project's requests whose resolved label does not know all answers, or all that have any; in their order."""
    query = select(LabelRequest).join(LabelBatch).where(LabelBatch.project_id == project_id)
    if stale:
        query = query.where(col(LabelRequest.stale).is_(True))
    else:
        query = query.where(select(Label.id).where(Label.request_id == LabelRequest.id).exists())
    return db.exec(query.order_by(col(LabelRequest.batch_id), col(LabelRequest.position))).all()


def usable_batches(db: Session, *, project_id: int) -> set[int]:
    """A project's batches that are neither quarantined nor rejected."""
    query = select(LabelBatch.id).where(LabelBatch.project_id == project_id)
    return {batch_id or 0 for batch_id in db.exec(query.where(col(LabelBatch.state).not_in(UNUSABLE))).all()}


def golden_requests(db: Session, *, batch_id: int) -> Sequence[LabelRequest]:
    """A batch's golden items."""
    query = select(LabelRequest).where(LabelRequest.batch_id == batch_id, LabelRequest.expected != "")
    return db.exec(query.order_by(col(LabelRequest.position))).all()


def count_rejected(db: Session, *, batch_id: int) -> int:
    """Answers to a batch that are not in its schema."""
    newest = _newest().join(LabelRequest).where(col(LabelRequest.batch_id) == batch_id)
    query = select(func.count()).select_from(Label).where(col(Label.id).in_(newest), Label.rejected != "")
    return db.exec(query).one()


def count_requests(db: Session, *, batch_id: int) -> tuple[int, int]:
    """How many requests a batch has: about candidates, and golden ones."""
    query = select(func.count(), func.count(col(LabelRequest.candidate_id))).where(LabelRequest.batch_id == batch_id)
    total, asked = db.exec(query).one()
    return asked, total - asked


def settled(db: Session, *, project_id: int, since: datetime, until: datetime) -> Settled:
    """What is stored of the items that changed within a time."""
    within = select(LabelRequest.id).join(LabelBatch).where(LabelBatch.project_id == project_id)
    within = within.where(col(LabelRequest.changed_at) >= since, col(LabelRequest.changed_at) <= until)
    live = select(Label).where(col(Label.id).in_(_newest().where(col(Label.request_id).in_(within)))).subquery()
    counts = [
        db.exec(select(func.count(func.distinct(live.c.request_id))).where(live.c.state.in_(states))).one()
        for states in ((RequestState.LABELLED, RequestState.EMPTY), (RequestState.SKIPPED,))
    ]
    return Settled(since=since, until=until, answered=counts[0], skipped=counts[1])


class Known(NamedTuple):
    """What is stored of a project, to be held against a census."""

    items: int
    answers: int
    skipped_items: int


def known(db: Session, *, project_id: int) -> Known:
    """Items that a project should hold, and the answers and skips to them that are stored."""
    there = select(func.count()).select_from(LabelRequest).join(LabelBatch).where(LabelBatch.project_id == project_id)
    there = there.where(LabelRequest.external_id != "", col(LabelRequest.gone).is_(False))
    newest = _newest().join(LabelRequest).join(LabelBatch).where(col(LabelBatch.project_id) == project_id)
    newest = newest.where(col(LabelRequest.gone).is_(False))
    live = select(Label).where(col(Label.id).in_(newest)).subquery()
    given = (RequestState.LABELLED, RequestState.EMPTY)
    answers = select(func.count()).select_from(live).where(live.c.state.in_(given))
    skips = select(func.count(func.distinct(live.c.item_id))).where(live.c.state == RequestState.SKIPPED)
    return Known(db.exec(there).one(), db.exec(answers).one(), db.exec(skips).one())


def rejected_labels(db: Session, *, project_id: int) -> Sequence[tuple[Label, LabelRequest]]:
    """A project's answers that are not in its schema, with what they answer."""
    query = select(Label, LabelRequest).join(LabelRequest, col(LabelRequest.id) == Label.request_id).join(LabelBatch)
    return db.exec(query.where(LabelBatch.project_id == project_id, Label.rejected != "")).all()


def answers_to(db: Session, *, request_ids: Sequence[int]) -> Sequence[Label]:
    """The newest version of every answer to these requests, oldest first; withdrawn and rejected ones included."""
    found: list[Label] = []
    for some in _pieces(list(request_ids)):
        newest = _newest().where(col(Label.request_id).in_(some))
        found += db.exec(select(Label).where(col(Label.id).in_(newest)).order_by(col(Label.id))).all()
    return found


def _newest() -> Select[tuple[int]]:
    """The last stored version of every answer to a request, whatever the clocks said."""
    query = select(func.max(Label.id)).where(col(Label.request_id).is_not(None))
    # By request too: another server begins to count anew.
    return query.group_by(Label.request_id, Label.source, Label.external_id)  # type: ignore[arg-type,return-value]


def class_names(db: Session) -> list[str]:
    """Every class that a label names so far, sorted."""
    query = select(Label.class_name).where(Label.state == RequestState.LABELLED, Label.class_name != "").distinct()
    return sorted(db.exec(query.where(Label.rejected == "")).all())


def import_labels(db: Session, *, labels: Iterable[Label]) -> int:
    """Add labels that are not there yet (by source, external id and time); return how many were new."""
    fresh = list({(label.source, label.external_id): label for label in labels}.values())
    if not fresh:
        return 0
    source = fresh[0].source
    stored = set(db.exec(select(Label.external_id).where(Label.source == source)).all())
    fresh = [label for label in fresh if label.external_id not in stored]
    db.add_all(fresh)
    db.flush()
    return len(fresh)


def labels_of_corpora(db: Session, *, corpora: Sequence[Corpus]) -> Sequence[tuple[Label, Sample]]:
    """Labels that came with these corpora, oldest first; the same bytes may carry labels of several corpora."""
    query = select(Label, Sample).join(Sample, col(Sample.id) == Label.sample_id)
    query = query.where(col(Label.source).in_([import_source(corpus) for corpus in corpora]))
    return db.exec(query.order_by(col(Label.answered_at), col(Label.id))).all()


def import_source(corpus: Corpus) -> str:
    """The source of the labels that came with a corpus."""
    return f"import:{corpus.name}"


def resolved_of_batches(db: Session, *, batches: Sequence[LabelBatch]) -> Sequence[tuple[LabelRequest, Sample]]:
    """What is known of these batches' images, oldest request first: answered ones, skipped, empty and deleted included.

    Nothing is to be learnt from golden items, from batches that are quarantined or rejected, and from open ones whose
    golden items are still to be judged; they are left out.
    """
    usable = [batch.id for batch in batches if _is_usable(batch)]
    query = select(LabelRequest, Sample).join(Sample, col(Sample.id) == LabelRequest.sample_id)
    query = query.where(col(LabelRequest.batch_id).in_(usable), col(LabelRequest.candidate_id).is_not(None))
    return db.exec(query.where(LabelRequest.state != RequestState.PENDING).order_by(col(LabelRequest.id))).all()


def asked_samples(db: Session) -> list[Sample]:
    """Every sample that a campaign ever asked about, whatever came back, in the order of the first request."""
    query = select(Sample).join(LabelRequest, col(LabelRequest.sample_id) == Sample.id)
    query = query.where(col(LabelRequest.candidate_id).is_not(None)).order_by(col(LabelRequest.id))
    return list({sample.id: sample for sample in db.exec(query).all()}.values())


def _is_usable(batch: LabelBatch) -> bool:
    judged = batch.released or not batch.policy.get("golden_corpus")
    return batch.state is BatchState.COMPLETE or (batch.state is BatchState.OPEN and judged)


def labelled_samples(db: Session) -> set[str]:
    """Samples that carry a class already, whoever gave it."""
    imported = select(Label.sample_id).where(Label.state == RequestState.LABELLED, col(Label.request_id).is_(None))
    answered = select(LabelRequest.sample_id).join(LabelBatch).where(LabelRequest.state == RequestState.LABELLED)
    answered = answered.where(LabelBatch.state != BatchState.REJECTED)
    return {*db.exec(imported.distinct()).all(), *db.exec(answered.distinct()).all()}


def _pieces(ids: list[int] | list[str]) -> Iterable[list[int] | list[str]]:
    """Ids in groups that one query may name."""
    return (ids[first : first + 500] for first in range(0, len(ids), 500))
