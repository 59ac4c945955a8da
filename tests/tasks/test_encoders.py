"""Which backend runs is asked for, or known, or found out where it is worth it."""

import json
from pathlib import Path

import pytest

from models.errors import BadInput
from models.settings import load_settings
from storage.remembered import Remembered
from tasks import encoders
from tasks.compute import speed
from tasks.compute.encoder import EncoderError
from tasks.compute.speed import Measured

FOUND = [Measured("torch-fp32", 10.0, 1.0, 1.0), Measured("onnx-int8", 25.0, 2.5, 0.9995)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dipnet"


def remember(measured: list[Measured]) -> None:
    settings = load_settings()
    key = encoders.load_encoder(settings.encoder, settings.device).spec.key
    facts = {"measured": [one._asdict() for one in measured]}
    encoders.machine("cpu").keep_facts(encoders.FACTS.format(key), facts)


def choose(images: int, **settings: object) -> str:
    chosen = load_settings(device="cpu", **settings)
    return encoders.choose_backend(chosen.encoder, chosen, images=images)


def test_few_images_are_not_worth_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "compare", lambda *_: pytest.fail("compared"))
    assert choose(1_000) == "torch-fp32"


def test_many_images_are_and_what_was_found_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []
    monkeypatch.setattr(speed, "compare", lambda plain, build, backends: compared.append(backends) or FOUND)
    assert choose(1_000_000_000) == "onnx-int8"
    assert choose(1_000_000_000) == choose(1) == "onnx-int8"
    assert len(compared) == 1
    assert "torch-fp16" not in compared[0]  # type: ignore[operator]


def test_what_is_asked_for_goes_before_what_is_known() -> None:
    remember(FOUND)
    assert choose(1, backend="torch-bf16") == "torch-bf16"
    assert choose(1) == "onnx-int8"


def test_a_backend_that_there_is_not_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadInput, match="unknown backend 'gpu'; there are: auto, torch-fp32"):
        choose(1, backend="gpu")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"measured": [{"speed": 1}]}', b'{"measured": [[]]}', b"\xff"])
def test_damaged_findings_are_forgotten(cache: Path, damage: bytes) -> None:
    remember(FOUND)
    [file] = cache.glob("machines/*/speed-*.json")
    file.write_bytes(damage)
    assert choose(1) == "torch-fp32"


def test_findings_say_what_machine_they_are_of(cache: Path) -> None:
    remember(FOUND)
    [file] = cache.glob("machines/*/speed-*.json")
    about = json.loads(file.read_text())["about"]
    assert about[2] == "cpu"
    assert any(part.startswith("onnxruntime") for part in about)


def test_another_machine_has_findings_of_its_own(cache: Path) -> None:
    here, there = Remembered(("this", "2")), Remembered(("that", "2"))
    here.keep_facts("speed", {"rate": 1})
    assert (here.facts("speed") or {})["rate"] == 1
    assert there.facts("speed") is None


def test_a_file_is_made_once_and_made_again_when_it_is_damaged(cache: Path) -> None:
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b"a network"

    here = Remembered(("this",))
    assert [here.file("network", make) for _ in range(3)] == [b"a network"] * 3
    assert len(made) == 1
    [file] = cache.glob("machines/*/network")
    file.write_bytes(file.read_bytes()[:-1] + b"X")
    assert here.file("network", make) == b"a network"
    assert len(made) == 2
    assert not list(cache.rglob("*.partial"))


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    here = Remembered(("this",))
    here.keep_facts("speed", {"rate": 1})
    assert here.facts("speed") is None
    assert here.file("network", lambda: b"made") == b"made"


def test_words_for_an_encoder_without_any_are_bad_input() -> None:
    class Wordless:
        def encode_texts(self, texts: object) -> object:
            raise EncoderError("knows no words; search by image or exemplar")

    with pytest.raises(BadInput, match="search by image"):
        encoders.encode_words(Wordless(), ["a dog"])  # type: ignore[arg-type]


def test_an_encoder_is_loaded_once() -> None:
    name = load_settings().encoder
    assert encoders.load_encoder(name, "cpu") is encoders.load_encoder(name, "cpu", "torch-fp32")
    assert encoders.load_encoder(name, "auto") is encoders.load_encoder(name, encoders.resolve_device("auto"))
    with pytest.raises(BadInput, match="unknown encoder 'nothing'"):
        encoders.load_encoder("nothing", "cpu")
