"""Everything that is known of one image: why it was chosen, what it was labelled, what learnt from it, what models said."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from models.corpus import Sample
from storage import labels, provenance, runs, tables
from storage.stores import Stores, open_stores
from tasks.datasets import read_listing
from tasks.steps import step, track

Row = dict[str, Any]


@step()
def sample_record(reference: str) -> Row:
    """One image, by its id or how it begins: where it lies, and each place of the chain that it is in."""
    with open_stores() as stores:
        sample = provenance.get_sample(stores.db, reference=reference)
        place = provenance.place_of(stores.db, sample=sample)
        scenarios = _scenarios(stores, sample)
        return {
            "sample": sample.id,
            "image": sample.uri,
            "box_of": sample.image_id,
            "corpus": place[1].name if place else "",
            "split": place[1].split.value if place and place[1].split else "none",
            "shard": place[0].number if place else None,
            "exemplar_of": _exemplar_of(stores, sample),
            "labels": [
                {"class_name": label.class_name, "state": label.state.value, "source": label.source}
                for label in provenance.imported_labels(stores.db, sample_id=sample.id)
            ],
            "candidate_in": _candidate_in(stores, sample),
            "requests": _requests(stores, sample),
            "datasets": _datasets(stores, sample),
            "scenarios": [{key: row[key] for key in ("scenario", "class_name")} for row in scenarios],
            "predictions": _predictions(stores, sample, scenarios),
        }


def _exemplar_of(stores: Stores, sample: Sample) -> list[Row]:
    return [
        {"issue": issue.name, "shows": "the issue" if exemplar.positive else "what it is not",
         "class_name": issue.class_name, "since_version": exemplar.added_in_version}
        for exemplar, issue in provenance.shown_for(stores.db, sample_id=sample.id)
    ]  # fmt: skip


def _candidate_in(stores: Stores, sample: Sample) -> list[Row]:
    return [
        {
            "campaign": campaign.name,
            "run": run.id,
            "round": run.round,
            "rank": candidate.rank + 1,
            "arm": candidate.arm.value,
            "score": round(candidate.score, 4),
            "scored_by": candidate.score_version,
            "nearest_exemplar": candidate.nearest_exemplar,
            "cosine": round(candidate.similarity, 4),
            "near_duplicates": candidate.near_duplicates,
            "predicted": candidate.predicted_class,
            "state": candidate.state.value,
        }
        for candidate, run, campaign in provenance.chosen_by(stores.db, sample_id=sample.id)
    ]


def _requests(stores: Stores, sample: Sample) -> list[Row]:
    found = provenance.asked_about(stores.db, sample_id=sample.id)
    answers = labels.answers_to(stores.db, request_ids=[request.id or 0 for request, _, _ in found])
    return [
        {
            "campaign": campaign.name,
            "batch": batch.id,
            "batch_state": batch.state.value,
            "golden": bool(request.expected),
            "state": request.state.value,
            "class_names": request.class_names or ([request.class_name] if request.class_name else []),
            "confidence": round(request.confidence, 4),
            "answers": [
                f"{one.annotator or one.source}: {', '.join(one.class_names) or one.class_name or one.state.value}"
                + (f" (rejected: {one.rejected})" if one.rejected else "")
                for one in answers
                if one.request_id == request.id
            ],
        }
        for request, batch, campaign in found
    ]


def _datasets(stores: Stores, sample: Sample) -> list[Row]:
    found = []
    for dataset in track(runs.list_datasets(stores.db), "looking through dataset versions"):
        row = _row_of(read_listing(stores, dataset), sample.id)
        if row is not None:
            models = provenance.learnt_from(stores.db, dataset_ids=[dataset.id or 0])
            found.append(
                {
                    "dataset": dataset.id,
                    "hash": dataset.content_hash[:12],
                    "split": row["split"],
                    "class_name": row["class_name"],
                    "models": [model.reference for model, _ in models],
                }
            )
    return found


def _scenarios(stores: Stores, sample: Sample) -> list[Row]:
    found = []
    for scenario in track(runs.list_scenarios(stores.db), "looking through scenarios"):
        row = _row_of(tables.read(stores.objects, scenario.listing_key, scenario.listing_sha256), sample.id)
        if row is not None:
            found.append({"id": scenario.id, "scenario": scenario.reference, "class_name": row["class_name"]})
    return found


def _predictions(stores: Stores, sample: Sample, scenarios: list[Row]) -> list[Row]:
    """What each model predicted for the image; of a model's scenarios that hold it, the first."""
    found: dict[str, Row] = {}
    places = provenance.predictions_on(stores.db, scenario_ids=[row["id"] for row in scenarios])
    for inference, model, scenario in places:
        if model.reference not in found:
            row = _row_of(
                tables.read(stores.objects, inference.predictions_key, inference.predictions_sha256), sample.id
            )
            if row is not None:
                probability = row.get(f"p:{row['predicted']}")
                found[model.reference] = {
                    "model": model.reference,
                    "predicted": row["predicted"],
                    "probability": None if probability is None else round(float(probability), 4),
                    "right": row["predicted"] == row["class_name"],
                    "scenario": scenario.reference,
                }
    return list(found.values())


def _row_of(table: pa.Table, sample_id: str) -> Row | None:
    """The first row about a sample."""
    place = pc.index(table.column("sample_id"), sample_id).as_py()
    row: Row | None = table.slice(place, 1).to_pylist()[0] if place >= 0 else None
    return row
