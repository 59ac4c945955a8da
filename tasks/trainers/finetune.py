"""Trainer `finetune`: a torchvision network on pixels, taken up after a kill at the epoch that it had come to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torchvision
from numpy.typing import NDArray

from models.errors import BadInput, CorruptData, NotFound, Unavailable
from models.learning import DatasetVersion, ModelVersion, TrainingRun
from models.retraining import FinetuneOptions, RetrainPlan
from storage.objects import verified
from storage.stores import Stores
from tasks import pixels
from tasks.compute import classifier, finetuning, network
from tasks.compute.encoder import EncoderError, resolve_device
from tasks.compute.finetuning import Recipe, Rows, Training
from tasks.compute.network import NetworkError, Shape
from tasks.steps import counting
from tasks.trainers.protocol import Answers, Job, Trained, Trainer, checkpoint_key, watchable

ASIDE = 0.1  # share of the groups that stop training early, where there is no development split
AT_ONCE_BYTES = 500_000_000  # pixels of evaluation images that are held at once


class Data(NamedTuple):
    """What is learnt from and what is watched."""

    train: Rows
    watched: Rows | None
    unreadable: dict[str, int]
    notes: list[str]


def _inputs(_stores: Stores, plan: RetrainPlan, _dataset: DatasetVersion) -> dict[str, Any]:
    """The options, and which weights it starts from. Raises BadInput for a backbone that is none, before any work."""
    options = plan.trainer.finetune
    try:
        network.require_backbone(options.backbone)
    except NetworkError as error:
        raise BadInput(str(error)) from None
    return {**options.model_dump(), "weights": _name_of_weights(options)}


def _fit(stores: Stores, job: Job) -> Trained:
    options = job.plan.trainer.finetune
    device = _device(stores)
    data = _data(stores, job)
    weights = _weights(options)
    shape = network.shape_of(
        options.backbone, classes=len(job.dataset.class_names), image_size=options.image_size, weights=weights
    )
    try:
        with network.quiet_torch(device):
            torch.manual_seed(finetuning.seed_of(job.plan.seed, 0))
            loaded = network.with_weights(shape, weights)
    except NetworkError as error:
        raise BadInput(str(error)) from None
    training = Training(loaded.network, data.train, data.watched, _recipe(job), device=device)

    notes = [*data.notes, *loaded.notes, *_run(stores, job, training)]

    data_bytes = network.to_bytes(training.finish())
    return Trained(
        weights_key=job.weights_key,
        sha256=stores.objects.write(job.weights_key, data_bytes),
        parameters={**_inputs(stores, job.plan, job.dataset), "network": shape._asdict()},
        history=training.history,
        environment={
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        },
        unreadable=data.unreadable,
        notes=[*notes, f"ended: {training.ended}", f"kept: epoch {training.best_epoch}"],
    )


def _run(stores: Stores, job: Job, training: Training) -> list[str]:
    """Every epoch that is left, each followed by a checkpoint, put in place whole. Returns what is worth saying."""
    key = checkpoint_key(job.key)
    notes = []
    try:
        training.resume(stores.objects.read(key))
    except NotFound:
        pass
    except finetuning.Broken as problem:
        notes.append(f"the checkpoint was not used ({problem}); training began anew")
    epochs = job.plan.trainer.finetune.epochs
    stepped = counting(epochs * training.steps, f"training {job.plan.model}")
    stepped(len(training.history) * training.steps)
    while not training.ended:
        try:
            training.run_epoch(stepped)
        except FloatingPointError as error:
            raise BadInput(f"training does not converge ({error}); lower the learning rate") from None
        except torch.OutOfMemoryError:
            raise BadInput("the device's memory is too small; lower the batch size or the image size") from None
        stores.objects.write(key, training.checkpoint())
    return notes


def _recipe(job: Job) -> Recipe:
    options = job.plan.trainer.finetune.model_dump()
    fields = {name: options[name] for name in Recipe._fields if name in options}
    return Recipe(classes=len(job.dataset.class_names), seed=job.plan.seed, **fields)


def _data(stores: Stores, job: Job) -> Data:
    """Pixels of the train rows, and of those that stop it early: the development split, or a share that is set aside."""
    options, train = job.plan.trainer.finetune, job.train
    watched, notes = watchable(job)
    if not watched.num_rows and options.patience:
        train, watched = set_aside(train, ASIDE)
        notes.append(f"no development data: {watched.num_rows} train images were set aside to stop early")
    rows, counted = _rows(stores, job, train)
    seen, counted_watched = _rows(stores, job, watched)
    if len(rows.targets) < 2 or len(np.unique(rows.targets)) < 2:
        raise BadInput(
            f"{len(rows.targets)} readable images of {len(np.unique(rows.targets))} classes are not enough to train on "
            f"({counted or 'none was unreadable'}); restore the files, or add labels"
        )
    unreadable = {
        reason: counted.get(reason, 0) + counted_watched.get(reason, 0) for reason in {**counted, **counted_watched}
    }
    return Data(rows, seen if len(seen.targets) else None, unreadable, notes)


def set_aside(listing: pa.Table, share: float) -> tuple[pa.Table, pa.Table]:
    """Rows to learn from, and rows of about that share of the groups, chosen by the hash of the group alone."""
    groups = listing.column("group" if "group" in listing.column_names else "sample_id").to_pylist()
    ids = listing.column("sample_id").to_pylist()
    apart = [_hashed(group or sample_id) < share for group, sample_id in zip(groups, ids, strict=True)]
    mask = pa.array(apart, pa.bool_())
    kept = listing.filter(pc.invert(mask))
    if len(pc.unique(kept.column("class_name"))) < len(pc.unique(listing.column("class_name"))):
        return listing, listing.slice(0, 0)  # a class must not go: rather no early stop
    return kept, listing.filter(mask)


def _hashed(text: str) -> float:
    return int.from_bytes(hashlib.sha256(f"aside|{text}".encode()).digest()[:8]) / 2**64


def _rows(stores: Stores, job: Job, listing: pa.Table) -> tuple[Rows, dict[str, int]]:
    found = pixels.of_listing(stores, listing, size=job.plan.trainer.finetune.image_size)
    targets = classifier.as_targets(listing.column("class_name").to_pylist(), job.dataset.class_names)
    if not found.reasons:
        return Rows(found.images, targets), {}
    return Rows(found.images[found.readable], targets[found.readable]), found.counted


def _device(stores: Stores) -> str:
    try:
        return resolve_device(stores.settings.device)
    except EncoderError as error:
        raise BadInput(str(error)) from None


def _name_of_weights(options: FinetuneOptions) -> str:
    """What says which weights they are: a file's hash, or torchvision's own name of them."""
    if options.weights == "none":
        return "none"
    if options.weights == "torchvision":
        return f"torchvision:{_default_weights(options.backbone).url}"
    return f"sha256:{hashlib.sha256(_read_file(options.weights)).hexdigest()}"


def _default_weights(backbone: str) -> Any:
    return torchvision.models.get_model_weights(backbone).DEFAULT


def _read_file(name: str) -> bytes:
    try:
        return Path(name).expanduser().read_bytes()
    except OSError as error:
        raise BadInput(
            f"weights '{name}' cannot be read ({error.strerror}); give a file of safetensors or of a torch state dict, "
            "torchvision, or none"
        ) from None


def _weights(options: FinetuneOptions) -> dict[str, torch.Tensor] | None:
    """The tensors to start from. Raises Unavailable when torchvision's cannot be downloaded."""
    if options.weights == "none":
        return None
    if options.weights == "torchvision":
        try:
            return dict(_default_weights(options.backbone).get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise Unavailable(
                f"torchvision's weights of '{options.backbone}' cannot be downloaded ({error}); fetch "
                f"{_default_weights(options.backbone).url} elsewhere and give the file as weights"
            ) from None
    try:
        return network.read_state(_read_file(options.weights))
    except NetworkError as error:
        raise BadInput(f"weights '{options.weights}' cannot be used: {error}") from None


def _predict(stores: Stores, model: ModelVersion, training: TrainingRun, listing: pa.Table) -> Answers:
    """Softmax of the network. Of an image that cannot be read nothing is known: every class is as probable."""
    shape = Shape(**training.parameters["network"])
    try:
        tensors = network.read_state(verified(stores.objects, model.weights_key, model.weights_sha256))
        net = network.with_weights(shape, tensors).network
    except NetworkError as error:
        raise CorruptData(f"model '{model.reference}' cannot be loaded: {error}") from None
    device = _device(stores)
    at_once = max(1, AT_ONCE_BYTES // (3 * shape.image_size**2))
    parts: list[NDArray[np.float32]] = [np.zeros((0, shape.classes), np.float32)]
    reasons: dict[int, str] = {}
    for start in range(0, listing.num_rows, at_once):
        seen = pixels.of_listing(stores, listing.slice(start, at_once), size=shape.image_size)
        parts.append(network.probabilities(net, seen.images, device=device))
        parts[-1][list(seen.reasons)] = 1 / shape.classes
        reasons |= {start + row: reason for row, reason in seen.reasons.items()}
    found = np.concatenate(parts)
    return Answers(found.argmax(axis=1).astype(np.int64), found, reasons)


TRAINER = Trainer(sees_vectors=False, inputs=_inputs, fit=_fit, predict=_predict)
