"""Queries about issues, exemplars, campaigns, runs and candidates. Session first; the caller commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement
from sqlmodel import Session, col, func, select

from models.campaign import Campaign, CampaignRun, Candidate, Exemplar, Issue, ScoredShard
from models.corpus import Sample
from models.errors import BadInput, NotFound
from models.labeling import LabelBatch, LabelRequest
from models.states import BatchState, CampaignState, CandidateState, IssueState, RunState, may_move, move

WENT_OUT = (RunState.SENT, RunState.LABELLED)
SENT = (CandidateState.SENT, CandidateState.LABELLED, CandidateState.SKIPPED)


def find_issue(db: Session, *, name: str) -> Issue | None:
    """The issue of that name, if there is one."""
    return db.exec(select(Issue).where(Issue.name == name)).first()


def get_issue(db: Session, *, name: str) -> Issue:
    """The issue of that name. Raises NotFound."""
    issue = find_issue(db, name=name)
    if issue is None:
        known = ", ".join(i.name for i in list_issues(db)) or "none yet"
        raise NotFound(
            f"there is no issue '{name}' (known: {known}); open it with: dipnet issue new {name} --class CLASS"
        )
    return issue


def list_issues(db: Session) -> Sequence[Issue]:
    """Every issue, by name."""
    return db.exec(select(Issue).order_by(Issue.name)).all()


def exemplars_of(db: Session, *, issue_id: int) -> Sequence[tuple[Exemplar, Sample]]:
    """An issue's exemplars with their samples, in the order in which they were added."""
    query = select(Exemplar, Sample).join(Sample).where(Exemplar.issue_id == issue_id).order_by(col(Exemplar.id))
    return db.exec(query).all()


class Added(NamedTuple):
    """What became of exemplars: new ones, ones that said the contrary until now, and ones that were there already."""

    new: int
    turned: int
    known: int


def add_exemplars(db: Session, *, issue: Issue, sample_ids: Sequence[str], positive: bool) -> Added:
    """Add exemplars that are new and turn those of the other sign; the issue's version moves when there are any."""
    known = {exemplar.sample_id: exemplar for exemplar, _ in exemplars_of(db, issue_id=issue.id or 0)}
    new = turned = same = 0
    for sample_id in dict.fromkeys(sample_ids):
        exemplar = known.get(sample_id)
        if exemplar is None:
            exemplar = Exemplar(issue_id=issue.id or 0, sample_id=sample_id, added_in_version=0)
            new += 1
        elif exemplar.positive == positive:
            same += 1
            continue
        else:
            turned += 1
        exemplar.positive, exemplar.added_in_version = positive, issue.version + 1
        db.add(exemplar)
    issue.version += bool(new or turned)
    db.add(issue)
    db.flush()
    return Added(new, turned, same)


def require_positive(issue: Issue, pairs: Sequence[tuple[Exemplar, Sample]]) -> None:
    """Raises BadInput for an issue that shows nothing."""
    if not any(exemplar.positive for exemplar, _ in pairs):
        raise BadInput(
            f"issue '{issue.name}' has no exemplars; add at least one with: dipnet issue add {issue.name} IMAGE"
        )


def find_campaign(db: Session, *, name: str) -> Campaign | None:
    """The campaign of that name, if there is one."""
    return db.exec(select(Campaign).where(Campaign.name == name)).first()


def get_campaign(db: Session, *, name: str) -> Campaign:
    """The campaign of that name. Raises NotFound."""
    campaign = find_campaign(db, name=name)
    if campaign is None:
        known = ", ".join(c.name for c in list_campaigns(db)) or "none yet"
        raise NotFound(f"there is no campaign '{name}' (known: {known}); see: dipnet campaign run --help")
    return campaign


def list_campaigns(db: Session) -> Sequence[Campaign]:
    """Every campaign, by name."""
    return db.exec(select(Campaign).order_by(Campaign.name)).all()


def find_or_new(db: Session, *, name: str, issue: Issue) -> Campaign:
    """The campaign of that name, or a new one that is in no session yet. Raises BadInput when it is about another issue."""
    campaign = find_campaign(db, name=name)
    if campaign is None:
        return Campaign(name=name, issue_id=issue.id or 0)
    if campaign.issue_id != issue.id:
        raise BadInput(f"campaign '{name}' is about another issue than '{issue.name}'; choose another campaign name")
    return campaign


def require_active(campaign: Campaign) -> None:
    """Raises BadInput for a campaign that has stopped."""
    if campaign.state is CampaignState.STOPPED:
        raise BadInput(
            f"campaign '{campaign.name}' has stopped ({campaign.stopped_because}); take it up again with: "
            f"dipnet campaign resume {campaign.name}"
        )


def find_run(db: Session, *, key: str) -> CampaignRun | None:
    """The run with that key."""
    return db.exec(select(CampaignRun).where(CampaignRun.key == key)).first()


def last_run(db: Session, *, plan_key: str) -> CampaignRun | None:
    """The newest run of a plan."""
    query = select(CampaignRun).where(CampaignRun.plan_key == plan_key)
    return db.exec(query.order_by(col(CampaignRun.series).desc(), col(CampaignRun.round).desc())).first()


def watermarked(db: Session, *, campaign_id: int, watermark_key: str) -> set[int]:
    """Embedded shards that a standing campaign has scored."""
    query = select(ScoredShard.embedded_shard_id).where(ScoredShard.campaign_id == campaign_id)
    return set(db.exec(query.where(ScoredShard.watermark_key == watermark_key)).all())


def add_watermarks(db: Session, *, run: CampaignRun) -> None:
    """Remember that a standing campaign has scored a run's shards."""
    seen = watermarked(db, campaign_id=run.campaign_id, watermark_key=run.watermark_key)
    db.add_all(
        ScoredShard(
            campaign_id=run.campaign_id,
            embedded_shard_id=shard_id,
            watermark_key=run.watermark_key,
            run_id=run.id or 0,
        )
        for shard_id in run.shards
        if shard_id not in seen
    )


def get_run(db: Session, *, run_id: int) -> CampaignRun:
    """A run by id. Raises NotFound."""
    run = db.get(CampaignRun, run_id)
    if run is None:
        raise NotFound(f"there is no campaign run {run_id}; see: dipnet campaign list")
    return run


def runs_of(db: Session, *, campaign_id: int) -> Sequence[CampaignRun]:
    """A campaign's runs, oldest first."""
    query = select(CampaignRun).where(CampaignRun.campaign_id == campaign_id).order_by(col(CampaignRun.id))
    return db.exec(query).all()


def rounds_of(db: Session, *, campaign: Campaign) -> Sequence[CampaignRun]:
    """A campaign's rounds, oldest first, without the runs beside them, for what was collected: their key is their plan's."""
    return [run for run in runs_of(db, campaign_id=campaign.id or 0) if run.key != run.plan_key]


def require_sendable(db: Session, *, run: CampaignRun) -> None:
    """Raises BadInput for a run without candidates, and for one that is not sent yet of a campaign that has stopped."""
    if run.state is RunState.EMPTY:
        raise BadInput(f"run {run.id} found nothing to choose, so there is nothing to send; see: dipnet campaign list")
    if run.state is RunState.MINED:
        require_active(db.get_one(Campaign, run.campaign_id))


def candidates_of(db: Session, *, run_id: int) -> Sequence[Candidate]:
    """A run's candidates, best first."""
    return db.exec(select(Candidate).where(Candidate.run_id == run_id).order_by(col(Candidate.rank))).all()


class Choice(NamedTuple):
    """What sending needs of a candidate: plain columns, since ten thousand objects take seconds to build."""

    id: int
    sample_id: str
    state: CandidateState
    predicted_class: str
    predicted_probability: float


def choices_of(db: Session, *, run_id: int) -> list[Choice]:
    """A run's candidates as plain columns, best first."""
    columns = [getattr(Candidate, name) for name in Choice._fields]
    query = select(*columns).where(Candidate.run_id == run_id).order_by(col(Candidate.rank))
    return [Choice(*row) for row in db.exec(query).all()]


def all_candidates(db: Session, *, campaign_id: int) -> Sequence[Candidate]:
    """Every candidate of a campaign, run by run, best first."""
    query = select(Candidate).join(CampaignRun).where(CampaignRun.campaign_id == campaign_id)
    return db.exec(query.order_by(col(Candidate.run_id), col(Candidate.rank))).all()


def count_states(db: Session, *, run_id: int) -> dict[CandidateState, int]:
    """A run's candidates by state."""
    query = select(Candidate.state, func.count()).where(Candidate.run_id == run_id).group_by(Candidate.state)
    return {CandidateState(state): count for state, count in db.exec(query).all()}


def count_kept(db: Session, *, run_ids: Sequence[int]) -> int:
    """Candidates of some runs that were sent, or will be: nobody discarded them, or left them out when others were sent."""
    query = select(func.count()).select_from(Candidate).join(CampaignRun).where(col(Candidate.run_id).in_(run_ids))
    left_out = (col(Candidate.state) == CandidateState.UNSORTED) & col(CampaignRun.state).in_(WENT_OUT)
    return db.exec(query.where(Candidate.state != CandidateState.DISCARDED, ~left_out)).one()


def decided_samples(db: Session, *, campaign_id: int, but_run: int) -> set[str]:
    """Samples that other runs of the campaign have proposed: they never return."""
    query = select(Candidate.sample_id).join(CampaignRun)
    return set(db.exec(query.where(CampaignRun.campaign_id == campaign_id, CampaignRun.id != but_run)).all())


def sent_elsewhere(db: Session, *, campaign_id: int) -> set[str]:
    """Samples that other campaigns sent; those of rejected batches may be asked again."""
    query = select(Candidate.sample_id).join(CampaignRun).join(LabelBatch, isouter=True)
    query = query.where(CampaignRun.campaign_id != campaign_id, _not_rejected())
    return set(db.exec(query.where(col(Candidate.state).in_(SENT)).distinct()).all())


def _not_rejected() -> ColumnElement[bool]:
    return col(LabelBatch.id).is_(None) | (col(LabelBatch.state) != BatchState.REJECTED)


def claimed_elsewhere(db: Session, *, campaign_id: int) -> set[str]:
    """Samples that other campaigns sent, will send as soon as the labeller answers, or had accepted by a person."""
    query = select(Candidate.sample_id).join(CampaignRun).join(LabelBatch, isouter=True)
    query = query.join(LabelRequest, col(LabelRequest.candidate_id) == Candidate.id, isouter=True)
    query = query.where(
        CampaignRun.campaign_id != campaign_id, _not_rejected(), Candidate.state != CandidateState.DISCARDED
    )
    claimed = col(Candidate.state).in_([CandidateState.ACCEPTED, *SENT]) | col(LabelRequest.id).is_not(None)
    return set(db.exec(query.where(claimed).distinct()).all())


def shown_samples(db: Session, *, campaign_id: int) -> set[str]:
    """What a campaign's annotators may have seen: its issue's exemplars, its candidates, its golden items."""
    issue_id = select(Campaign.issue_id).where(Campaign.id == campaign_id).scalar_subquery()
    exemplars = select(Exemplar.sample_id).where(Exemplar.issue_id == issue_id)
    candidates = select(Candidate.sample_id).join(CampaignRun).where(CampaignRun.campaign_id == campaign_id)
    asked = select(LabelRequest.sample_id).join(LabelBatch).join(CampaignRun)
    asked = asked.where(CampaignRun.campaign_id == campaign_id)
    return {name for query in (exemplars, candidates, asked) for name in db.exec(query).all()}


def advance_issue(db: Session, *, issue: Issue, target: IssueState) -> None:
    """Move an issue on where its state allows it; an issue that is elsewhere stays there."""
    if may_move(issue.state, target):
        issue.state = move(issue.state, target)
    db.add(issue)
    db.flush()
