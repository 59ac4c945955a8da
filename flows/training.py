"""retrain-and-evaluate: freeze a dataset version, fit, evaluate, compare, judge."""

from prefect import flow

from models.plans import RetrainPlan
from models.values import Retrained
from tasks import evaluating, learning, publishing


@flow(name="retrain-and-evaluate")
def retrain_and_evaluate(plan: RetrainPlan) -> Retrained:
    """Fit a classifier on labelled corpora and campaigns' answers, and compare it with the one before.

    Args:
        plan: What to train on, what to evaluate on, and what to compare with.
    """
    fitted = learning.fit_head(learning.freeze_dataset(plan.corpora, plan.campaigns), plan)
    scenarios = list(plan.scenarios) or evaluating.default_scenarios()
    on_slice = evaluating.issue_scenario(plan.issue) if plan.issue else ""
    overall = evaluating.overall_scenario() if plan.issue else ""
    scenarios = list(dict.fromkeys(name for name in [*scenarios, on_slice, overall] if name))

    evaluations = {name: evaluating.evaluate(plan.model, name) for name in scenarios}
    comparisons = []
    if plan.compare_with:
        for name in scenarios:
            evaluating.evaluate(plan.compare_with, name)
            comparisons.append(
                evaluating.compare(plan.compare_with, plan.model, name, resamples=plan.resamples, seed=plan.seed)
            )
    by_name = {compared.scenario: compared for compared in comparisons}
    gate = evaluating.judge(plan.issue, by_name[on_slice], by_name[overall]) if on_slice and comparisons else None
    outcome = Retrained(fitted=fitted, evaluations=evaluations, comparisons=comparisons, gate=gate)
    publishing.publish(f"model-{plan.model}", [outcome.fitted, *comparisons])
    return outcome
