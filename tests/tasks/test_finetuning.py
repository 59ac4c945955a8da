"""Networks on pixels: fitted, found again, taken up after a kill, and honest about what they could not read."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
import torchvision

from models.errors import BadInput, Unavailable
from models.learning import DatasetVersion, ModelVersion, TrainingRun
from models.outcomes import Fitted
from models.retraining import FinetuneOptions, HeadOptions, RetrainPlan, TrainerPlan
from storage import runs, tables
from storage.stores import open_stores
from tasks import datasets, evaluating, learning, scenarios
from tasks.compute import finetuning
from tasks.predicting import read_predictions
from tasks.trainers import finetune
from tests.tasks.conftest import prepare
from tests.tasks.test_learning import split_dataset

TINY = "shufflenet_v2_x0_5"  # 0.3 M parameters: checkpoints of resnet18 are 180 MB


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads that wait for each other at every tiny layer are many times slower on a busy machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plan(model: str = "net", *, seed: int = 0, **options: Any) -> RetrainPlan:
    chosen = {"backbone": TINY, "image_size": 32, "epochs": 2, "batch_size": 16, "patience": 0, **options}
    trainer = TrainerPlan(name="finetune", finetune=FinetuneOptions(**chosen))
    return RetrainPlan(model=model, corpora=["train"], trainer=trainer, seed=seed)


def fit(wanted: RetrainPlan) -> Fitted:
    return learning.fit(datasets.freeze_dataset(wanted), wanted)


def training_of(name: str) -> tuple[ModelVersion, TrainingRun]:
    with open_stores() as stores:
        model = runs.get_model(stores.db, name=name)
        return model, runs.training_of(stores.db, model=model)


def test_a_network_learns_squares_from_bars_and_is_fitted_once(world: Path, house: Path) -> None:
    wanted = plan(epochs=20, learning_rate=0.01, augmentation="none")
    first = fit(wanted)
    assert (first.reused, first.version, first.samples) == (False, 1, 40)
    assert fit(wanted) == first.model_copy(update={"reused": True})
    assert fit(plan(epochs=20, learning_rate=0.01, augmentation="none", seed=1)).version == 2
    model, training = training_of("net@1")
    assert len(training.history) == 20
    assert {"python", "numpy", "torch", "torchvision", "scikit_learn", "device", "threads"} <= set(training.environment)
    assert training.parameters["backbone"] == TINY
    assert not list(house.rglob("checkpoint"))
    scenarios.freeze_scenario("dev", ["dev"])
    evaluating.evaluate("net@1", "dev")
    with open_stores() as stores:
        scenario = runs.get_scenario(stores.db, name="dev")
        inference = runs.find_inference(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
        assert inference is not None
        found = read_predictions(stores, inference)
    assert (found.predicted == found.targets).mean() > 0.8


WORK = """
import sys
from models.retraining import RetrainPlan
from tasks import learning
learning.fit(int(sys.argv[1]), RetrainPlan.model_validate_json(sys.argv[2]))
"""


def killed(dataset_id: int, wanted: RetrainPlan, house: Path, *, epochs: int, delay: float) -> bool:
    """Fit in a process of its own, and kill it so long after so many more epochs; whether it was still at work."""
    command = [sys.executable, "-c", WORK, str(dataset_id), wanted.model_dump_json()]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    seen: set[int] = set()
    deadline = time.monotonic() + 120
    while len(seen) < epochs and process.poll() is None and time.monotonic() < deadline:
        with suppress(FileNotFoundError):  # it was done
            seen |= {file.stat().st_mtime_ns for file in house.glob("models/*/checkpoint")}
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def kill_and_resume(house: Path, instants: list[tuple[int, float]], *, epochs: int) -> None:
    options: dict[str, Any] = {"epochs": epochs, "patience": 6, "augmentation": "strong", "balance": "sampling"}
    dataset_id = datasets.freeze_dataset(plan())
    learning.fit(dataset_id, plan("whole", **options))
    wanted = plan("killed", **options)
    cut = [killed(dataset_id, wanted, house, epochs=epochs, delay=delay) for epochs, delay in instants]
    assert any(cut)
    assert learning.fit(dataset_id, wanted).version == 1
    (whole, first), (resumed, second) = training_of("whole"), training_of("killed")
    assert resumed.weights_sha256 == whole.weights_sha256
    assert [row["loss"] for row in second.history] == [row["loss"] for row in first.history]
    assert not [note for note in second.environment["notes"] if "checkpoint" in note]
    assert not list(house.rglob("checkpoint"))
    with open_stores() as stores:
        assert [model.reference for model in runs.list_models(stores.db)] == ["whole@1", "killed@1"]


def test_a_network_that_was_killed_ends_with_the_same_bits(world: Path, house: Path) -> None:
    kill_and_resume(house, [(2, 0.02)], epochs=4)


@pytest.mark.kills
def test_a_network_that_was_killed_at_any_instant_ends_with_the_same_bits(world: Path, house: Path) -> None:
    generator = np.random.default_rng()
    instants = [(int(generator.integers(0, 3)), float(generator.uniform(0, 0.4))) for _ in range(5)]
    kill_and_resume(house, instants, epochs=12)


def test_a_corrupt_checkpoint_is_said_and_training_begins_anew(world: Path, house: Path) -> None:
    dataset_id = datasets.freeze_dataset(plan())
    learning.fit(dataset_id, plan("whole"))
    wanted = plan("torn", epochs=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning.Training, "finish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            learning.fit(dataset_id, wanted)
    (file,) = house.glob("models/*/checkpoint")
    file.write_bytes(file.read_bytes()[:-100])
    found = learning.fit(dataset_id, wanted)
    assert [note for note in found.notes if "the checkpoint was not used (its checksum differs)" in note]
    learning.fit(dataset_id, plan("again", epochs=3))
    assert training_of("torn")[0].weights_sha256 == training_of("again")[0].weights_sha256


def test_unreadable_images_are_counted_and_stop_neither_training_nor_evaluation(world: Path) -> None:
    train, dev = sorted((world / "images" / "train").glob("*.png")), sorted((world / "images" / "dev").glob("*.png"))
    dataset_id = datasets.freeze_dataset(plan())
    scenarios.freeze_scenario("dev", ["dev"])
    train[0].unlink()
    train[1].write_bytes(train[1].read_bytes() + b"more")
    dev[2].unlink()
    expected = {"missing": 2, "other bytes than were listed": 1}  # one of them is a development image
    found = learning.fit(dataset_id, plan())
    assert (found.samples, found.unreadable) == (40, expected)
    assert training_of("net")[1].environment["unreadable"] == expected
    evaluating.evaluate("net", "dev")
    with open_stores() as stores:
        scenario, model = runs.get_scenario(stores.db, name="dev"), runs.get_model(stores.db, name="net")
        inference = runs.find_inference(stores.db, model_id=model.id or 0, scenario_id=scenario.id or 0)
        assert inference is not None
        assert inference.unreadable == {"missing": 1}
        table = tables.from_bytes(stores.objects.read(inference.predictions_key))
    rows = [row for row in table.to_pylist() if row["unreadable"]]
    assert [(row["unreadable"], row["p:bar"], row["p:square"]) for row in rows] == [("missing", 0.5, 0.5)]


def test_without_development_data_a_share_is_set_aside_by_group_and_said(world: Path) -> None:
    found = learning.fit(split_dataset(train=60), plan(patience=2, epochs=3))
    assert any("train images were set aside to stop early" in note for note in found.notes)
    assert {"development_loss", "development_accuracy"} <= set(training_of("net")[1].history[0])
    listing = pa.table(
        {
            "sample_id": [str(n) for n in range(400)],
            "class_name": ["a", "b"] * 200,
            "group": [str(n // 4) for n in range(400)],
        }
    )
    kept, aside = finetune.set_aside(listing, 0.1)
    assert kept.num_rows + aside.num_rows == 400
    assert 10 <= aside.num_rows <= 80
    assert not set(kept.column("group").to_pylist()) & set(aside.column("group").to_pylist())
    again = finetune.set_aside(listing.take(np.arange(400)[::-1]), 0.1)[1]
    assert set(again.column("sample_id").to_pylist()) == set(aside.column("sample_id").to_pylist())


def test_development_images_of_a_class_that_is_not_learnt_are_left_out_of_early_stopping(
    world: Path, draw: Callable[..., Path]
) -> None:
    folder = draw("rings", 12, seed=78)
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("bar", "ring").replace("square", "ring"))
    prepare("rings", folder, "development")
    found = fit(plan())
    told = "12 development images are of classes that training does not have: left out of early stopping"
    assert found.notes[0] == told
    assert np.isfinite(training_of("net")[1].history[0]["development_loss"])
    head = RetrainPlan(model="head", corpora=["train"], trainer=TrainerPlan(head=HeadOptions(kind="mlp", hidden=8)))
    assert fit(head).notes == [told]


def test_development_images_of_unknown_classes_alone_are_as_none(world: Path) -> None:
    dataset_id = split_dataset(train=60)
    learning.fit(dataset_id, plan("without", patience=2))
    with open_stores() as stores:
        dataset = stores.db.get_one(DatasetVersion, dataset_id)
        listing = datasets.read_listing(stores, dataset)
        rings = listing.slice(0, 8).set_column(1, "class_name", pa.array(["ring"] * 8))
        at = listing.column_names.index("split")
        rings = rings.set_column(at, "split", pa.array(["development"] * 8))
        dataset.listing_sha256 = stores.objects.write(
            dataset.listing_key, tables.to_bytes(pa.concat_tables([listing, rings]))
        )
        dataset.learnt_hash = "with rings"
        stores.db.add(dataset)
    found = learning.fit(dataset_id, plan("with", patience=2))
    assert found.notes[0].startswith("8 development images are of classes that training does not have")
    assert "train images were set aside to stop early" in found.notes[1]
    assert training_of("with")[0].weights_sha256 == training_of("without")[0].weights_sha256


def test_weights_come_from_a_file_and_its_bytes_are_part_of_what_is_fitted(world: Path, tmp_path: Path) -> None:
    state = torchvision.models.resnet18(num_classes=5).state_dict()
    torch.save({"state_dict": {f"module.{name}": part for name, part in state.items()}}, tmp_path / "w.pt")
    first = fit(plan(backbone="resnet18", image_size=16, epochs=1, weights=str(tmp_path / "w.pt")))
    assert any("the head of 5 classes was dropped for one of 2" in note for note in first.notes)
    assert training_of("net")[1].parameters["network"]["small_stem"] is False  # the weights have the usual stem
    assert fit(plan(backbone="resnet18", image_size=16, epochs=1, weights=str(tmp_path / "w.pt"))).reused
    safetensors.torch.save_file(dict(torchvision.models.resnet18(num_classes=2).state_dict()), tmp_path / "w.pt")
    second = fit(plan(backbone="resnet18", image_size=16, epochs=1, weights=str(tmp_path / "w.pt")))
    assert (second.reused, second.version) == (False, 2)
    assert not any("head" in note for note in second.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet81"}, r"no classifier 'resnet81'; did you mean .*resnet"),
        ({"backbone": "deeplabv3_resnet50"}, "no classifier"),
        ({"backbone": "vit_b_16", "image_size": 50}, "cannot take images of 50 pixels"),
        ({"weights": "no-such-file.pt"}, "cannot be read"),
        ({"weights": "junk.pt"}, "neither safetensors nor a state dict"),
        ({"weights": "other.pt"}, r"the weights are not of 'shufflenet_v2_x0_5' \(.* and \d+ more\)"),
    ],
)
def test_what_cannot_be_trained_is_said_with_the_way_out(
    world: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "junk.pt").write_bytes(b"\x80\x04cposix\nsystem\n(S'touch /tmp/owned'\ntR.")
    torch.save(torchvision.models.squeezenet1_1(num_classes=2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(BadInput, match=message):
        fit(plan(**options))


def test_torchvisions_weights_that_cannot_be_downloaded_name_the_way_out(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    with pytest.raises(Unavailable, match=r"no route to host.*resnet18-.*\.pth elsewhere and give the file as weights"):
        fit(plan(backbone="resnet18", weights="torchvision"))
