"""Queries about dataset versions, fits, scenarios, evaluations and comparisons. Session first; the caller commits."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session, col, select

from models.errors import NotFound
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


def find_dataset(db: Session, *, content_hash: str) -> DatasetVersion | None:
    """The dataset version with that content."""
    return db.exec(select(DatasetVersion).where(DatasetVersion.content_hash == content_hash)).first()


def find_training(db: Session, *, key: str) -> tuple[TrainingRun, ModelVersion] | None:
    """The finished fit with that key of inputs, and its model."""
    return db.exec(select(TrainingRun, ModelVersion).join(ModelVersion).where(TrainingRun.key == key)).first()


def find_model(db: Session, *, name: str) -> ModelVersion | None:
    """The model version that a reference names: NAME is the newest of its name, NAME@2 the second."""
    base, _, version = name.partition("@")
    query = select(ModelVersion).where(ModelVersion.name == base).order_by(col(ModelVersion.version).desc())
    if version:
        query = query.where(ModelVersion.version == (int(version) if version.isdecimal() else 0))
    return db.exec(query).first()


def get_model(db: Session, *, name: str) -> ModelVersion:
    """The model version that a reference names. Raises NotFound."""
    model = find_model(db, name=name)
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
        query = query.where(Scenario.version == (int(version) if version.isdecimal() else 0))
    return db.exec(query).first()


def get_scenario(db: Session, *, name: str) -> Scenario:
    """The scenario of that name. Raises NotFound."""
    scenario = find_scenario(db, name=name)
    if scenario is None:
        known = ", ".join(db.exec(select(Scenario.name).order_by(Scenario.name)).all()) or "none yet"
        raise NotFound(
            f"there is no scenario '{name}' (known: {known}); freeze one with: dipnet evaluate MODEL --corpus CORPUS"
        )
    return scenario


def list_scenarios(db: Session) -> Sequence[Scenario]:
    """Every version of every scenario, oldest first."""
    return db.exec(select(Scenario).order_by(col(Scenario.id))).all()


def find_inference(db: Session, *, model_id: int, scenario_id: int) -> InferenceSet | None:
    """A model's predictions on a scenario."""
    query = select(InferenceSet).where(InferenceSet.model_id == model_id, InferenceSet.scenario_id == scenario_id)
    return db.exec(query).first()


def find_evaluation(db: Session, *, inference_id: int) -> Evaluation | None:
    """The metrics of an inference set."""
    return db.exec(select(Evaluation).where(Evaluation.inference_id == inference_id)).first()


def find_comparison(db: Session, *, before_id: int, after_id: int, scenario_id: int) -> Comparison | None:
    """The comparison of two models on a scenario."""
    query = select(Comparison).where(
        Comparison.before_id == before_id, Comparison.after_id == after_id, Comparison.scenario_id == scenario_id
    )
    return db.exec(query).first()


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
    query = select(ModelVersion).join(Promotion).where(col(Promotion.undone_at).is_(None))
    return db.exec(query.order_by(col(Promotion.id).desc())).first()
