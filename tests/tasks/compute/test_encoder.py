"""Our vectors are open_clip's own, and an encoder that cannot be had says what to do."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from tasks.compute.backends import TowerEncoder, encoder_on
from tasks.compute.encoder import EncoderError, resolve_device
from tasks.compute.open_clip_encoder import open_clip_tower

CLIP = Path(__file__).parents[3] / "deploy" / "demo" / "clip"
TEXTS = ["a photo of a light dress", "an ankle boot", ""]


def load(name: str) -> TowerEncoder:
    return encoder_on(open_clip_tower(name), backend="torch-fp32", device="cpu")


@pytest.fixture(scope="module")
def encoder() -> TowerEncoder:
    return load(str(CLIP))


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    sizes = [(28, 28), (60, 40), (31, 90), (200, 200)]
    return [Image.fromarray(generator.integers(0, 256, (*size, 3)).astype(np.uint8)) for size in sizes]


def test_image_vectors_equal_open_clips_own(encoder: TowerEncoder) -> None:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{CLIP}", precision="fp32")
    model.eval()
    with torch.inference_mode():
        theirs = model.encode_image(torch.stack([transform(p) for p in pictures()]), normalize=True).numpy()
    ours = encoder.encode_images([encoder.prepare(picture) for picture in pictures()])
    assert ours.dtype == np.float32
    assert ours.shape == (4, encoder.spec.dim)
    assert (ours * theirs).sum(axis=1).min() >= 0.9999
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
    assert float((ours.encode_images([ours.prepare(pictures()[3])]) * theirs).sum()) >= 0.9999


def test_a_vector_does_not_depend_on_its_batch(encoder: TowerEncoder) -> None:
    prepared = [encoder.prepare(picture) for picture in pictures()]
    alone = np.concatenate([encoder.encode_images([one]) for one in prepared])
    np.testing.assert_allclose(encoder.encode_images(prepared), alone, atol=1e-5)


def test_the_key_follows_the_weights_not_the_folder(encoder: TowerEncoder, tmp_path: Path) -> None:
    shutil.copytree(CLIP, tmp_path / "copy")
    assert load(str(tmp_path / "copy")).spec.key == encoder.spec.key
    config = json.loads((tmp_path / "copy" / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["interpolation"] = "bilinear"
    (tmp_path / "copy" / "open_clip_config.json").write_text(json.dumps(config))
    assert load(str(tmp_path / "copy")).spec.key != encoder.spec.key


def test_a_folder_without_weights_is_not_filled_with_random_ones(tmp_path: Path) -> None:
    shutil.copy(CLIP / "open_clip_config.json", tmp_path)
    with pytest.raises(EncoderError, match="has no weights"):
        load(str(tmp_path))


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
        load(name)


def test_weights_that_cannot_be_downloaded_name_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match=r"cannot be loaded .* give the checkpoint's folder"):
        load("ViT-B-32/laion2b_s34b_b79k")


def test_weights_that_are_broken_name_the_way_out(tmp_path: Path) -> None:
    shutil.copy(CLIP / "open_clip_config.json", tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load(str(tmp_path))


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        assert resolve_device("auto") == "cuda"
    else:
        assert resolve_device("auto") == "cpu"
        with pytest.raises(EncoderError, match="no CUDA device"):
            resolve_device("cuda")
