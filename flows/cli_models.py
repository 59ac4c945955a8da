"""`dipnet train`, `evaluate`, `compare`, `gate`: a classifier, how good it is, and whether another one is better."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from flows import console
from flows.cli_settings import fields_of
from flows.console import Encoder, Json
from models.errors import BadInput
from models.outcomes import Gated, Retrained
from models.plans import Plan
from models.retraining import (
    ExternalOptions,
    FinetuneOptions,
    GatePolicy,
    HeadOptions,
    RetrainPlan,
    SplitPolicy,
    TrainerPlan,
)
from models.states import Verdict

learning_app = typer.Typer()

OPTIONS: dict[str, type[Plan]] = {"head": HeadOptions, "finetune": FinetuneOptions, "external": ExternalOptions}
LISTING = "dipnet model settings"
COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow"}
SAYS = {"better": "green", "worse": "red", "open": "yellow", "kept": ""}

Before = Annotated[str, typer.Argument(help="A model: NAME, NAME@VERSION or champion.")]
After = Annotated[str, typer.Argument(help="Another one.")]
Issue = Annotated[str, typer.Option(help="Issue that the gate is about; without one it asks that nothing is lost.")]
Scenarios = Annotated[list[str] | None, typer.Option(help="Scenario to evaluate on; repeat; default: all there are.")]
More = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=f"Any other setting; `{LISTING}` lists them.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the fit and of the resampling.")]
Resamples = Annotated[int, typer.Option(min=200, help="Resamples behind each interval.")]
Require = Annotated[
    Literal["pass", "no-fail"], typer.Option(help="When to exit with 0: pass, or also when it is inconclusive.")
]


@learning_app.command()
def train(
    model: Annotated[str, typer.Argument(help="Name of the model; each fit of other inputs is a new version of it.")],
    corpora: Annotated[
        list[str] | None, typer.Argument(help="Corpora with split train; default: all there are.")
    ] = None,
    trainer: Annotated[
        str, typer.Option(help="head: on frozen embeddings; finetune: a torchvision network; external: your own.")
    ] = "head",
    campaign: Annotated[
        list[str] | None, typer.Option(help="A campaign whose labels are added; repeat; * for all.")
    ] = None,
    scenario: Scenarios = None,
    compare_with: Annotated[
        str, typer.Option(help="Model version to compare with; default: the champion; none: do not.")
    ] = "",
    issue: Annotated[
        str, typer.Option(help="Issue that the gate is about; *: each whose labels the model before has not seen.")
    ] = "",
    encoder: Encoder = "",
    more: More = None,
    seed: Seed = 0,
    resamples: Resamples = 2_000,
    require: Require = "no-fail",
    as_json: Json = False,
) -> None:
    """Fit a classifier, evaluate it, compare it with the champion, and judge the change; what passes is champion.

    Everything is checked before anything is fitted, and what is run again with nothing new changes nothing. Exits with 1
    where a gate fails: `dipnet train nightly --campaign '*' --issue '*'` is a step of a CI.
    """
    options, splits, gate = _settings(trainer, more or [])
    plan = RetrainPlan(
        model=model,
        corpora=corpora or [],
        campaigns=campaign or [],
        splits=SplitPolicy.model_validate(splits),
        trainer=TrainerPlan.model_validate({"name": trainer, trainer: options}),
        scenarios=scenario or [],
        compare_with=compare_with,
        issue=issue,
        gate=GatePolicy.model_validate(gate),
        encoder=encoder,
        seed=seed,
        resamples=resamples,
    )
    from flows.control_plane import call
    from flows.training import retrain_and_evaluate

    with console.progress():
        found = call(retrain_and_evaluate)(plan)
    if as_json:
        console.show(_trained(found), as_json=True)
    else:
        _tell_training(found)
    _exit(found.gates, require)


def _settings(trainer: str, given: list[str]) -> list[dict[str, Any]]:
    if trainer not in OPTIONS:
        raise BadInput(f"there is no trainer '{trainer}'; choose one of {', '.join(OPTIONS)}")
    return fields_of(given, [OPTIONS[trainer], SplitPolicy, GatePolicy], listing=LISTING)


def _trained(found: Retrained) -> dict[str, Any]:
    """What a script reads: flat, the first verdict in front."""
    gate = {"gate": found.gate.verdict.value, "reasons": found.gate.reasons} if found.gate else {}
    rest = found.model_dump(mode="json", exclude={"fitted", "evaluations"})
    return {**found.fitted.model_dump(), **rest, "scenarios": list(found.evaluations), **gate}


def _tell_training(found: Retrained) -> None:
    from tasks import model_views

    rows = [row for row in model_views.metric_rows(found.model) if row["scenario"].split("@")[0] in found.evaluations]
    console.show(model_views.brief(rows), as_json=False, title=f"{found.model} on {found.fitted.samples} labels")
    for gated in found.gates:
        _tell_gate(gated)
    told = {"compared_with": found.compared_with, "left_out": found.left_out, "champion": found.champion}
    told |= {"because": found.promotion, "report": found.report, "note": found.unchanged}
    console.show({"model": found.model, **{name: value for name, value in told.items() if value}}, as_json=False)


def _tell_gate(gated: Gated) -> None:
    from tasks import model_views

    rows = model_views.finding_rows(gated.gate_id)
    about = f" about '{gated.issue}'" if gated.issue else ""
    title = f"{gated.before} → {gated.after}{about}: what the gate looked at"
    console.print_table(model_views.brief(rows), title=title, styles=[SAYS[row["says"]] for row in rows])
    console.headline(f"gate {gated.gate_id}: {gated.verdict.value}", colour=COLOURS[gated.verdict])
    for reason in gated.reasons:
        console.headline(f"  {reason}")


def _exit(gates: list[Gated], require: str) -> None:
    """Exit code 1 where a verdict is not what was required."""
    wanted = {Verdict.PASS} if require == "pass" else {Verdict.PASS, Verdict.INCONCLUSIVE}
    if any(gated.verdict not in wanted for gated in gates):
        raise typer.Exit(1)


@learning_app.command()
def gate(
    before: Before,
    after: After,
    issue: Issue = "",
    scenario: Scenarios = None,
    margin: Annotated[float, typer.Option(min=0, max=1, help="Loss of overall accuracy that counts as none.")] = 0.01,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help=f"Any other setting of the gate; see `{LISTING}`."),
    ] = None,
    seed: Seed = 0,
    resamples: Resamples = 2_000,
    require: Require = "pass",
    as_json: Json = False,
) -> None:
    """Judge two models that are there: 0 when the second passes, 1 when it fails or nobody can tell.

    What was not evaluated yet is. It passes when the issue's class is better on the issue's slice, accuracy over all
    holdout data is not lost beyond the margin, and no class, scenario or regression suite is worse. No issue, campaign or
    champion moves with it.
    """
    from flows.training import judge_models
    from tasks import model_views

    (given,) = fields_of(more or [], [GatePolicy], listing=LISTING)
    policy = GatePolicy.model_validate({"overall_margin": margin, **given})
    plan = RetrainPlan(issue=issue, scenarios=scenario or [], gate=policy, seed=seed, resamples=resamples)
    with console.progress():
        gated, _ = judge_models(before, after, plan)
    if as_json:
        findings = model_views.finding_rows(gated.gate_id)
        console.show({**gated.model_dump(mode="json"), "findings": findings}, as_json=True)
    else:
        _tell_gate(gated)
    _exit([gated], require)


@learning_app.command()
def evaluate(
    model: Before,
    scenario: Annotated[str, typer.Option(help="A scenario, or the name to freeze a new one under.")],
    corpus: Annotated[list[str] | None, typer.Option(help="Evaluation corpus of a new scenario; repeat.")] = None,
    where: Annotated[str, typer.Option(help="SQL over metadata columns that a new scenario's images meet.")] = "",
    thresholds: Annotated[
        str, typer.Option(metavar="CLASS", help="Show precision and recall of a class at thresholds instead.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Precision, recall, F1 and average precision of a model on a scenario, by class and over all, with intervals."""
    from tasks import evaluating, model_views, scenarios

    if corpus:
        scenarios.freeze_scenario(scenario, corpus, where)
    elif where:
        raise BadInput("--where needs --corpus: it says which images of a corpus a new scenario holds")
    with console.progress():
        evaluating.evaluate(model, scenario)
    if thresholds:
        rows = model_views.threshold_rows(model, scenario, thresholds)
        shown = rows if as_json else model_views.thinned(rows)
        console.show(shown, as_json=as_json, title=f"{thresholds}: {model} on {scenario}")
        return
    found = model_views.evaluation_record(model, scenario)
    if as_json:
        console.show(found, as_json=True)
        return
    console.show(model_views.class_rows(found), as_json=False, title=f"{found['model']} on {scenario}")
    figures = {name: found.get(name) for name in ("ece", "brier", "log_loss") if found.get(name) is not None}
    console.show({"samples": found.get("samples"), **figures}, as_json=False)


@learning_app.command()
def compare(
    before: Before,
    after: After,
    scenario: Annotated[str, typer.Option(help="A scenario.")],
    changes: Annotated[
        bool, typer.Option("--changes", help="List the samples that improved and worsened instead.")
    ] = False,
    resamples: Resamples = 2_000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Every metric's difference between two models on the same samples, with its paired 95 % interval, largest first.

    q is the p value after Benjamini and Hochberg over the classes; what it calls significant (q ≤ 0.05) is coloured.
    `detectable` is the least difference that so many samples show in 80 % of cases.
    """
    from tasks import evaluating, model_views

    with console.progress():
        for model in (before, after):
            evaluating.evaluate(model, scenario)
        found = evaluating.compare(before, after, scenario, resamples=resamples, seed=seed)
    title = f"{before} → {after} on {scenario}"
    if changes or as_json:
        rows = model_views.change_rows(found.comparison_id) if changes else model_views.delta_rows(found.comparison_id)
        console.show(rows, as_json=as_json, title=title)
        return
    rows = model_views.delta_rows(found.comparison_id)
    console.print_table(model_views.brief(rows), title=title, styles=[_style(row) for row in rows])
    console.show(model_views.comparison_record(found.comparison_id), as_json=False)


def _style(row: dict[str, Any]) -> str:
    """Green for what is significantly better, red for what is worse."""
    if row["q"] > 0.05:
        return ""
    better = (row["delta"] > 0) != (row["metric"] == "brier")
    return "green" if better else "red"
