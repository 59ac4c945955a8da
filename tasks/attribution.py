"""What a campaign bought and what it cost, and what a model was made of: the chain of evidence, walked both ways.

Forwards: campaign – labels – dataset versions – models – differences, gates, uplift. Backwards: from a model to the
campaigns and the issues that its labels came from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from models.campaign import Campaign, Issue
from models.labeling import LabelBatch, LabelRequest
from models.learning import Comparison, DatasetVersion, ModelVersion, Scenario, TrainingRun
from models.states import BatchState, RequestState, Split
from storage import campaigns, corpora, labels, provenance, runs
from storage.stores import Stores, open_stores
from tasks import progress
from tasks.datasets import read_listing
from tasks.steps import step

Row = dict[str, Any]
Asked = Sequence[tuple[LabelRequest, LabelBatch]]


class Listed(NamedTuple):
    """A dataset version, the batches that it knows, and its rows: class and split by sample."""

    dataset: DatasetVersion
    batches: set[int]
    rows: dict[str, tuple[str, str]]


@step()
def campaign_record(name: str) -> Row:
    """What a campaign bought and cost: labels, dataset versions, models, differences with intervals, gates, uplift.

    Reads the dataset versions that know one of its batches, so that "made it" is what is in them and not what should be.
    """
    spent = progress.progress(name)
    with open_stores() as stores:
        campaign = campaigns.get_campaign(stores.db, name=name)
        issue = stores.db.get_one(Issue, campaign.issue_id)
        asked = provenance.requests_of_campaign(stores.db, campaign_id=campaign.id or 0)
        states = Counter(request.state.value for request, _ in asked)
        versions = _datasets(stores, {batch.id or 0 for _, batch in asked})
        evaluated = _evaluation_ids(stores)
        models = [
            _model(stores, model, training, issue)
            for model, training in provenance.learnt_from(stores.db, dataset_ids=[v.dataset.id or 0 for v in versions])
        ]
        found = {
            "campaign": name,
            "issue": issue.name,
            "class_name": issue.class_name,
            "issue_state": issue.state.value,
            "state": campaign.state.value,
            "stopped_because": campaign.stopped_because,
            "candidates": len(campaigns.all_candidates(stores.db, campaign_id=campaign.id or 0)),
            "asked": len(asked),
            "answered": len(asked) - states[RequestState.PENDING.value],
            "states": dict(sorted(states.items())),
            "labels": spent.labels,
            "hits": spent.hits,
            "minutes": spent.minutes,
            "cost": spent.cost,
            "datasets": [_version(stores, version, asked, evaluated) for version in versions],
            "models": models,
            "uplift": uplift_rows(stores, [campaign.id or 0]),
        }
    return {"answer": _answer(found), **found}


@step()
def model_record(reference: str) -> Row:
    """What a model was made of and what was said of it: training, dataset version, campaigns and issues, uplift, verdicts."""
    with open_stores() as stores:
        model = runs.get_model(stores.db, name=reference)
        training = runs.training_of(stores.db, model=model)
        dataset = stores.db.get(DatasetVersion, training.dataset_id) if training.dataset_id else None
        return {
            "model": model.reference,
            "trainer": training.trainer,
            "parameters": training.parameters,
            "seed": training.seed,
            "dataset": _made_of(stores, dataset) if dataset else {},
            "gates": _gates(stores, model),
        }


def uplift_rows(stores: Stores, campaign_ids: list[int]) -> list[Row]:
    """A row an uplift that was measured for these campaigns, newest last."""
    return [
        {
            "campaign": campaign.name,
            "control": control.name,
            "scenario": scenario.reference,
            "class_name": found.class_name,
            "metric": found.metric,
            "budget": found.budget,
            "seeds": found.seeds,
            "by_seed": found.by_seed,
            "mean": found.mean,
            "low": found.low,
            "high": found.high,
        }
        for found, campaign, control, scenario in provenance.uplifts_of(stores.db, campaign_ids=campaign_ids)
    ]


def _datasets(stores: Stores, batch_ids: set[int]) -> list[Listed]:
    """Dataset versions that know one of these batches, oldest first."""
    found = []
    for dataset in runs.list_datasets(stores.db):
        known = runs.batches_behind(stores.db, dataset_id=dataset.id)
        if known & batch_ids:
            found.append(Listed(dataset, known, _rows(read_listing(stores, dataset))))
    return found


def _rows(listing: pa.Table) -> dict[str, tuple[str, str]]:
    """Class and split by sample."""
    columns = (listing.column(name).to_pylist() for name in ("sample_id", "class_name", "split"))
    return {one: (name, split) for one, name, split in zip(*columns, strict=True)}


def _version(stores: Stores, version: Listed, asked: Asked, evaluated: set[str]) -> Row:
    """How many of a campaign's labels a dataset version holds, by split, and why it does not hold the others."""
    inside, outside = Counter[str](), Counter[str]()
    for request, batch in asked:
        why = _left_out(version, request, batch, evaluated)
        if why:
            outside[why] += 1
        else:
            inside[version.rows[request.sample_id][1]] += 1
    by_batch = provenance.campaigns_of_batches(stores.db, batch_ids=version.batches)
    return {
        "dataset": version.dataset.id,
        "hash": version.dataset.content_hash[:12],
        "samples": version.dataset.samples,
        "holds": sum(inside.values()),
        "by_split": dict(sorted(inside.items())),
        "left_out": dict(sorted(outside.items())),
        "campaigns": sorted({campaign.name for campaign in by_batch.values()}),
    }


def _left_out(version: Listed, request: LabelRequest, batch: LabelBatch, evaluated: set[str]) -> str:
    """Why a request is not in a dataset version; '' when it is, with the class that was answered."""
    names = request.class_names or [request.class_name]
    if request.state is RequestState.PENDING:
        return "not answered yet"
    if request.state is not RequestState.LABELLED:
        return request.state.value
    if request.sample_id in version.rows and version.rows[request.sample_id][0] in names:
        return ""
    if batch.state in (BatchState.QUARANTINED, BatchState.REJECTED):
        return f"its batch is {batch.state.value}"
    if not request.class_name:
        return "names several classes"
    if request.sample_id in evaluated:
        return "evaluation data"
    if request.sample_id in version.rows:
        return "labelled otherwise elsewhere"
    return "later batch" if batch.id not in version.batches else "excluded, or answered later"


def _evaluation_ids(stores: Stores) -> set[str]:
    held = [c for split in (Split.DEVELOPMENT, Split.HOLDOUT) for c in corpora.list_corpora(stores.db, split=split)]
    return {sample.id for _, sample in labels.labels_of_corpora(stores.db, corpora=held)} if held else set()


def _made_of(stores: Stores, dataset: DatasetVersion) -> Row:
    """A dataset version, and for each campaign whose labels it holds how many, of which issue."""
    known = runs.batches_behind(stores.db, dataset_id=dataset.id)
    listed, evaluated = Listed(dataset, known, _rows(read_listing(stores, dataset))), _evaluation_ids(stores)
    from_campaigns: dict[int, Campaign] = {
        one.id or 0: one for one in provenance.campaigns_of_batches(stores.db, batch_ids=known).values()
    }
    return {
        "id": dataset.id,
        "hash": dataset.content_hash,
        "samples": dataset.samples,
        "splits": dataset.splits,
        "excluded": dataset.excluded,
        "parent": dataset.parent_id,
        "campaigns": [
            _contribution(stores, listed, campaign, evaluated) for _, campaign in sorted(from_campaigns.items())
        ],
    }


def _contribution(stores: Stores, version: Listed, campaign: Campaign, evaluated: set[str]) -> Row:
    issue = stores.db.get_one(Issue, campaign.issue_id)
    asked = provenance.requests_of_campaign(stores.db, campaign_id=campaign.id or 0)
    held = _version(stores, version, asked, evaluated)
    exemplars = campaigns.exemplars_of(stores.db, issue_id=issue.id or 0)
    return {
        "campaign": campaign.name,
        "issue": issue.name,
        "class_name": issue.class_name,
        "exemplars": sum(exemplar.positive for exemplar, _ in exemplars),
        "labels": held["holds"],
        "left_out": held["left_out"],
        "uplift": uplift_rows(stores, [campaign.id or 0]),
    }


def _model(stores: Stores, model: ModelVersion, training: TrainingRun, issue: Issue) -> Row:
    return {
        "model": model.reference,
        "trainer": training.trainer,
        "dataset": training.dataset_id,
        "deltas": _deltas(stores, model, issue),
        "gates": _gates(stores, model),
    }


def _deltas(stores: Stores, model: ModelVersion, issue: Issue) -> list[Row]:
    """A row a comparison with an earlier model: the class's F1 on the issue's own scenario, accuracy where no issue is."""
    found = []
    for comparison, before, scenario in provenance.comparisons_with(stores.db, after_id=model.id or 0):
        if scenario.issue_id in (None, issue.id):
            wanted = (issue.class_name, "f1") if scenario.issue_id else ("", "accuracy")
            found += _delta(stores, comparison, before, scenario, wanted)
    return found


def _delta(
    stores: Stores, comparison: Comparison, before: ModelVersion, scenario: Scenario, wanted: tuple[str, str]
) -> list[Row]:
    return [
        {
            "before": before.reference,
            "scenario": scenario.reference,
            "about": "issue" if scenario.issue_id else scenario.kind.value,
            "class_name": row.class_name,
            "metric": row.metric,
            "from": row.before,
            "to": row.after,
            "delta": row.after - row.before,
            "low": row.low,
            "high": row.high,
            "q": row.q,
        }
        for row in runs.deltas_of(stores.db, comparison_id=comparison.id or 0)
        if (row.class_name, row.metric) == wanted
    ]


def _gates(stores: Stores, model: ModelVersion) -> list[Row]:
    before = {one.id: one.reference for one in runs.list_models(stores.db)}
    return [
        {
            "issue": issue.name if issue else "",
            "before": before.get(gate.before_id, ""),
            "verdict": gate.verdict.value,
            "reasons": gate.reasons,
            "samples_needed": gate.samples_needed,
        }
        for gate, issue in provenance.gates_about(stores.db, after_id=model.id or 0)
    ]


def _answer(found: Row) -> str:
    """All of it in a sentence or two, for a person who asks whether it was worth it."""
    if not found["asked"]:
        return "nothing was sent to be labelled yet, so it cost nothing and bought nothing"
    money = f" and {found['cost']:g} in money" if found["cost"] else ""
    cost = (
        f"{found['labels']} labels ({found['hits']} of {found['class_name']}) of {found['asked']} asked, "
        f"for {found['minutes']:.1f} minutes{money}"
    )
    if not found["labels"]:
        return f"{cost}; there is nothing to learn from yet"
    if not found["models"]:
        return f"{cost}; no model has learnt from them yet: dipnet train --help"
    return "; ".join([cost, *_gained(found["models"][-1]), *_beyond_control(found["uplift"])])


def _gained(model: Row) -> list[str]:
    deltas = sorted(model["deltas"], key=lambda row: row["about"] != "issue")
    told = [
        f"{model['model']}: {'F1 of ' + row['class_name'] if row['class_name'] else row['metric']} on {row['scenario']} "
        f"{row['delta']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] against {row['before']}"
        for row in deltas[:1]
    ] or [f"{model['model']} learnt from them and was compared with nothing"]
    return [*told, *(f"gate: {gate['verdict']}" for gate in model["gates"][-1:])]


def _beyond_control(uplift: list[Row]) -> list[str]:
    if not uplift:
        return ["beyond chance: not measured"]
    last = uplift[-1]
    return [
        f"beyond as many labels of {last['control']}: {last['metric']} {last['mean']:+.3f} "
        f"[{last['low']:+.3f}, {last['high']:+.3f}] over {len(last['seeds'])} seeds"
    ]
