"""retrain-and-evaluate: freeze, fit, evaluate, compare, judge, promote. By hand, at night, and when labels are in."""

from prefect import flow

from models.outcomes import Compared, Gated, Retrained
from models.retraining import RetrainPlan
from tasks import datasets, evaluating, judging, learning, preparing, presenting, promoting
from tasks.preparing import Prepared
from tasks.scenarios import OVERALL
from tasks.steps import track


@flow(name="retrain-and-evaluate")
def retrain_and_evaluate(plan: RetrainPlan) -> Retrained:
    """Fit a classifier on labelled corpora and campaigns' answers, compare it with the one before, and judge the change.

    Everything is checked before anything is fitted. Run again with nothing new, it says so and makes nothing.

    Args:
        plan: What to train on, what to evaluate on, what to compare with, and what the change must show.
    """
    began = preparing.moment()
    preparing.check(plan)
    dataset_id = datasets.freeze_dataset(plan)
    ready = preparing.prepare(plan, dataset_id, preparing.opponent(plan.compare_with))
    _evaluate(ready.before, ready, "evaluating the model before")

    fitted = learning.fit(dataset_id, plan)
    model, before = preparing.reference_of(fitted.model_id), preparing.opponent(plan.compare_with, fitted.model_id)
    if before != ready.before:  # what was fitted is there already, and is itself what it would be compared with
        ready = preparing.prepare(plan, dataset_id, before)
        _evaluate(before, ready, "evaluating the model before")

    evaluations = _evaluate(model, ready, "evaluating")
    comparisons = _compare(model, ready, plan)
    gates = _judge(comparisons, ready, plan)
    settled = judging.settle(gates)  # not before all are known: where one fails, none that passes resolves its issue
    promoted = promoting.promote_judged(model, gates, allowed=plan.gate.promote)

    news = preparing.is_news(began, list(evaluations.values()), comparisons, gates)
    report = presenting.report_of(model)
    done = fitted.reused and not (news or settled or promoted.changed) and bool(report)
    outcome = Retrained(
        fitted=fitted,
        evaluations=evaluations,
        comparisons=comparisons,
        model=model,
        compared_with=ready.before,
        gates=gates,
        left_out=ready.left_out,
        champion=promoted.champion,
        promotion=promoted.reason,
        unchanged=f"nothing changed since {model}" if done else "",
        report=report,
    )
    return outcome if done else presenting.present(outcome)


def judge_models(before: str, after: str, plan: RetrainPlan) -> tuple[Gated, list[Compared]]:
    """The verdict on two models that are there, on a plan's scenarios; what is missing is evaluated. Nothing moves with it."""
    ready = preparing.prepare_gate(before, after, plan.issue, plan.scenarios)
    for model in (ready.before, after):
        _evaluate(model, ready, f"evaluating {model}")
    comparisons = _compare(after, ready, plan)
    numbers = [compared.comparison_id for compared in comparisons]
    return judging.judge(numbers, plan.issue, plan.gate), comparisons


def _evaluate(model: str, ready: Prepared, what: str) -> dict[str, int]:
    """Evaluations by scenario; none without a model."""
    chosen = list(ready.scenarios.items()) if model else []
    return {name: evaluating.evaluate(model, version) for name, version in track(chosen, what)}


def _compare(model: str, ready: Prepared, plan: RetrainPlan) -> list[Compared]:
    """Comparisons with the model before, scenario by scenario; none without one."""
    chosen = list(ready.scenarios.items()) if ready.before else []
    found = []
    for name, version in track(chosen, f"comparing with {ready.before}"):
        compared = evaluating.compare(ready.before, model, version, resamples=plan.resamples, seed=plan.seed)
        found.append(compared.model_copy(update={"scenario": name}))
    return found


def _judge(comparisons: list[Compared], ready: Prepared, plan: RetrainPlan) -> list[Gated]:
    """A verdict an issue, or one about the change as a whole; none where nothing was compared on all holdout data."""
    if OVERALL not in {compared.scenario for compared in comparisons}:
        return []
    numbers = [compared.comparison_id for compared in comparisons]
    return [judging.judge(numbers, issue, plan.gate) for issue in ready.issues or [""]]
