"""Trainer `external`: the team's own training, which gets a dataset version and leaves predictions.

The program finds in {dataset}: `samples.parquet` (sample_id, class_name, split, group, uri; holdout rows without a class),
`evaluate.parquet` (sample_id, uri: what it must answer for) and `classes.json`. It leaves in {predictions} a Parquet file
with sample_id and class_name, or probabilities p:CLASS, or both. A uri is a path or s3://bucket/key; the part behind # says
which bytes of a tar (`#member=NAME&bytes=OFFSET+LENGTH`) and which box of the upright image (`#xywh=x,y,width,height`) it
is: models.elements.place_of reads it, and `dipnet dataset export --images copy` writes such images as files of their own.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.machinery import PathFinder
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import BadInput
from models.learning import DatasetVersion, ModelVersion, TrainingRun
from models.retraining import ExternalOptions, RetrainPlan
from models.states import Split
from storage import corpora, labels, runs, tables
from storage.objects import verified
from storage.stores import Stores
from tasks import answers, datasets, exporting
from tasks.answers import Samples
from tasks.compute import checking_predictions as checking
from tasks.trainers import running
from tasks.trainers.protocol import PROBABILITY, Answers, Job, Trained, Trainer

CALL = (
    "import functools, importlib, pathlib, sys; sys.path.insert(0, ''); "
    "found = functools.reduce(getattr, sys.argv[2].split('.'), importlib.import_module(sys.argv[1])); "
    "found(dataset=pathlib.Path(sys.argv[3]), predictions=pathlib.Path(sys.argv[4]), seed=int(sys.argv[5]))"
)
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")
HASHED_BYTES = 64_000_000
HARMLESS = {checking.MISSING, checking.OTHER, checking.REPEATED}


def _inputs(stores: Stores, plan: RetrainPlan, dataset: DatasetVersion) -> dict[str, Any]:
    """What is run, the files that it names, and what it is asked for. A time limit changes no result."""
    options = plan.trainer.external
    asked = hashlib.sha256("\n".join(sorted(_asked(stores, dataset))).encode()).hexdigest()
    return {"command": options.command, "function": options.function, "files": _files(options), "asked": asked}


def _files(options: ExternalOptions) -> dict[str, str]:
    """Hashes of the files that are named and of the modules that are run, by name: an edited program is another one.

    Of a module in a package it is every .py file of the package; what else a program imports is not looked into.
    """
    words = [part for word in options.command for part in (word, word.partition("=")[2]) if "{" not in part]
    found = {str(Path(word)): Path(word) for word in words if word}
    for module in _modules(options):
        found |= _sources(module.partition(".")[0])
    small = {name: file for name, file in found.items() if _is_file(file) and file.stat().st_size <= HASHED_BYTES}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in sorted(small.items())}


def _modules(options: ExternalOptions) -> list[str]:
    """Modules that are run: that of the function, and what follows -m."""
    words = options.command
    named = [after for word, after in pairwise(words) if word == "-m"] + [
        word[2:] for word in words if word[:2] == "-m"
    ]
    return [name for name in (options.function.partition(":")[0], *named) if MODULE.fullmatch(name)]


def _sources(name: str) -> dict[str, Path]:
    """The files of a top module or package by their path in it, found as Python finds it; nothing is imported.

    None of what is installed, such as torch of `python -m torch.distributed.run`: nobody edits that.
    """
    importlib.invalidate_caches()
    spec = PathFinder.find_spec(name, [str(Path.cwd()), *sys.path])
    if spec is None:
        return {}
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    places = folders or [Path(spec.origin or name)]
    if any(place.is_relative_to(sysconfig.get_path(kind)) for place in places for kind in INSTALLED):
        return {}
    files = [file for folder in folders for file in folder.rglob("*.py")] or places
    return {str(file.relative_to(place.parent)): file for place in places for file in files if _below(file, place)}


def _below(file: Path, place: Path) -> bool:
    return file.is_relative_to(place) and not any(part.startswith(".") for part in file.relative_to(place).parts)


def _is_file(file: Path) -> bool:
    try:
        return file.is_file() and os.access(file, os.R_OK)
    except (OSError, ValueError):
        return False


def _fit(stores: Stores, job: Job) -> Trained:
    options, asked = job.plan.trainer.external, _asked(stores, job.dataset)
    parameters = _inputs(stores, job.plan, job.dataset)
    stores.db.commit()  # nobody waits for the database while others train
    with tempfile.TemporaryDirectory(prefix="dipnet-external-") as name:
        folder = Path(name)
        predictions = folder / "predictions.parquet"
        command = _command(options, folder / "dataset", predictions, job.plan.seed)
        _export(job, asked, folder / "dataset")
        _run(stores, job, command, folder / "log.txt")
        taken, missing = _taken(job, predictions, asked)
    return Trained(
        weights_key="",
        sha256=stores.objects.write(job.predictions_key, tables.to_bytes(taken)),
        parameters={**parameters, "answered": taken.num_rows, "unanswered": missing},
        history=[],
        environment={"device": "external"},
        unreadable={},
        notes=[f"{missing} of {len(asked)} evaluation samples have no answer"] if missing else [],
        log_key=job.log_key,
    )


def _asked(stores: Stores, dataset: DatasetVersion) -> dict[str, str]:
    """Every sample that the model may be evaluated on, and where its image is: of scenarios, corpora and held-back rows."""
    held = [
        corpus
        for split in (Split.DEVELOPMENT, Split.HOLDOUT)
        for corpus in corpora.list_corpora(stores.db, split=split)
    ]
    found = {sample.id: sample.uri for _, sample in labels.labels_of_corpora(stores.db, corpora=held)} if held else {}
    listings = [
        tables.read(stores.objects, scenario.listing_key, scenario.listing_sha256)
        for scenario in runs.list_scenarios(stores.db)
    ]
    listing = datasets.read_listing(stores, dataset)
    listings.append(listing.filter(pc.not_equal(listing.column("split"), Split.TRAIN.value)))
    for one in listings:
        found |= dict(zip(one.column("sample_id").to_pylist(), one.column("uri").to_pylist(), strict=True))
    return found


def _command(options: ExternalOptions, dataset: Path, predictions: Path, seed: int) -> list[str]:
    """Program and arguments, the three places filled in. Raises BadInput for a program that is not there."""
    if options.function:
        if not FUNCTION.fullmatch(options.function):
            raise BadInput(f"'{options.function}' names no function; write MODULE:FUNCTION")
        module, _, name = options.function.partition(":")
        return [sys.executable, "-c", CALL, module, name, str(dataset), str(predictions), str(seed)]
    if not shutil.which(options.command[0]):
        raise BadInput(f"program '{options.command[0]}' is not found; give its path, or correct PATH")
    places = {"{dataset}": str(dataset), "{predictions}": str(predictions), "{seed}": str(seed)}
    return [re.sub(r"\{(dataset|predictions|seed)\}", lambda m: places[m[0]], part) for part in options.command]


def _export(job: Job, asked: dict[str, str], folder: Path) -> None:
    """What the program gets. What a holdout row shows is not said, so that nobody trains on it."""
    exporting.export_dataset(job.dataset.id or 0, folder, hide_labels=True)
    evaluate = pa.table({"sample_id": pa.array(asked, pa.string()), "uri": pa.array(asked.values(), pa.string())})
    (folder / "evaluate.parquet").write_bytes(tables.to_bytes(evaluate.sort_by("sample_id")))
    (folder / "classes.json").write_text(json.dumps(job.dataset.class_names))


def _run(stores: Stores, job: Job, command: Sequence[str], log: Path) -> None:
    """Run the training and keep its log, however it ends. Raises BadInput when it fails or takes too long."""
    minutes = job.plan.trainer.external.minutes
    ended = running.run(command, log, seconds=60 * minutes)
    stores.objects.write_file(job.log_key, log)
    if ended.timed_out or ended.code:
        how = f"was stopped after {minutes:g} minutes" if ended.timed_out else f"ended with code {ended.code}"
        raise BadInput(
            f"the external training {how}; its log is {stores.objects.uri(job.log_key)} and ends with:\n"
            f"{running.tail_of(log) or '(nothing was written)'}"
        )


def _taken(job: Job, predictions: Path, asked: dict[str, str]) -> tuple[pa.Table, int]:
    """The answers about what was asked, and how many samples have none. Raises BadInput for what cannot be used."""
    if not predictions.is_file() or predictions.is_symlink():
        raise BadInput("the external training left no predictions; it must write a Parquet file to {predictions}")
    known, ids = job.dataset.class_names, list(asked)
    with answers.opened(predictions, known) as file:
        if file.key != "sample_id":
            raise BadInput("the external training's predictions have no column sample_id; add it")
        taken = answers.checked(file, Samples(ids, [], []), known)
        wrong = [f"{one.rows:,} {one.kind}" for one in taken.findings if one.kind not in HARMLESS]
        wrong += [f"column {name} is of an unknown class" for name in file.unknown]
        if wrong:
            raise BadInput(
                f"the external training's predictions cannot be used: {'; '.join(wrong)}; correct the program"
            )
        rows = np.flatnonzero(taken.rows >= 0)
        if not len(rows):
            raise BadInput("the external training answered for none of the samples in evaluate.parquet; predict those")
        return answers.table_of(file, taken, rows, known, ids=ids), len(ids) - len(rows)


def _predict(stores: Stores, model: ModelVersion, training: TrainingRun, listing: pa.Table) -> Answers:
    """What it said when it was trained. Raises BadInput for samples that it said nothing about."""
    data = verified(stores.objects, f"models/{training.key}/predictions.parquet", model.weights_sha256)
    table = tables.from_bytes(data)
    rows = pc.index_in(listing.column("sample_id"), value_set=table.column("sample_id").combine_chunks())
    if rows.null_count:
        raise BadInput(
            f"model '{model.reference}' answered for {len(rows) - rows.null_count} of these {len(rows)} samples; train "
            "again, and have it predict every sample of evaluate.parquet"
        )
    taken = table.take(rows)
    predicted = pc.index_in(taken.column("predicted"), value_set=pa.array(model.class_names, pa.string()))
    scored = [name.removeprefix(PROBABILITY) for name in table.column_names if name.startswith(PROBABILITY)]
    shares = np.zeros((listing.num_rows, len(model.class_names)), np.float32)
    for name in scored:
        shares[:, model.class_names.index(name)] = taken.column(f"{PROBABILITY}{name}").to_numpy()
    return Answers(np.asarray(predicted.to_numpy(), dtype=np.int64), shares if scored else None)


TRAINER = Trainer(sees_vectors=False, inputs=_inputs, fit=_fit, predict=_predict, source="external")
