"""What a person sees of a campaign beside its control arm: report.json and report.html."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from models.campaign import Candidate
from models.corpus import Sample
from models.labeling import LabelRequest
from models.learning import ModelVersion, Scenario
from models.plans import ReportPlan
from models.states import RequestState
from storage import campaigns, corpora, labels, runs
from storage.objects import DirectoryStore
from storage.stores import Stores, open_stores
from tasks import attribution, rendering
from tasks.evaluating import compare
from tasks.rendering import thumbnail
from tasks.steps import step


@step()
def summarise(plan: ReportPlan, resamples: int, seed: int) -> dict[str, Any]:
    """Everything that the report says, as JSON: no row ids and no times, so that the same work gives the same summary."""
    for scenario in (plan.overall, plan.slice):
        compare(plan.control, plan.after, scenario, resamples, seed)
    with open_stores() as stores:
        issue = campaigns.get_issue(stores.db, name=plan.issue)
        exemplars = campaigns.exemplars_of(stores.db, issue_id=issue.id or 0)
        return {
            "version": 1,
            "issue": {
                "name": issue.name,
                "class_name": issue.class_name,
                "slice_where": issue.slice_where,
                "description": issue.description,
                "state": issue.state.value,
                "exemplars": [sample.id for exemplar, sample in exemplars if exemplar.positive],
            },
            "models": {"before": plan.before, "campaign": plan.after, "control": plan.control},
            "arms": {
                "campaign": _arm(stores, plan.campaign, issue.class_name),
                "control": _arm(stores, plan.control_campaign, issue.class_name),
            },
            "scenarios": {name: _scenario(stores, plan, name) for name in (plan.slice, plan.overall)},
            "slice": plan.slice,
            "overall": plan.overall,
            "gate": _gate(stores, plan),
            "uplift": _uplift(stores, plan),
        }


@step()
def write_report(folder: str, summary: dict[str, Any], plan: ReportPlan) -> list[str]:
    """Write report.html and report.json, whole or not at all; the JSON last, since it says that all is done."""
    with open_stores() as stores:
        pictures = _pictures(stores, plan)
    drawn = [rendering.by_seed(row) for row in summary["uplift"]]
    html = rendering.render("report.html.j2", summary=summary, pictures=pictures, seeds=drawn)
    return rendering.write(DirectoryStore(Path(folder)), "", html, summary)


def _arm(stores: Stores, name: str, class_name: str) -> dict[str, Any]:
    """What a campaign's runs scanned, chose and got back."""
    campaign = campaigns.get_campaign(stores.db, name=name)
    rounds = campaigns.runs_of(stores.db, campaign_id=campaign.id or 0)
    run, excluded = rounds[-1], Counter[str]()
    for one in rounds:
        excluded.update(one.excluded)
    batches = labels.batches_of(stores.db, campaigns=[name])
    answers = {sample.id: request for request, sample in labels.resolved_of_batches(stores.db, batches=batches)}
    labelled = [request for request in answers.values() if request.state is RequestState.LABELLED]
    classes = Counter(name for request in labelled for name in request.class_names)
    return {
        "campaign": name,
        "strategy": run.policy["strategy"],
        "budget": run.policy["budget"],
        "scanned": run.scanned,
        "excluded": dict(excluded),
        "rounds": len(rounds),
        "candidates": len(campaigns.all_candidates(stores.db, campaign_id=campaign.id or 0)),
        "answers": dict(Counter(request.state.value for request in answers.values())),
        "classes": dict(sorted(classes.items())),
        "of_the_class": classes[class_name],
    }


def _scenario(stores: Stores, plan: ReportPlan, name: str) -> dict[str, Any]:
    """Metrics of the three models on a scenario, and the three differences with their intervals."""
    scenario = runs.get_scenario(stores.db, name=name)
    models = {
        "before": runs.get_model(stores.db, name=plan.before),
        "campaign": runs.get_model(stores.db, name=plan.after),
        "control": runs.get_model(stores.db, name=plan.control),
    }
    pairs = {"campaign": ("before", "campaign"), "control": ("before", "control"), "uplift": ("control", "campaign")}
    return {
        "samples": scenario.samples,
        "models": {side: _metrics(stores, model, scenario) for side, model in models.items()},
        "deltas": {
            key: _deltas(stores, models[before], models[after], scenario) for key, (before, after) in pairs.items()
        },
    }


def _metrics(stores: Stores, model: ModelVersion, scenario: Scenario) -> dict[str, Any]:
    evaluation = runs.evaluation_on(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
    return evaluation.metrics if evaluation else {}


def _deltas(stores: Stores, before: ModelVersion, after: ModelVersion, scenario: Scenario) -> dict[str, Any]:
    """{class or '': {metric: {before, after, delta, low, high}}}"""
    found = runs.find_comparison(
        stores.db, before_id=before.id or 0, after_id=after.id or 0, scenario_id=scenario.id or 0
    )
    by_class: dict[str, Any] = {}
    for row in runs.deltas_of(stores.db, comparison_id=found.id or 0) if found else ():
        by_class.setdefault(row.class_name, {})[row.metric] = {
            "before": row.before,
            "after": row.after,
            "delta": row.after - row.before,
            "low": row.low,
            "high": row.high,
        }
    return by_class


def _gate(stores: Stores, plan: ReportPlan) -> dict[str, Any]:
    issue = campaigns.get_issue(stores.db, name=plan.issue)
    after = runs.get_model(stores.db, name=plan.after)
    found = runs.newest_gate(stores.db, issue_id=issue.id, after_id=after.id or 0)
    return {"verdict": found.verdict.value, "reasons": found.reasons} if found else {}


def _uplift(stores: Stores, plan: ReportPlan) -> list[dict[str, Any]]:
    """What was measured of the campaign against its control arm over several training seeds."""
    campaign = campaigns.get_campaign(stores.db, name=plan.campaign)
    rows = attribution.uplift_rows(stores, [campaign.id or 0])
    return [row for row in rows if row["control"] == plan.control_campaign]


def _pictures(stores: Stores, plan: ReportPlan) -> dict[str, Any]:
    """Exemplars and candidates with their thumbnails, answers and reasons."""
    issue = campaigns.get_issue(stores.db, name=plan.issue)
    exemplars = [
        sample for exemplar, sample in campaigns.exemplars_of(stores.db, issue_id=issue.id or 0) if exemplar.positive
    ]
    return {
        "exemplars": [{"id": sample.id, "image": thumbnail(stores, sample)} for sample in exemplars],
        "campaign": _candidate_cards(stores, plan.campaign),
        "control": _candidate_cards(stores, plan.control_campaign),
    }


def _candidate_cards(stores: Stores, name: str) -> list[dict[str, Any]]:
    campaign = campaigns.get_campaign(stores.db, name=name)
    found = campaigns.all_candidates(stores.db, campaign_id=campaign.id or 0)
    samples = corpora.known_samples(stores.db, ids=[candidate.sample_id for candidate in found])
    batches = labels.batches_of(stores.db, campaigns=[name])
    answers = {sample.id: request for request, sample in labels.resolved_of_batches(stores.db, batches=batches)}
    return [_card(stores, candidate, samples[candidate.sample_id], answers) for candidate in found]


def _card(stores: Stores, candidate: Candidate, sample: Sample, answers: dict[str, LabelRequest]) -> dict[str, Any]:
    request = answers.get(sample.id)
    return {
        "image": thumbnail(stores, sample),
        "rank": candidate.rank + 1,
        "score": candidate.score,
        "version": candidate.score_version,
        "similarity": candidate.similarity,
        "nearest": candidate.nearest_exemplar,
        "near_duplicates": candidate.near_duplicates,
        "predicted": candidate.predicted_class,
        "probability": candidate.predicted_probability,
        "label": (", ".join(request.class_names) or request.state.value) if request else "pending",
    }
