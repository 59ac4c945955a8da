"""Queries about dataset versions, fits, scenarios, evaluations and comparisons. Session first; the caller commits."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session, col, select

from models.campaign import Issue
from models.errors import NotFound
from models.learning import (
    Comparison,
    DatasetVersion,
    Evaluation,
    Gate,
    InferenceSet,
    MetricDelta,
    ModelVersion,
    Scenario,
    TrainingRun,
)


def find_dataset(db: Session, *, content_hash: str) -> DatasetVersion | None:
    """The dataset version with that content."""
    return db.exec(select(DatasetVersion).where(DatasetVersion.content_hash == content_hash)).first()


def find_training(db: Session, *, key: str) -> tuple[TrainingRun, ModelVersion] | None:
    """The finished fit with that key of inputs, and its model."""
    return db.exec(select(TrainingRun, ModelVersion).join(ModelVersion).where(TrainingRun.key == key)).first()


def get_model(db: Session, *, name: str) -> ModelVersion:
    """The newest model version of that name. Raises NotFound."""
    query = select(ModelVersion).where(ModelVersion.name == name).order_by(col(ModelVersion.id).desc())
    model = db.exec(query).first()
    if model is None:
        known = ", ".join(sorted(set(db.exec(select(ModelVersion.name)).all()))) or "none yet"
        raise NotFound(f"there is no model '{name}' (known: {known}); fit one with: dipnet train {name} CORPUS")
    return model


def training_of(db: Session, *, model: ModelVersion) -> TrainingRun:
    """The fit that made a model."""
    return db.exec(select(TrainingRun).where(TrainingRun.id == model.training_run_id)).one()


def find_scenario(db: Session, *, name: str) -> Scenario | None:
    """The scenario of that name, if there is one."""
    return db.exec(select(Scenario).where(Scenario.name == name)).first()


def get_scenario(db: Session, *, name: str) -> Scenario:
    """The scenario of that name. Raises NotFound."""
    scenario = find_scenario(db, name=name)
    if scenario is None:
        known = ", ".join(db.exec(select(Scenario.name).order_by(Scenario.name)).all()) or "none yet"
        raise NotFound(
            f"there is no scenario '{name}' (known: {known}); freeze one with: dipnet evaluate MODEL --corpus CORPUS"
        )
    return scenario


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


def find_gate(db: Session, *, issue: Issue, slice_id: int, overall_id: int) -> Gate | None:
    """The verdict on two comparisons for an issue."""
    query = select(Gate).where(
        Gate.issue_id == issue.id, Gate.slice_comparison_id == slice_id, Gate.overall_comparison_id == overall_id
    )
    return db.exec(query).first()
