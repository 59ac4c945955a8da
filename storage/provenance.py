"""Queries that walk the chain issue – campaign – label – dataset version – model – verdict, both ways. Session first."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session, col, select

from models.campaign import Campaign, CampaignRun, Candidate, Exemplar, Issue
from models.corpus import Corpus, Sample, Shard
from models.errors import BadInput, NotFound
from models.labeling import Label, LabelBatch, LabelRequest
from models.learning import (
    Comparison,
    Gate,
    InferenceSet,
    ModelVersion,
    Scenario,
    TrainingRun,
    Uplift,
)
from models.states import RequestState
from storage.labels import import_source

LEAST_PREFIX = 6


def get_sample(db: Session, *, reference: str) -> Sample:
    """The sample of that id, or the only one whose id begins so. Raises NotFound or BadInput."""
    if len(reference) < LEAST_PREFIX or not set(reference) <= set("0123456789abcdef"):
        raise BadInput(f"'{reference}' is no sample id; give at least its first {LEAST_PREFIX} characters (0-9, a-f)")
    query = select(Sample).where(Sample.id >= reference, Sample.id <= reference + "f" * (64 - len(reference)))
    found = db.exec(query.order_by(Sample.id).limit(3)).all()
    if not found:
        raise NotFound(
            f"no sample '{reference}' was labelled, mined or shown; ids are the SHA-256 of an image's bytes: "
            "sha256sum IMAGE"
        )
    if len(found) > 1:
        raise BadInput(f"'{reference}' begins several sample ids ({', '.join(s.id[:16] for s in found)}…); give more")
    return found[0]


def place_of(db: Session, *, sample: Sample) -> tuple[Shard, Corpus] | None:
    """The shard and corpus that a sample was first seen in; none for an image that was given as a file."""
    query = select(Shard, Corpus).join(Corpus).where(Shard.id == sample.shard_id)
    return db.exec(query).first()


def shown_for(db: Session, *, sample_id: str) -> Sequence[tuple[Exemplar, Issue]]:
    """The issues that a sample is an exemplar of."""
    query = select(Exemplar, Issue).join(Issue).where(Exemplar.sample_id == sample_id)
    return db.exec(query.order_by(col(Exemplar.id))).all()


def chosen_by(db: Session, *, sample_id: str) -> Sequence[tuple[Candidate, CampaignRun, Campaign]]:
    """The campaigns' runs that a sample was a candidate of."""
    query = select(Candidate, CampaignRun, Campaign).join(CampaignRun, col(CampaignRun.id) == Candidate.run_id)
    query = query.join(Campaign).where(Candidate.sample_id == sample_id)
    return db.exec(query.order_by(col(Candidate.id))).all()


def asked_about(db: Session, *, sample_id: str) -> Sequence[tuple[LabelRequest, LabelBatch, Campaign]]:
    """The requests about a sample, golden items among them."""
    query = select(LabelRequest, LabelBatch, Campaign).join(LabelBatch, col(LabelBatch.id) == LabelRequest.batch_id)
    query = query.join(CampaignRun, col(CampaignRun.id) == LabelBatch.run_id).join(Campaign)
    return db.exec(query.where(LabelRequest.sample_id == sample_id).order_by(col(LabelRequest.id))).all()


def imported_labels(db: Session, *, sample_id: str) -> Sequence[Label]:
    """The labels that a sample came with."""
    query = select(Label).where(Label.sample_id == sample_id, col(Label.request_id).is_(None))
    return db.exec(query.order_by(col(Label.id))).all()


def requests_of_campaign(db: Session, *, campaign_id: int) -> Sequence[tuple[LabelRequest, LabelBatch]]:
    """A campaign's requests in the order in which they were sent, without golden items."""
    query = select(LabelRequest, LabelBatch).join(LabelBatch).join(CampaignRun)
    query = query.where(CampaignRun.campaign_id == campaign_id, col(LabelRequest.candidate_id).is_not(None))
    return db.exec(query.order_by(col(LabelRequest.batch_id), col(LabelRequest.position))).all()


def campaigns_of_batches(db: Session, *, batch_ids: set[int]) -> dict[int, Campaign]:
    """Whose batches these are, by batch."""
    query = select(LabelBatch.id, Campaign).join(CampaignRun, col(CampaignRun.id) == LabelBatch.run_id).join(Campaign)
    return {batch_id or 0: campaign for batch_id, campaign in db.exec(query).all() if batch_id in batch_ids}


def learnt_from(db: Session, *, dataset_ids: Sequence[int]) -> Sequence[tuple[ModelVersion, TrainingRun]]:
    """The models that were fitted on these dataset versions, oldest first."""
    query = select(ModelVersion, TrainingRun).join(TrainingRun).where(col(TrainingRun.dataset_id).in_(dataset_ids))
    return db.exec(query.order_by(col(ModelVersion.id))).all()


def comparisons_with(db: Session, *, after_id: int) -> Sequence[tuple[Comparison, ModelVersion, Scenario]]:
    """What a model was compared with, as the newer of the two."""
    query = select(Comparison, ModelVersion, Scenario).join(ModelVersion, col(ModelVersion.id) == Comparison.before_id)
    query = query.join(Scenario, col(Scenario.id) == Comparison.scenario_id).where(Comparison.after_id == after_id)
    return db.exec(query.order_by(col(Comparison.id))).all()


def gates_about(db: Session, *, after_id: int) -> Sequence[tuple[Gate, Issue | None]]:
    """The verdicts on a model, oldest first."""
    query = select(Gate, Issue).join(Issue, isouter=True).where(Gate.after_id == after_id)
    return db.exec(query.order_by(col(Gate.id))).all()


def uplifts_of(db: Session, *, campaign_ids: Sequence[int]) -> Sequence[tuple[Uplift, Campaign, Campaign, Scenario]]:
    """What these campaigns gave beyond their control arms: the uplift, campaign, control and scenario, oldest first."""
    by_id = {one.id: one for one in db.exec(select(Campaign)).all()}
    query = select(Uplift, Scenario).join(Scenario).where(col(Uplift.campaign_id).in_(campaign_ids))
    rows = db.exec(query.order_by(col(Uplift.id))).all()
    return [(found, by_id[found.campaign_id], by_id[found.control_id], scenario) for found, scenario in rows]


def find_uplift(db: Session, *, key: str) -> Uplift | None:
    """The uplift with that key of inputs."""
    return db.exec(select(Uplift).where(Uplift.key == key)).first()


def predictions_on(
    db: Session, *, scenario_ids: Sequence[int]
) -> Sequence[tuple[InferenceSet, ModelVersion, Scenario]]:
    """What models predicted on these scenarios, oldest first."""
    query = select(InferenceSet, ModelVersion, Scenario).join(ModelVersion).join(Scenario)
    return db.exec(query.where(col(InferenceSet.scenario_id).in_(scenario_ids)).order_by(col(InferenceSet.id))).all()


def classes_of(db: Session, *, corpora: Sequence[Corpus], most: int | None = None) -> dict[str, str]:
    """Classes that came with these corpora, by sample; of more than so many, those with the lowest ids, which is by chance.

    Plain columns, since a hundred thousand objects take seconds to build.
    """
    query = select(Label.sample_id, Label.class_name).where(
        col(Label.source).in_([import_source(corpus) for corpus in corpora]),
        Label.state == RequestState.LABELLED,
        Label.class_name != "",
    )
    rows = db.exec(query.order_by(Label.sample_id, col(Label.answered_at), col(Label.id)).limit(most)).all()
    return dict(rows)
