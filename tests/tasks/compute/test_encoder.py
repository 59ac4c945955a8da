"""Our vectors are open_clip's and torchvision's own, and an encoder that cannot be had says what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from tasks.compute.backends import TowerEncoder, encoder_on
from tasks.compute.encoder import EncoderError, resolve_device
from tasks.compute.open_clip_encoder import frame_of, open_clip_tower
from tasks.compute.torchvision_encoder import torchvision_tower
from tests.theirs import framed

CLIP = Path(__file__).parents[3] / "deploy" / "demo" / "clip"
TEXTS = ["a photo of a light dress", "an ankle boot", ""]
STORED = "22b8e74b55abf13eee409f775dd9864700e6f9c1034d771e55eedfd2bf40b105"  # as version 0.4.0 wrote it to databases


def load(name: str) -> TowerEncoder:
    return encoder_on(open_clip_tower(name), backend="torch-fp32", device="cpu")


@pytest.fixture(scope="module")
def encoder() -> TowerEncoder:
    return load(str(CLIP))


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    sizes = [(28, 28), (60, 40), (31, 90), (200, 200)]
    return [Image.fromarray(generator.integers(0, 256, (*size, 3)).astype(np.uint8)) for size in sizes]


def pixels_for(encoder: TowerEncoder) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([framed(picture, encoder.frame) for picture in pictures()])


def test_image_vectors_equal_open_clips_own(encoder: TowerEncoder) -> None:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{CLIP}", precision="fp32")
    model.eval()
    with torch.inference_mode():
        theirs = model.encode_image(torch.stack([transform(p) for p in pictures()]), normalize=True).numpy()
    ours = encoder.encode_pixels(pixels_for(encoder))
    assert ours.dtype == np.float32
    assert ours.shape == (4, encoder.spec.dim)
    assert (ours * theirs).sum(axis=1).min() >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0, atol=1e-5)


def test_text_vectors_equal_open_clips_own(encoder: TowerEncoder) -> None:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{CLIP}", precision="fp32")
    model.eval()
    with torch.inference_mode():
        theirs = model.encode_text(open_clip.get_tokenizer(f"local-dir:{CLIP}")(TEXTS), normalize=True).numpy()
    assert (encoder.encode_texts(TEXTS) * theirs).sum(axis=1).min() >= 0.9999


def test_a_standard_architecture_with_a_weights_file_equals_open_clips_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms("ViT-S-32-alt", precision="fp32")
    weights = tmp_path / "weights.pt"
    torch.save(model.state_dict(), weights)
    ours = load(f"ViT-S-32-alt/{weights}")
    with torch.inference_mode():
        theirs = model.eval().encode_image(transform(pictures()[3])[None], normalize=True).numpy()
    assert float((ours.encode_pixels(pixels_for(ours)[3:]) * theirs).sum()) >= 0.9999


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [48, (40, 56), (56, 40)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_frame_is_what_open_clips_transform_does(mode: str, size: Any, interpolation: str) -> None:
    settings = PreprocessCfg(size=size, resize_mode=mode, interpolation=interpolation, fill_color=77)
    transform = image_transform_v2(settings, is_train=False)
    frame = frame_of(vars(settings))
    for picture in pictures():
        theirs = picture
        for one in transform.transforms[:-2]:  # up to tensors, which are the encoder's part
            theirs = one(theirs)
        np.testing.assert_array_equal(framed(picture, frame), np.asarray(theirs))


def test_a_vector_does_not_depend_on_its_batch(encoder: TowerEncoder) -> None:
    pixels = pixels_for(encoder)
    alone = np.concatenate([encoder.encode_pixels(one[None]) for one in pixels])
    np.testing.assert_allclose(encoder.encode_pixels(pixels), alone, atol=1e-5)
    assert encoder.encode_pixels(pixels[:0]).shape == (0, encoder.spec.dim)


def test_the_key_is_the_one_that_databases_hold(encoder: TowerEncoder) -> None:
    assert encoder.spec.key == STORED


def test_the_key_follows_the_weights_not_the_folder(encoder: TowerEncoder, tmp_path: Path) -> None:
    shutil.copytree(CLIP, tmp_path / "copy")
    assert open_clip_tower(str(tmp_path / "copy")).spec.key == encoder.spec.key
    config = json.loads((tmp_path / "copy" / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["interpolation"] = "bilinear"
    (tmp_path / "copy" / "open_clip_config.json").write_text(json.dumps(config))
    assert open_clip_tower(str(tmp_path / "copy")).spec.key != encoder.spec.key


def test_a_folder_without_weights_is_not_filled_with_random_ones(tmp_path: Path) -> None:
    shutil.copy(CLIP / "open_clip_config.json", tmp_path)
    with pytest.raises(EncoderError, match="has no weights"):
        open_clip_tower(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ViT-Z-99/openai", "unknown encoder 'ViT-Z-99/openai'"),
        ("ViT-B-32/nowhere", r"has no weights 'nowhere'; there are: .*laion2b_s34b_b79k"),
        ("ViT-B-32", "has no weights ''"),
    ],
)
def test_an_unknown_encoder_is_named_with_what_there_is(name: str, says: str) -> None:
    with pytest.raises(EncoderError, match=says):
        open_clip_tower(name)


def test_weights_that_cannot_be_downloaded_name_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match=r"cannot be loaded .* give the checkpoint's folder"):
        open_clip_tower("ViT-B-32/laion2b_s34b_b79k")


def test_weights_that_are_broken_name_the_way_out(tmp_path: Path) -> None:
    shutil.copy(CLIP / "open_clip_config.json", tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        open_clip_tower(str(tmp_path))


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        assert resolve_device("auto") == "cuda"
    else:
        assert resolve_device("auto") == "cpu"
        with pytest.raises(EncoderError, match="no CUDA device"):
            resolve_device("cuda")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_torchvision_backbone_gives_what_its_classifier_sees(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    model = models.mobilenet_v3_small(num_classes=7).eval()
    file = tmp_path / f"weights.{suffix}"
    write: Callable[[Any, Path], None] = save_file if suffix == "safetensors" else torch.save
    write(model.state_dict(), file)
    ours = encoder_on(torchvision_tower(f"torchvision/mobilenet_v3_small/{file}"), backend="torch-fp32", device="cpu")
    transform = models.MobileNet_V3_Small_Weights.DEFAULT.transforms()
    seen: list[torch.Tensor] = []
    model.classifier[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        model(torch.stack([transform(picture) for picture in pictures()]))
    theirs = torch.nn.functional.normalize(seen[0], dim=-1).numpy()
    assert ours.spec.dim == 1024
    assert ours.spec.preprocessing == str(transform)
    assert (ours.encode_pixels(pixels_for(ours)) * theirs).sum(axis=1).min() >= 0.99999


@pytest.mark.parametrize("name", ["googlenet", "mnasnet0_5", "squeezenet1_1"])
def test_backbones_of_old_habits_load_too(tmp_path: Path, name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    torch.save(models.get_model(name, weights=None, **options).state_dict(), tmp_path / "weights.pth")
    tower = torchvision_tower(f"torchvision/{name}/{tmp_path / 'weights.pth'}")
    assert tower.spec.dim in (512, 1024, 1280)


def test_a_torchvision_file_that_is_no_table_of_tensors_is_refused(tmp_path: Path) -> None:
    torch.save(models.mobilenet_v3_small(), tmp_path / "whole.pth")  # a pickled network: code, that is
    with pytest.raises(EncoderError, match=r"cannot be loaded .* give the file: torchvision/mobilenet_v3_small/FILE"):
        torchvision_tower(f"torchvision/mobilenet_v3_small/{tmp_path / 'whole.pth'}")
    torch.save(models.resnet18().state_dict(), tmp_path / "other.pth")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        torchvision_tower(f"torchvision/mobilenet_v3_small/{tmp_path / 'other.pth'}")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torchvision/resnet51/DEFAULT", "torchvision has no model 'resnet51'; there are: alexnet"),
        (
            "torchvision/resnet50/V3",
            "has no weights 'V3'; there are: IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT, or give a file",
        ),
    ],
)
def test_an_unknown_backbone_is_named_with_what_there_is(name: str, says: str) -> None:
    with pytest.raises(EncoderError, match=says):
        torchvision_tower(name)


def test_a_backbone_knows_no_words(tmp_path: Path) -> None:
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "weights.pth")
    tower = torchvision_tower(f"torchvision/squeezenet1_1/{tmp_path / 'weights.pth'}")
    with pytest.raises(EncoderError, match="knows no words; search by image or exemplar"):
        encoder_on(tower, backend="torch-fp32", device="cpu").encode_texts(["a dog"])
