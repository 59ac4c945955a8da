"""`dipnet train`, `evaluate`, `compare`: a classifier, how good it is, and whether another one is better."""

from __future__ import annotations

from typing import Annotated

import typer

from flows import console
from models.retraining import RetrainPlan

learning_app = typer.Typer()

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Encoder = Annotated[
    str, typer.Option(help="MODEL/PRETRAINED of open_clip or a checkpoint's folder; default: DIPNET_ENCODER.")
]


@learning_app.command()
def train(
    model: Annotated[str, typer.Argument(help="Name of the new model version.")],
    corpora: Annotated[list[str], typer.Argument(help="Corpora with split train.")],
    campaign: Annotated[list[str] | None, typer.Option(help="A campaign whose labels are added; repeat.")] = None,
    compare_with: Annotated[str, typer.Option(help="Model version to compare with.")] = "",
    issue: Annotated[str, typer.Option(help="Issue that the gate is about.")] = "",
    encoder: Encoder = "",
    seed: Annotated[int, typer.Option(help="Seed of the fit and of the bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Freeze a dataset version, fit a classifier, evaluate it and, where asked, compare and judge it."""
    from flows.control_plane import call
    from flows.training import retrain_and_evaluate

    plan = RetrainPlan(
        model=model, corpora=corpora, campaigns=campaign or [], compare_with=compare_with, issue=issue, encoder=encoder,
        seed=seed,
    )  # fmt: skip
    found = call(retrain_and_evaluate)(plan)
    gate = {"gate": found.gate.verdict.value, "reasons": found.gate.reasons} if found.gate else {}
    console.show({**found.fitted.model_dump(), "scenarios": list(found.evaluations), **gate}, as_json=as_json)


@learning_app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model version.")],
    scenario: Annotated[str, typer.Option(help="A scenario, or the name to freeze a new one under.")],
    corpus: Annotated[list[str] | None, typer.Option(help="Evaluation corpus of a new scenario; repeat.")] = None,
    where: Annotated[str, typer.Option(help="SQL over metadata columns that a new scenario's images meet.")] = "",
    as_json: Json = False,
) -> None:
    """Precision, recall and F1 of a model on a scenario, by class and over all."""
    from tasks import evaluating, scenarios, views

    if corpus:
        scenarios.freeze_scenario(scenario, corpus, where)
    evaluating.evaluate(model, scenario)
    found = views.evaluation_record(model, scenario)
    console.show(found if as_json else found["classes"], as_json=as_json, title=f"{model} on {scenario}")


@learning_app.command()
def compare(
    before: Annotated[str, typer.Argument(help="A model version.")],
    after: Annotated[str, typer.Argument(help="Another one.")],
    scenario: Annotated[str, typer.Option(help="A scenario.")],
    resamples: Annotated[int, typer.Option(min=200, help="Bootstrap resamples.")] = 2_000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Every metric's difference between two models on the same samples, with its paired 95 % interval."""
    from tasks import evaluating, views

    for model in (before, after):
        evaluating.evaluate(model, scenario)
    found = evaluating.compare(before, after, scenario, resamples=resamples, seed=seed)
    console.show(views.delta_rows(found.comparison_id), as_json=as_json, title=f"{before} → {after} on {scenario}")
