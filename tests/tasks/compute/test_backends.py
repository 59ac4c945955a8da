"""Every backend gives fp32's vectors, and one that cannot run here says why."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from tasks.compute import onnx_backend, speed
from tasks.compute.backends import TowerEncoder, encoder_on
from tasks.compute.crew import cores, workers
from tasks.compute.encoder import BACKENDS, EncoderError, Tower
from tasks.compute.open_clip_encoder import open_clip_tower
from tasks.compute.speed import Measured
from tasks.compute.torchvision_encoder import torchvision_tower

CLIP = Path(__file__).parents[3] / "deploy" / "demo" / "clip"


@pytest.fixture(scope="module")
def tower() -> Tower:
    return open_clip_tower(str(CLIP))


@pytest.fixture(scope="module")
def plain(tower: Tower) -> TowerEncoder:
    return encoder_on(tower, backend="torch-fp32", device="cpu")


@pytest.fixture(scope="module")
def int8(tower: Tower) -> TowerEncoder:
    return encoder_on(tower, backend="onnx-int8", device="cpu")


def pixels(count: int = 19) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return speed.scenes(count, 28, 28, seed=1)


@pytest.mark.parametrize("backend", ["torch-bf16", "torch-fp16", "onnx-fp32"])
def test_vectors_of_a_backend_are_those_of_fp32(tower: Tower, plain: TowerEncoder, backend: str) -> None:
    found = encoder_on(tower, backend=backend, device="cpu")
    vectors = found.encode_pixels(pixels())
    assert (found.backend, vectors.dtype, vectors.shape) == (backend, np.float32, (19, 64))
    assert (vectors * plain.encode_pixels(pixels())).sum(axis=1).min() >= 0.999
    np.testing.assert_array_equal(found.encode_pixels(pixels()), vectors)
    np.testing.assert_array_equal(found.encode_texts(["a shoe"]), plain.encode_texts(["a shoe"]))


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_network_gives_the_vectors_of_fp32(tower: Tower, plain: TowerEncoder) -> None:
    found = encoder_on(tower, backend="compile-fp32", device="cpu")
    for count in (19, 3, 40):
        vectors, expected = found.encode_pixels(pixels(count)), plain.encode_pixels(pixels(count))
        np.testing.assert_allclose(vectors, expected, atol=1e-4)


def test_compiling_without_a_compiler_says_what_to_install(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EncoderError, match=r"needs a C\+\+ compiler; install g\+\+, or set DIPNET_BACKEND=torch-fp32"):
        encoder_on(tower, backend="compile-bf16", device="cpu")


def test_int8_keeps_the_vectors_and_an_image_knows_no_neighbours(int8: TowerEncoder, plain: TowerEncoder) -> None:
    vectors = int8.encode_pixels(pixels())
    assert (vectors * plain.encode_pixels(pixels())).sum(axis=1).min() >= 0.999
    assert not np.array_equal(vectors, plain.encode_pixels(pixels()))
    alone = np.concatenate([int8.encode_pixels(one[None]) for one in pixels()])
    np.testing.assert_array_equal(vectors, alone)


def test_what_was_exported_is_kept_under_a_name_of_its_spec(tower: Tower, int8: TowerEncoder) -> None:
    kept: dict[str, bytes] = {}

    def keep(name: str, make: object) -> bytes:
        assert callable(make)
        return kept.setdefault(name, kept[name] if name in kept else make())

    first = encoder_on(tower, backend="onnx-int8", device="cpu", keep=keep)
    assert list(kept) == [f"{tower.spec.key}-onnx-int8"]
    assert len(kept[f"{tower.spec.key}-onnx-int8"]) < 1_300_000  # of 0.8 million weights
    np.testing.assert_array_equal(first.encode_pixels(pixels(3)), int8.encode_pixels(pixels(3)))
    kept[f"{tower.spec.key}-onnx-int8"] = b"something else"
    with pytest.raises(EncoderError, match="ONNX Runtime does not load the network"):
        encoder_on(tower, backend="onnx-int8", device="cpu", keep=keep)


def test_a_network_of_convolutions_is_not_quantised(tmp_path: Path) -> None:
    save_file(models.squeezenet1_1().state_dict(), tmp_path / "weights.safetensors")
    backbone = torchvision_tower(f"torchvision/squeezenet1_1/{tmp_path / 'weights.safetensors'}")
    with pytest.raises(EncoderError, match="no matrix products to quantise"):
        encoder_on(backbone, backend="onnx-int8", device="cpu")


def test_a_product_in_int8_is_nearly_the_product() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 32))

    class Rows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network(pixels.flatten(1).float() / 255)

    images = speed.scenes(1, 4, 8)
    model = onnx_backend.exported(Rows().eval(), (4, 8), rows=1)
    run = onnx_backend.onnx_run(onnx_backend.serialised(onnx_backend.quantised(model)))
    with torch.inference_mode():
        exact = Rows()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run(images), exact, atol=0.02)


@pytest.mark.parametrize(
    ("backend", "device", "says"),
    [
        ("torch-int3", "cpu", "unknown backend 'torch-int3'; there are: auto, torch-fp32, torch-bf16"),
        ("onnx-int8", "cuda", "runs on a CPU; set DIPNET_DEVICE=cpu"),
    ],
)
def test_an_impossible_backend_says_what_is_possible(tower: Tower, backend: str, device: str, says: str) -> None:
    with pytest.raises(EncoderError, match=says):
        encoder_on(tower, backend=backend, device=device)


def test_workers_have_a_core_each_and_leave_other_threads_alone() -> None:
    before = torch.get_num_threads()
    assert len(set(workers().map(lambda _: 1, range(4)))) == 1
    assert torch.get_num_threads() == before
    assert workers()._max_workers == cores()


def test_backends_are_compared_and_the_fastest_of_the_same_vectors_wins(tower: Tower, plain: TowerEncoder) -> None:
    def build(backend: str) -> TowerEncoder:
        if backend == "compile-fp32":
            raise EncoderError("no compiler here")
        return encoder_on(tower, backend=backend, device="cpu")

    found = speed.compare(plain, build, ["torch-fp32", "compile-fp32", "torch-bf16"], seconds=0.01)
    assert [one.backend for one in found] == ["torch-fp32", "compile-fp32", "torch-bf16"]
    assert found[0].cosine == found[0].gain == 1.0
    assert found[1] == Measured("compile-fp32", reason="no compiler here")
    assert found[2].cosine >= 0.999
    assert all(one.rate > 0 for one in found[::2])


@pytest.mark.parametrize(
    ("gain", "reason", "chosen"),
    [(2.0, "", "torch-bf16"), (1.04, "", "torch-fp32"), (3.0, "its vectors differ", "torch-fp32")],
)
def test_fp32_is_left_only_for_a_gain(gain: float, reason: str, chosen: str) -> None:
    measured = [Measured("torch-fp32", 10.0, 1.0, 1.0), Measured("torch-bf16", 10.0 * gain, gain, 0.9, reason)]
    assert speed.fastest(measured) == chosen


def test_scenes_are_the_same_every_time_and_no_two_alike() -> None:
    scenes = speed.scenes(4, 32, 48)
    np.testing.assert_array_equal(scenes, speed.scenes(4, 32, 48))
    assert scenes.shape == (4, 32, 48, 3)
    assert len({one.tobytes() for one in scenes}) == 4
    assert scenes.std() > 30
    assert set(BACKENDS) >= {"torch-fp32", "onnx-int8"}
