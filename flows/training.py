"""retrain-and-evaluate: freeze a dataset version, fit, evaluate, compare, judge."""

from prefect import flow

from models.retraining import RetrainPlan
from models.values import Retrained
from tasks import datasets, evaluating, judging, learning, publishing, scenarios


@flow(name="retrain-and-evaluate")
def retrain_and_evaluate(plan: RetrainPlan) -> Retrained:
    """Fit a classifier on labelled corpora and campaigns' answers, and compare it with the one before.

    Args:
        plan: What to train on, what to evaluate on, and what to compare with.
    """
    fitted = learning.fit(datasets.freeze_dataset(plan.corpora, plan.campaigns), plan)
    chosen = list(plan.scenarios) or scenarios.default_scenarios()
    on_slice = scenarios.issue_scenario(plan.issue) if plan.issue else ""
    overall = scenarios.overall_scenario() if plan.issue else ""
    chosen = list(dict.fromkeys(name for name in [*chosen, on_slice, overall] if name))

    evaluations = {name: evaluating.evaluate(plan.model, name) for name in chosen}
    comparisons = []
    if plan.compare_with:
        for name in chosen:
            evaluating.evaluate(plan.compare_with, name)
            comparisons.append(
                evaluating.compare(plan.compare_with, plan.model, name, resamples=plan.resamples, seed=plan.seed)
            )
    by_name = {compared.scenario: compared for compared in comparisons}
    gate = judging.judge(plan.issue, by_name[on_slice], by_name[overall]) if on_slice and comparisons else None
    outcome = Retrained(fitted=fitted, evaluations=evaluations, comparisons=comparisons, gate=gate)
    publishing.publish(f"model-{plan.model}", [outcome.fitted, *comparisons])
    return outcome
