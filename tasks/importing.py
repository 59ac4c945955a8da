"""Predictions of models that are elsewhere: checked row by row, and stored whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlmodel import select

from models.corpus import Corpus, Shard
from models.elements import Place, place_of
from models.errors import BadInput
from models.learning import DatasetVersion, InferenceSet, ModelVersion, Scenario, TrainingRun
from models.outcomes import Imported, Problem
from models.retraining import PredictionsPlan
from storage import runs, tables
from storage.objects import verified
from storage.stores import Stores, alone, open_stores
from tasks import answers
from tasks.answers import AnswerFile, Samples
from tasks.compute import checking_predictions as checking
from tasks.learning import environment
from tasks.preparing import require_own_name
from tasks.sources import open_source
from tasks.steps import step

ADVICE = {
    checking.MISSING: "predict every sample of the scenario",
    checking.OTHER: "leave these rows out, or say --allow-extra",
    checking.CONTRADICTORY: "keep one row a sample",
    checking.NOT_A_NUMBER: "give every class a probability",
    checking.INFINITE: "give probabilities, not logits",
    checking.NEGATIVE: "give probabilities, not logits",
    checking.UNNORMALISED: "give probabilities that add up to 1, or say --normalise",
    checking.ZERO: "give probabilities that add up to 1",
    checking.UNKNOWN_CLASS: "use the class names of the scenario",
    checking.NO_ANSWER: "name a class in every row",
    checking.NOT_MOST_PROBABLE: "leave the class out, or correct it",
}


class Refused(BadInput):
    """A file of predictions that is not taken, and all that is wrong with it."""

    def __init__(self, report: Imported, file: str) -> None:
        wrong = [problem for problem in report.problems if not problem.allowed]
        told = "; ".join(f"{problem.rows:,} {problem.kind}" for problem in wrong)
        super().__init__(f"'{file}' was not taken: {told}; {ADVICE[wrong[0].kind]}")
        self.report = report


class Wanted(NamedTuple):
    """The scenarios that a file answers for, and all their samples."""

    scenarios: list[Scenario]
    listings: list[pa.Table]
    places: list[NDArray[np.int64]]  # of each scenario's rows among the samples
    samples: Samples


@step()
def import_predictions(plan: PredictionsPlan) -> Imported:
    """Take a model's predictions from a file; the same file under the same name changes nothing.

    Raises Refused, with everything that is wrong by kind, when anything is that the plan does not allow, and BadInput for a
    name such as champion.
    """
    require_own_name(plan.model)
    path = Path(plan.file).expanduser()
    with alone(f"fit-{plan.model}"), open_stores() as stores:
        wanted = _wanted(stores, plan.scenarios)
        known = _known_classes(stores, wanted)
        with answers.opened(path, known) as file:
            stores.db.commit()  # nobody waits for the database while the file is read
            taken = answers.checked(file, wanted.samples, known)
            report = _report(plan, file, wanted, taken)
            if not report.stored:
                raise Refused(report, plan.file)
            with path.open("rb") as handle:
                sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
            model, reused = _model(stores, plan, sha256, _classes_of(file, taken, known))
            added = [
                _store(stores, model, wanted, number, answers_of)
                for number, answers_of in enumerate(_tables(file, taken, wanted, known))
            ]
    return report.model_copy(update={"version": model.version, "reused": reused and not any(added)})


def _wanted(stores: Stores, names: Sequence[str]) -> Wanted:
    """The scenarios' samples, each once, and the names that a file may give them."""
    scenarios = [runs.get_scenario(stores.db, name=name) for name in dict.fromkeys(names)]
    listings = [
        tables.from_bytes(verified(stores.objects, scenario.listing_key, scenario.listing_sha256))
        for scenario in scenarios
    ]
    found: dict[str, tuple[int, str, int | None]] = {}
    places = []
    for listing in listings:
        columns = [listing.column(name).to_pylist() for name in ("sample_id", "uri", "shard_id")]
        for sample_id, uri, shard_id in zip(*columns, strict=True):
            found.setdefault(sample_id, (len(found), uri, shard_id))
        places.append(np.asarray([found[sample_id][0] for sample_id in columns[0]], dtype=np.int64))
    prefixes = _prefixes(stores, {shard_id for _, _, shard_id in found.values() if shard_id is not None})
    uris = [uri for _, uri, _ in found.values()]
    keys = [_key(uri, prefixes.get(shard_id)) for _, uri, shard_id in found.values()]
    return Wanted(scenarios, listings, places, Samples(list(found), uris, keys))


def _key(uri: str, prefix: str | None) -> str:
    """What a person calls an image: its file below the corpus's prefix, with a tar's member and with a box."""
    if prefix is None:
        return uri
    place = place_of(uri)
    file = place.object_uri.removeprefix(f"{prefix}/") + (f"/{place.member}" if place.member else "")
    return Place(file, box=place.box).uri


def _prefixes(stores: Stores, shard_ids: set[int]) -> dict[int | None, str]:
    """The prefix that each shard's images lie under; of a tar or a list, the folder that it is in."""
    known = stores.db.exec(select(Corpus)).all()
    corpora = {corpus.id: open_source(stores, corpus.prefix).store.prefix for corpus in known}
    shards = [stores.db.get(Shard, shard_id) for shard_id in shard_ids]
    return {shard.id: corpora[shard.corpus_id] for shard in shards if shard is not None}


def _known_classes(stores: Stores, wanted: Wanted) -> list[str]:
    """Class names of the scenarios and of every dataset version."""
    names = {name for listing in wanted.listings for name in listing.column("class_name").to_pylist()}
    for class_names in stores.db.exec(select(DatasetVersion.class_names)).all():
        names |= set(class_names)
    return sorted(names)


def _report(plan: PredictionsPlan, file: AnswerFile, wanted: Wanted, taken: checking.Taken) -> Imported:
    """Everything that was found, by kind, with the first examples."""
    allowed = {checking.REPEATED}
    allowed |= {checking.OTHER} if plan.allow_extra else set()
    allowed |= {checking.UNNORMALISED} if plan.normalise else set()
    keys = file.texts(file.key)

    def examples(finding: checking.Finding) -> list[str]:
        if finding.kind == checking.MISSING:
            return [wanted.samples.named(file.key)[place] for place in finding.first]
        return [f"row {place + 1}: {keys[place].as_py()}" for place in finding.first]

    problems = [
        Problem(kind=one.kind, rows=one.rows, allowed=one.kind in allowed, examples=examples(one))
        for one in taken.findings
    ]
    if file.unknown:
        examples_ = [f"column {name}" for name in file.unknown[: checking.EXAMPLES]]
        problems.append(Problem(kind=checking.UNKNOWN_CLASS, rows=file.rows, allowed=False, examples=examples_))
    return Imported(
        model=plan.model,
        stored=all(problem.allowed for problem in problems),
        rows=file.rows,
        scenarios={one.reference: one.samples for one in wanted.scenarios},
        probabilities=len(file.shares),
        ignored=file.ignored,
        problems=problems,
    )


def _classes_of(file: AnswerFile, taken: checking.Taken, known: Sequence[str]) -> list[str]:
    """The classes that the file speaks of."""
    said = {known[place] for place in np.unique(taken.predicted).tolist() if place >= 0}
    return sorted({*file.shares, *said})


def _tables(file: AnswerFile, taken: checking.Taken, wanted: Wanted, known: Sequence[str]) -> Sequence[pa.Table]:
    return [answers.table_of(file, taken, places, known, ids=wanted.samples.ids) for places in wanted.places]


def _model(stores: Stores, plan: PredictionsPlan, sha256: str, class_names: list[str]) -> tuple[ModelVersion, bool]:
    """The model version of this name and content, made when it is new, and whether it was there."""
    parts = [plan.model, "imported", sha256, plan.normalise]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    found = runs.find_training(stores.db, key=key)
    if found is not None:
        return found[1], True
    parameters = {"file": Path(plan.file).name, "sha256": sha256, "normalise": plan.normalise}
    training = TrainingRun(key=key, trainer="imported", parameters=parameters, environment=environment())
    stores.db.add(training)
    stores.db.flush()
    model = ModelVersion(
        training_run_id=training.id or 0,
        name=plan.model,
        version=runs.next_version(stores.db, name=plan.model),
        weights_key="",
        weights_sha256=key,
        class_names=class_names,
    )
    stores.db.add(model)
    stores.db.flush()
    return model, False


def _store(stores: Stores, model: ModelVersion, wanted: Wanted, number: int, said: pa.Table) -> bool:
    """Keep the answers for one scenario; whether they are new."""
    scenario, listing = wanted.scenarios[number], wanted.listings[number]
    if runs.find_inference(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0) is not None:
        return False
    key = f"inference/{model.weights_sha256[:16]}-{scenario.listing_sha256[:16]}.parquet"
    table = said.add_column(1, "class_name", listing.column("class_name"))
    stores.db.add(
        InferenceSet(
            model_id=model.id or 0,
            scenario_id=scenario.id or 0,
            predictions_key=key,
            predictions_sha256=stores.objects.write(key, tables.to_bytes(table)),
            source="imported",
        )
    )
    stores.db.flush()
    return True
