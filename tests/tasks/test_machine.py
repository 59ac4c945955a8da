"""What `dipnet doctor --encoder` measures, and what it expects of embedding."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from models.settings import load_settings
from tasks import encoders, machine
from tasks.compute import speed
from tasks.compute.speed import Measured

FOUND = [
    Measured("torch-fp32", 100.0, 1.0, 1.0),
    Measured("compile-fp32", reason="needs a C++ compiler"),
    Measured("onnx-int8", 250.0, 2.5, 0.9995),
]


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DIPNET_DEVICE", "cpu")
    monkeypatch.setenv("DIPNET_DECODERS", "1")
    monkeypatch.setenv("DIPNET_LABELER", "label-studio")
    monkeypatch.setattr(machine, "DECODE_SECONDS", 0.1)
    monkeypatch.setattr(machine, "SIZES", ((120, 90),))
    monkeypatch.setattr(speed, "compare", lambda *_: FOUND)


def doctor(*options: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["doctor", *options])
    return found.exit_code, found.stdout


def test_decoding_is_measured_with_the_processes_that_decode() -> None:
    settings = load_settings()
    row = machine.decode_rates(settings, encoders.load_encoder(settings.encoder, "cpu").frame, (120, 90))
    assert row["jpeg"] == "120×90"
    assert row["images_per_second"] > 10
    assert row["images_per_second_a_core"] > 10


@pytest.mark.parametrize(
    ("decoding", "shared", "rate", "bottleneck"),
    [(250.0, True, 125.0, "encoding"), (250.0, False, 250.0, "encoding"), (100.0, False, 100.0, "decoding")],
)
def test_stages_on_the_same_cores_take_turns(decoding: float, shared: bool, rate: float, bottleneck: str) -> None:
    found = machine.expected(FOUND[2], {"jpeg": "1×1", "images_per_second": decoding}, shared=shared)
    assert found["images_per_second"] == rate
    assert found["bottleneck"] == bottleneck
    assert found["hours_a_million"] == round(1e6 / rate / 3600, 1)


def test_the_doctor_measures_an_encoder_for_scripts() -> None:
    code, told = doctor("--encoder", "default", "--json")
    found = json.loads(told)
    assert code == 0, [row for row in found["checks"] if row["ok"] is False]
    assert found["checks"][-1]["check"] == "encoder"
    assert found["machine"]["encoder"] == load_settings().encoder
    assert [row["backend"] for row in found["machine"]["backends"] if row["chosen"]] == ["onnx-int8"]
    assert found["machine"]["backends"][1]["detail"] == "needs a C++ compiler"
    rate = found["machine"]["decoding"][0]["images_per_second"]
    assert found["machine"]["expect"][0]["images_per_second"] == pytest.approx(1 / (1 / 250 + 1 / rate), abs=0.2)


def test_the_doctor_measures_an_encoder_for_people() -> None:
    code, told = doctor("--encoder", load_settings().encoder)
    assert code == 0
    assert "onnx-int8" in told
    assert "hours a million" in told


def test_an_encoder_that_cannot_be_had_is_a_line_and_an_exit_code() -> None:
    code, told = doctor("--encoder", "nothing", "--json")
    assert code == 1
    row = json.loads(told)[-1]
    assert (row["check"], row["ok"]) == ("encoder", False)
    assert "unknown encoder 'nothing'" in row["detail"]
