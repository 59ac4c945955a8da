"""How good a model is on a scenario, and whether another one is better there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.campaign import Issue
from models.corpus import Corpus, EncoderSpec, Shard
from models.errors import BadInput, Incompatible
from models.learning import Comparison, Evaluation, Gate, InferenceSet, MetricDelta, ModelVersion, Scenario
from models.states import IssueState, Split, Verdict
from models.values import Compared, Gated
from storage import campaigns, corpora, labels, runs, tables
from storage.objects import verified
from storage.stores import Stores, open_stores
from tasks import features, heads
from tasks.compute import classifier, gate, metrics
from tasks.ingesting import read_manifest
from tasks.learning import listing_of
from tasks.steps import step

EVALUATION = (Split.DEVELOPMENT, Split.HOLDOUT)
OVERALL = "all-holdout"


class Predictions(NamedTuple):
    """A model's answers on a scenario, as places in one list of class names."""

    class_names: list[str]
    sample_ids: list[str]  # (n,)
    targets: NDArray[np.int64]  # (n,)
    predicted: NDArray[np.int64]  # (n,)


@step()
def freeze_scenario(name: str, corpus_names: Sequence[str], where: str = "", issue_name: str = "") -> int:
    """Freeze the labelled samples of evaluation corpora that meet a condition, under a name; a known name stays frozen."""
    with open_stores() as stores:
        found = runs.find_scenario(stores.db, name=name)
        if found is None:
            held = [_evaluation_corpus(stores, corpus_name) for corpus_name in sorted(set(corpus_names))]
            issue = campaigns.get_issue(stores.db, name=issue_name) if issue_name else None

            listing = _where(stores, held, where)
            if not listing.num_rows:
                raise BadInput(
                    f"scenario '{name}' would be empty: no labelled sample meets '{where}'; change the condition"
                )

            key = f"scenarios/{name}.parquet"
            found = Scenario(
                name=name,
                issue_id=issue.id if issue else None,
                listing_key=key,
                listing_sha256=stores.objects.write(key, tables.to_bytes(listing)),
                samples=listing.num_rows,
            )
            stores.db.add(found)
            stores.db.flush()
    return found.id or 0


@step()
def default_scenarios() -> list[str]:
    """One scenario for every evaluation corpus, under the corpus's name, frozen when it is new."""
    with open_stores() as stores:
        held = [c.name for split in EVALUATION for c in corpora.list_corpora(stores.db, split=split)]
    for name in held:
        freeze_scenario(name, [name])
    return held


@step()
def overall_scenario() -> str:
    """The name of the scenario over all holdout corpora, frozen when it is new."""
    freeze_scenario(OVERALL, _holdout_corpora())
    return OVERALL


@step()
def issue_scenario(issue_name: str) -> str:
    """The name of the scenario that holds an issue's slice of every holdout corpus, frozen when it is new."""
    with open_stores() as stores:
        where = campaigns.get_issue(stores.db, name=issue_name).slice_where
    freeze_scenario(f"issue-{issue_name}", _holdout_corpora(), where, issue_name)
    return f"issue-{issue_name}"


@step()
def evaluate(model_name: str, scenario_name: str) -> int:
    """Predict a scenario's samples and store the metrics. Twice changes nothing. Returns the evaluation's id."""
    with open_stores() as stores:
        model = runs.get_model(stores.db, name=model_name)
        scenario = runs.get_scenario(stores.db, name=scenario_name)
        held = runs.find_inference(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
        inference = held or _infer(stores, model, scenario)
        found = runs.find_evaluation(stores.db, inference_id=inference.id or 0)
        if found is None:
            predictions = read_predictions(stores, inference)
            found = Evaluation(inference_id=inference.id or 0, metrics=_measured(predictions))
            stores.db.add(found)
            stores.db.flush()
    return found.id or 0


@step()
def compare(before: str, after: str, scenario_name: str, resamples: int, seed: int) -> Compared:
    """Every metric's difference between two evaluated models, with its paired 95 % interval. Twice changes nothing."""
    with open_stores() as stores:
        models = [runs.get_model(stores.db, name=name) for name in (before, after)]
        scenario = runs.get_scenario(stores.db, name=scenario_name)
        ids = [models[0].id or 0, models[1].id or 0, scenario.id or 0]
        found = runs.find_comparison(stores.db, before_id=ids[0], after_id=ids[1], scenario_id=ids[2])
        if found is None:
            both = [_predictions_of(stores, model, scenario) for model in models]
            class_names, targets, predicted = _aligned(*both)

            deltas = metrics.paired_deltas(
                targets, *predicted, classes=len(class_names), resamples=resamples, seed=seed
            )

            found = Comparison(before_id=ids[0], after_id=ids[1], scenario_id=ids[2])
            stores.db.add(found)
            stores.db.flush()
            stores.db.add_all(_delta_row(found.id or 0, delta, class_names) for delta in deltas)
    return Compared(comparison_id=found.id or 0, scenario=scenario_name, before=before, after=after)


@step()
def judge(issue_name: str, on_slice: Compared, overall: Compared) -> Gated:
    """The verdict on a change for an issue; the issue moves with it. Twice changes nothing."""
    with open_stores() as stores:
        issue = campaigns.get_issue(stores.db, name=issue_name)
        ids = {"slice_id": on_slice.comparison_id, "overall_id": overall.comparison_id}
        found = runs.find_gate(stores.db, issue=issue, **ids)
        if found is None:
            target = _interval(stores, on_slice.comparison_id, issue.class_name, "f1")
            everywhere = _interval(stores, overall.comparison_id, "", "accuracy")

            judged = gate.verdict(target, everywhere)

            found = Gate(
                issue_id=issue.id or 0,
                slice_comparison_id=on_slice.comparison_id,
                overall_comparison_id=overall.comparison_id,
                verdict=Verdict(judged.verdict),
                reasons=judged.reasons,
            )
            stores.db.add(found)
            _move(stores, issue, found.verdict)
    return Gated(issue=issue_name, verdict=found.verdict, reasons=found.reasons)


def read_predictions(stores: Stores, inference: InferenceSet) -> Predictions:
    """A model's stored answers."""
    table = tables.from_bytes(stores.objects.read(inference.predictions_key))
    known, said = table.column("class_name").to_pylist(), table.column("predicted").to_pylist()
    class_names = sorted({*known, *said})
    return Predictions(
        class_names,
        table.column("sample_id").to_pylist(),
        classifier.as_targets(known, class_names),
        classifier.as_targets(said, class_names),
    )


def _holdout_corpora() -> list[str]:
    with open_stores() as stores:
        held = [corpus.name for corpus in corpora.list_corpora(stores.db, split=Split.HOLDOUT)]
    if not held:
        raise BadInput(
            "there is no holdout corpus; add one with: dipnet corpus add NAME PREFIX --split holdout --labels COLUMN"
        )
    return held


def _evaluation_corpus(stores: Stores, name: str) -> Corpus:
    corpus = corpora.get_corpus(stores.db, name=name)
    if corpus.split not in EVALUATION:
        raise BadInput(
            f"corpus '{name}' is not for evaluation (split: {corpus.split or 'none'}); "
            "name one that was added with --split development or --split holdout"
        )
    return corpus


def _where(stores: Stores, held: Sequence[Corpus], where: str) -> pa.Table:
    """Labelled samples of these corpora whose manifest row meets the condition, with the manifest's columns."""
    listing = listing_of(labels.labels_of_corpora(stores.db, corpora=held), without=frozenset())
    if not listing.num_rows:
        raise BadInput(
            f"no labels in {', '.join(corpus.name for corpus in held)} yet; embed it first with: dipnet embed {held[0].name}"
        )
    metadata = tables.concat([part for corpus in held for part in _metadata(stores, corpus)])
    numbered = metadata.append_column("__row", pa.array(range(metadata.num_rows), pa.int64()))
    first = numbered.group_by("sample_id").aggregate([("__row", "min")]).column("__row_min")
    metadata = metadata.take(first)  # the same bytes may lie there twice
    joined = listing.join(metadata, keys="sample_id", join_type="left outer").sort_by("sample_id")
    return tables.where(joined, where)


def _metadata(stores: Stores, corpus: Corpus) -> Iterator[pa.Table]:
    """The manifest columns of a corpus's read images with their sample ids, shard by shard."""
    for row in corpora.read_shards(stores.db, corpus_id=corpus.id or 0):
        shard = stores.db.get_one(Shard, row.shard_id)
        manifest, reads = read_manifest(stores, shard), tables.from_bytes(stores.objects.read(row.read_key))
        ours = [
            name for name in ("key", "etag", "bytes", "class_name", "shard_id", "uri") if name in manifest.column_names
        ]
        yield manifest.drop_columns(ours).append_column("sample_id", reads.column("sample_id"))


def _infer(stores: Stores, model: ModelVersion, scenario: Scenario) -> InferenceSet:
    """Predict every sample of a scenario and store the answers with their probabilities."""
    listing = tables.from_bytes(verified(stores.objects, scenario.listing_key, scenario.listing_sha256))
    encoder = stores.db.get_one(EncoderSpec, runs.training_of(stores.db, model=model).encoder_id)

    inputs = features.of_listing(stores, listing, encoder)
    found = classifier.probabilities(heads.load(stores, model), inputs)

    said = [model.class_names[place] for place in found.argmax(axis=1).tolist()]
    table = pa.table(
        {
            "sample_id": listing.column("sample_id"),
            "class_name": listing.column("class_name"),
            "predicted": pa.array(said, pa.string()),
            **{f"p:{name}": pa.array(found[:, place]) for place, name in enumerate(model.class_names)},
        }
    )
    key = f"inference/{model.weights_sha256[:16]}-{scenario.listing_sha256[:16]}.parquet"
    stores.objects.write(key, tables.to_bytes(table))
    inference = InferenceSet(model_id=model.id or 0, scenario_id=scenario.id or 0, predictions_key=key)
    stores.db.add(inference)
    stores.db.flush()
    return inference


def _measured(predictions: Predictions) -> dict[str, object]:
    """Metrics as JSON: over all, by class, and the confusion matrix."""
    names = predictions.class_names
    found = metrics.scores(predictions.targets, predictions.predicted, classes=len(names))
    table = metrics.confusion(predictions.targets, predictions.predicted, classes=len(names))
    return {
        "samples": len(predictions.targets),
        "accuracy": found.accuracy,
        "macro_f1": found.macro_f1,
        "class_names": names,
        "confusion": table.tolist(),
        "classes": {
            name: {
                "precision": float(found.precision[place]),
                "recall": float(found.recall[place]),
                "f1": float(found.f1[place]),
                "support": int(found.support[place]),
            }
            for place, name in enumerate(names)
        },
    }


def _predictions_of(stores: Stores, model: ModelVersion, scenario: Scenario) -> Predictions:
    inference = runs.find_inference(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
    if inference is None:
        raise BadInput(
            f"model '{model.name}' was not evaluated on '{scenario.name}'; do so with: "
            f"dipnet evaluate {model.name} --scenario {scenario.name}"
        )
    return read_predictions(stores, inference)


def _aligned(before: Predictions, after: Predictions) -> tuple[list[str], NDArray[np.int64], list[NDArray[np.int64]]]:
    """Both models' answers in one list of class names. Raises Incompatible when the samples differ."""
    if before.sample_ids != after.sample_ids:
        raise Incompatible("the two models were evaluated on different samples; evaluate both on the same scenario")
    class_names = sorted({*before.class_names, *after.class_names})

    def shared(side: Predictions, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray([class_names.index(name) for name in side.class_names], dtype=np.int64)[places]

    predicted = [shared(before, before.predicted), shared(after, after.predicted)]
    return class_names, shared(before, before.targets), predicted


def _delta_row(comparison_id: int, delta: metrics.Delta, class_names: Sequence[str]) -> MetricDelta:
    return MetricDelta(
        comparison_id=comparison_id,
        class_name=class_names[delta.target] if delta.target >= 0 else "",
        metric=delta.metric,
        before=delta.before,
        after=delta.after,
        low=delta.low,
        high=delta.high,
    )


def _interval(stores: Stores, comparison_id: int, class_name: str, metric: str) -> tuple[float, float]:
    """A stored interval; from −∞ to ∞ when the class does not occur in the scenario."""
    for delta in runs.deltas_of(stores.db, comparison_id=comparison_id):
        if (delta.class_name, delta.metric) == (class_name, metric):
            return delta.low, delta.high
    return -math.inf, math.inf


def _move(stores: Stores, issue: Issue, verdict: Verdict) -> None:
    """A passed gate resolves the issue; any other sends it back to collecting."""
    campaigns.advance_issue(stores.db, issue=issue, target=IssueState.RETRAINING)
    target = IssueState.RESOLVED if verdict is Verdict.PASS else IssueState.COLLECTING
    campaigns.advance_issue(stores.db, issue=issue, target=target)
