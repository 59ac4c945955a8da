"""From a model's failures on development data to a proposed issue with exemplars."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.campaign import Issue
from models.corpus import Sample
from models.errors import BadInput
from models.learning import Scenario
from models.plans import DiscoverPlan
from models.states import ScenarioKind, Split
from models.values import Proposed
from storage import campaigns, corpora, labels, runs, tables
from storage.stores import Stores, open_stores
from tasks import features
from tasks.compute import slices
from tasks.predicting import Predictions, read_predictions
from tasks.scenarios import OVERALL
from tasks.steps import step

NOT_METADATA = frozenset({"sample_id", "class_name", "group", "shard_id", "uri", "folder"})
MOST_VALUES = 50  # a column with more distinct values names images, not kinds of image


class Found(NamedTuple):
    """A cluster of failures and the metadata value that tells it, if one does."""

    class_name: str
    taken_for: str
    places: NDArray[np.int64]  # (k,) rows of the scenario, most typical first
    told_by: slices.Enriched | None


@step()
def propose_issue(plan: DiscoverPlan) -> Proposed:
    """Open an issue from the clearest cluster of failures on development data. Running it twice changes nothing."""
    with open_stores() as stores:
        model = runs.get_model(stores.db, name=plan.model)
        scenario = runs.get_scenario(stores.db, name=plan.scenario)
        listing = tables.read(stores.objects, scenario.listing_key, scenario.listing_sha256)
        _refuse_holdout(stores, scenario, listing)
        inference = runs.find_inference(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
        if inference is None:
            raise BadInput(
                f"model '{model.name}' has no predictions on '{scenario.name}'; run: dipnet evaluate {model.name}"
            )
        predictions = read_predictions(stores, inference)
        encoder = corpora.get_encoder(stores.db, name=plan.encoder or stores.settings.encoder)

        found = _clearest(features.of_listing(stores, listing, encoder), predictions, listing, seed=plan.seed)

        issue = _ensure_issue(stores, found)
        chosen = listing.take(pa.array(found.places[: plan.exemplars]))
        _add_exemplars(stores, issue, chosen)
        exemplars = len(campaigns.exemplars_of(stores.db, issue_id=issue.id or 0))
    return Proposed(
        issue=issue.name,
        class_name=found.class_name,
        taken_for=found.taken_for,
        failures=len(found.places),
        exemplars=exemplars,
        slice_where=issue.slice_where,
    )


def _refuse_holdout(stores: Stores, scenario: Scenario, listing: pa.Table) -> None:
    """What is looked at while an issue is shaped can no longer prove that it is fixed."""
    held = corpora.list_corpora(stores.db, split=Split.HOLDOUT)
    holdout = {sample.id for _, sample in labels.labels_of_corpora(stores.db, corpora=held)}
    proof = scenario.kind is ScenarioKind.ISSUE or scenario.name == OVERALL  # these may hold answers that are held back
    if proof or holdout & set(listing.column("sample_id").to_pylist()):
        raise BadInput(f"scenario '{scenario.name}' holds holdout data; discover failures on a development scenario")


def _clearest(vectors: NDArray[np.float32], predictions: Predictions, listing: pa.Table, *, seed: int) -> Found:
    """The biggest cluster of failures, narrowed to the metadata value that sets it apart within its class."""
    names = predictions.class_names
    clusters = slices.failure_clusters(vectors, predictions.targets, predictions.predicted, most=1, seed=seed)
    if not clusters:
        raise BadInput("the model fails on none of these samples; nothing to discover here")
    cluster = clusters[0]
    members = np.flatnonzero(predictions.targets == cluster.true_class)
    table = listing.take(pa.array(members))
    columns = {name: tables.column(table, name, source="the scenario") for name in _metadata_columns(listing)}
    told_by = slices.most_enriched(columns, np.isin(members, cluster.places))
    places = cluster.places
    if told_by is not None:
        value = np.asarray(tables.column(listing, told_by.column, source="the scenario"))
        places = places[value[places] == told_by.value]
    return Found(names[cluster.true_class], names[cluster.predicted_class], places, told_by)


def _metadata_columns(listing: pa.Table) -> list[str]:
    return [
        name
        for name in listing.column_names
        if name not in NOT_METADATA and 1 < len(set(listing.column(name).to_pylist())) <= MOST_VALUES
    ]


def _ensure_issue(stores: Stores, found: Found) -> Issue:
    """The issue that this finding makes; the same finding makes the same name."""
    told = found.told_by
    words = [told.value if told else "", found.class_name, "taken for", found.taken_for]
    name = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:98]
    issue = campaigns.find_issue(stores.db, name=name)
    if issue is None:
        where, told_as = "", ""
        if told is not None:
            value = told.value.replace("'", "''")
            where = f"\"{told.column}\" = '{value}'"
            told_as = (
                f"; {told.share_inside:.0%} of these failures have {told.column} = {told.value}, "
                f"{told.share_outside:.0%} of the other images of the class"
            )
        issue = Issue(
            name=name,
            class_name=found.class_name,
            slice_where=where,
            description=f"'{found.class_name}' mostly taken for '{found.taken_for}'{told_as}",
        )
        stores.db.add(issue)
        stores.db.flush()
    return issue


def _add_exemplars(stores: Stores, issue: Issue, chosen: pa.Table) -> None:
    rows: Sequence[dict[str, object]] = chosen.to_pylist()
    samples = [
        Sample(id=str(row["sample_id"]), uri=str(row["uri"]), shard_id=int(str(row["shard_id"]))) for row in rows
    ]
    corpora.ensure_samples(stores.db, samples=samples)
    campaigns.add_exemplars(stores.db, issue=issue, sample_ids=[sample.id for sample in samples], positive=True)
