"""Queries about dataset versions, fits, scenarios, evaluations and comparisons. Session first; the caller commits."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlmodel import Session, col, select

from models.campaign import Campaign, CampaignRun, Issue
from models.errors import NotFound
from models.labeling import LabelBatch
from models.learning import (
    Comparison,
    DatasetVersion,
    Evaluation,
    Gate,
    InferenceSet,
    MetricDelta,
    ModelVersion,
    Promotion,
    Scenario,
    TrainingRun,
)

CHAMPION = "champion"  # names whichever model that is
DIGITS = 9  # of a version's number, which databases hold in 32 bits


def find_dataset(db: Session, *, content_hash: str) -> DatasetVersion | None:
    """The dataset version with that content."""
    return db.exec(select(DatasetVersion).where(DatasetVersion.content_hash == content_hash)).first()


def list_datasets(db: Session) -> Sequence[DatasetVersion]:
    """Every dataset version, oldest first."""
    return db.exec(select(DatasetVersion).order_by(col(DatasetVersion.id))).all()


def newest_dataset(db: Session, *, corpora: Sequence[str], batches: Collection[int]) -> DatasetVersion | None:
    """The newest dataset version of the same train corpora that adds none but these batches."""
    query = select(DatasetVersion).order_by(col(DatasetVersion.id).desc())
    known = (one for one in db.exec(query) if one.corpora == list(corpora) and set(one.adds_batches) <= set(batches))
    return next(known, None)


def get_dataset(db: Session, *, dataset_id: int) -> DatasetVersion:
    """The dataset version of that id. Raises NotFound."""
    found = db.get(DatasetVersion, dataset_id)
    if found is None:
        raise NotFound(f"there is no dataset version {dataset_id}; see: dipnet dataset list")
    return found


def find_training(db: Session, *, key: str) -> tuple[TrainingRun, ModelVersion] | None:
    """The finished fit with that key of inputs, and its model."""
    return db.exec(select(TrainingRun, ModelVersion).join(ModelVersion).where(TrainingRun.key == key)).first()


def find_model(db: Session, *, name: str) -> ModelVersion | None:
    """The model version that a reference names: NAME is the newest of its name, NAME@2 the second, or the champion."""
    if name == CHAMPION:
        return champion(db)
    base, _, version = name.partition("@")
    query = select(ModelVersion).where(ModelVersion.name == base).order_by(col(ModelVersion.version).desc())
    if version:
        query = query.where(ModelVersion.version == _number(version))
    return db.exec(query).first()


def get_model(db: Session, *, name: str) -> ModelVersion:
    """The model version that a reference names. Raises NotFound."""
    model = find_model(db, name=name)
    if model is None and name == CHAMPION:
        raise NotFound("no model is champion yet; promote one with: dipnet model promote MODEL")
    if model is None:
        known = ", ".join(sorted(one.reference for one in list_models(db))) or "none yet"
        raise NotFound(f"there is no model '{name}' (known: {known}); fit one with: dipnet train {name.split('@')[0]}")
    return model


def list_models(db: Session) -> Sequence[ModelVersion]:
    """Every model version, oldest first."""
    return db.exec(select(ModelVersion).order_by(col(ModelVersion.id))).all()


def next_version(db: Session, *, name: str) -> int:
    """The number of the next version of a model's name."""
    model = find_model(db, name=name)
    return model.version + 1 if model else 1


def training_of(db: Session, *, model: ModelVersion) -> TrainingRun:
    """The fit that made a model."""
    return db.exec(select(TrainingRun).where(TrainingRun.id == model.training_run_id)).one()


def find_scenario(db: Session, *, name: str) -> Scenario | None:
    """The scenario that a reference names: NAME is the newest version, NAME@2 the second."""
    base, _, version = name.partition("@")
    query = select(Scenario).where(Scenario.name == base).order_by(col(Scenario.version).desc())
    if version:
        query = query.where(Scenario.version == _number(version))
    return db.exec(query).first()


def get_scenario(db: Session, *, name: str) -> Scenario:
    """The scenario of that name. Raises NotFound."""
    scenario = find_scenario(db, name=name)
    if scenario is None:
        known = ", ".join(db.exec(select(Scenario.name).order_by(Scenario.name)).all()) or "none yet"
        raise NotFound(
            f"there is no scenario '{name}' (known: {known}); freeze one with: dipnet scenario new NAME --corpus CORPUS"
        )
    return scenario


def list_scenarios(db: Session) -> Sequence[Scenario]:
    """Every version of every scenario, oldest first."""
    return db.exec(select(Scenario).order_by(col(Scenario.id))).all()


def newest_scenarios(db: Session) -> list[Scenario]:
    """The newest version of every scenario, by name."""
    newest = {one.name: one for one in list_scenarios(db)}
    return [newest[name] for name in sorted(newest)]


def find_inference(db: Session, *, model_id: int, scenario_id: int) -> InferenceSet | None:
    """A model's predictions on a scenario."""
    query = select(InferenceSet).where(InferenceSet.model_id == model_id, InferenceSet.scenario_id == scenario_id)
    return db.exec(query).first()


def find_evaluation(db: Session, *, inference_id: int) -> Evaluation | None:
    """The metrics of an inference set."""
    return db.exec(select(Evaluation).where(Evaluation.inference_id == inference_id)).first()


def evaluation_on(db: Session, *, model_id: int, scenario_id: int) -> Evaluation | None:
    """The metrics of a model on a scenario."""
    query = select(Evaluation).join(InferenceSet, col(InferenceSet.id) == Evaluation.inference_id)
    return db.exec(query.where(InferenceSet.model_id == model_id, InferenceSet.scenario_id == scenario_id)).first()


def find_comparison(
    db: Session, *, before_id: int, after_id: int, scenario_id: int, drawn: tuple[int, int] | None = None
) -> Comparison | None:
    """The comparison of two models on a scenario, drawn with that many resamples under that seed; or the newest."""
    query = select(Comparison).where(
        Comparison.before_id == before_id, Comparison.after_id == after_id, Comparison.scenario_id == scenario_id
    )
    if drawn is not None:
        query = query.where(Comparison.resamples == drawn[0], Comparison.seed == drawn[1])
    return db.exec(query.order_by(col(Comparison.id).desc())).first()


def deltas_of(db: Session, *, comparison_id: int) -> Sequence[MetricDelta]:
    """A comparison's deltas in the order in which they were computed."""
    query = select(MetricDelta).where(MetricDelta.comparison_id == comparison_id).order_by(col(MetricDelta.id))
    return db.exec(query).all()


def find_gate(db: Session, *, key: str) -> Gate | None:
    """The verdict with that key of inputs."""
    return db.exec(select(Gate).where(Gate.key == key)).first()


def newest_gate(db: Session, *, issue_id: int | None, after_id: int) -> Gate | None:
    """The last verdict on a model about an issue, or about all."""
    query = select(Gate).where(Gate.issue_id == issue_id, Gate.after_id == after_id)
    return db.exec(query.order_by(col(Gate.id).desc())).first()


def champion(db: Session) -> ModelVersion | None:
    """The model of the newest promotion that was not undone."""
    return next((model for _, model in standing_promotions(db)), None)


def promotions(db: Session) -> Sequence[tuple[Promotion, ModelVersion]]:
    """Every promotion with its model, the newest first; those that were undone too."""
    query = select(Promotion, ModelVersion).join(ModelVersion, col(ModelVersion.id) == Promotion.model_id)
    return db.exec(query.order_by(col(Promotion.id).desc())).all()


def standing_promotions(db: Session) -> Sequence[tuple[Promotion, ModelVersion]]:
    """Promotions that were not undone, the newest first: the champion's, that of the one before, …"""
    return [pair for pair in promotions(db) if pair[0].undone_at is None]


def opponent_of(db: Session, *, model_id: int) -> ModelVersion | None:
    """What a model is compared with where nobody says otherwise: the champion, or the one before where it is champion.

    So that what is run again is compared with the same model as before it was promoted.
    """
    others = (model for _, model in standing_promotions(db) if model.id != model_id)
    return next(others, None)


def evaluations_of(db: Session, *, model_id: int) -> Sequence[tuple[Evaluation, Scenario]]:
    """A model's evaluations with their scenarios, oldest first."""
    query = select(Evaluation, Scenario).join(InferenceSet, col(InferenceSet.id) == Evaluation.inference_id)
    query = query.join(Scenario, col(Scenario.id) == InferenceSet.scenario_id)
    return db.exec(query.where(InferenceSet.model_id == model_id).order_by(col(Evaluation.id))).all()


def scenario_names(db: Session) -> list[str]:
    """The name of every scenario, whatever its versions."""
    return list(db.exec(select(Scenario.name).distinct().order_by(Scenario.name)).all())


def lineage(db: Session, *, dataset_id: int) -> list[DatasetVersion]:
    """A dataset version, its parent, and so on to the first."""
    found: list[DatasetVersion] = []
    number: int | None = dataset_id
    while number is not None and number not in {dataset.id for dataset in found}:
        found.append(db.get_one(DatasetVersion, number))
        number = found[-1].parent_id
    return found


def batches_behind(db: Session, *, dataset_id: int | None) -> set[int]:
    """Label batches whose answers are in a dataset version; none for a model that was made elsewhere."""
    versions = lineage(db, dataset_id=dataset_id) if dataset_id is not None else []
    return {batch_id for version in versions for batch_id in version.adds_batches}


def issues_of_batches(db: Session, *, batch_ids: Collection[int]) -> Sequence[Issue]:
    """Issues whose campaigns sent some batches, by name."""
    query = select(Issue).join(Campaign).join(CampaignRun).join(LabelBatch)
    return db.exec(query.where(col(LabelBatch.id).in_(batch_ids)).distinct().order_by(Issue.name)).all()


def _number(version: str) -> int:
    """The number of a version as it is written; 0, which no version has, for anything else."""
    return int(version) if version.isdecimal() and len(version) <= DIGITS else 0
