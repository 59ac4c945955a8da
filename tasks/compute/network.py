"""torchvision's classifiers: built by name, for any number of classes, from scratch or from weights."""

from __future__ import annotations

import difflib
import inspect
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
import torchvision
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights expect
SMALL = 64
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # heads that Inception and GoogLeNet train with; we do without
SHOWN = 3

State = Mapping[str, torch.Tensor]


class NetworkError(Exception):
    """A network that cannot be had; the text says why and what to do."""


class Shape(NamedTuple):
    """What a network looks like. A `small_stem` sees every pixel of small images; see `build`."""

    backbone: str
    classes: int
    image_size: int
    small_stem: bool


class Loaded(NamedTuple):
    """A network with weights, and what was left out of them."""

    network: nn.Module
    notes: list[str]


def require_backbone(name: str) -> None:
    """Raises NetworkError for what is no torchvision classifier, naming the nearest."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4) or ["resnet18", "resnet50", "vit_b_16"]
        raise NetworkError(f"torchvision has no classifier '{name}'; did you mean {', '.join(near)}?")


def shape_of(backbone: str, *, classes: int, image_size: int, weights: State | None) -> Shape:
    """A resnet for images of at most 64 pixels gets the small stem, unless weights with the usual one are given."""
    small = image_size <= SMALL and "resnet" in backbone
    if weights is not None and "conv1.weight" in weights:
        small = weights["conv1.weight"].shape[-1] == 3
    return Shape(backbone, classes, image_size, small)


def build(shape: Shape) -> nn.Module:
    """A torchvision classifier with fresh weights and a head for so many classes, drawn by torch's random state.

    With the small stem, a resnet's first convolution is 3×3 with stride 1, and no max-pooling follows: usual for
    CIFAR's images, of which the other stem leaves one pixel in sixteen (He et al. 2016, section 4.2). Raises
    NetworkError for an image size that the network cannot take.
    """
    try:
        network: Any = _construct(shape)
        if shape.small_stem:
            network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        network.eval()
        with torch.inference_mode():
            out = network(torch.zeros(2, 3, shape.image_size, shape.image_size, device=_device_of(network)))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NetworkError(
            f"'{shape.backbone}' cannot take images of {shape.image_size} pixels ({reason}); give another image size, "
            "such as 224"
        ) from None
    if out.shape != (2, shape.classes):
        raise NetworkError(f"'{shape.backbone}' is no classifier of single images; give another backbone")
    found: nn.Module = network
    return found


def _construct(shape: Shape) -> Any:
    require_backbone(shape.backbone)
    builder = torchvision.models.get_model_builder(shape.backbone)
    options: dict[str, Any] = {"num_classes": shape.classes}
    if shape.backbone in ("inception_v3", "googlenet"):
        options |= {"aux_logits": False, "init_weights": False, "transform_input": False}
    if shape.backbone.startswith("vit_"):
        options["image_size"] = shape.image_size
    if "input_size" in inspect.signature(builder).parameters or shape.backbone.startswith("maxvit"):
        options["input_size"] = (shape.image_size, shape.image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torchvision.models.get_model(shape.backbone, weights=None, **options)


def read_state(data: bytes) -> dict[str, torch.Tensor]:
    """Tensors by name from safetensors or a state dict of torch; nothing in them is run. Raises NetworkError."""
    try:
        return safetensors.torch.load(data)
    except SafetensorError:
        pass
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001  torch raises whatever its zip reader, unpickler and storages raise
        raise NetworkError(
            "it is neither safetensors nor a state dict of torch that holds nothing but tensors"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not found or not all(isinstance(part, torch.Tensor) for part in found.values()):
        raise NetworkError("it holds no state dict: tensors by the names of a network's parts")
    return {str(name).removeprefix("module."): part for name, part in found.items()}


def with_weights(shape: Shape, weights: State | None) -> Loaded:
    """The network with these weights; a head for other classes is left fresh, and said so. Raises NetworkError."""
    network = build(shape)
    if weights is None:
        return Loaded(network, [])
    ours = network.state_dict()
    given = {name: part for name, part in weights.items() if not name.startswith(AUXILIARY)}
    notes = []
    head = _head_of(shape)
    if any(name not in given or given[name].shape != ours[name].shape for name in head):
        rows = [given[name].shape[0] for name in head if name in given and given[name].dim()]
        given = {name: part for name, part in given.items() if name not in head}
        notes.append(f"the head of {rows[0] if rows else 'no'} classes was dropped for one of {shape.classes}")
    given = _fitted_positions(shape, given, ours)
    _require_fit(shape, given, ours, head)
    network.load_state_dict({**ours, **given})
    return Loaded(network, notes)


def _require_fit(shape: Shape, given: State, ours: State, head: set[str]) -> None:
    """Raises NetworkError when weights are of another network."""
    other = [
        f"{name} is {tuple(part.shape)}, not {tuple(ours[name].shape)}"
        for name, part in given.items()
        if name in ours and part.shape != ours[name].shape
    ]
    unknown = [f"{name} is unknown" for name in given if name not in ours]
    optional = head if not head & set(given) else set()
    missing = [
        f"{name} is missing"
        for name in ours
        if name not in given and name not in optional and not name.endswith("num_batches_tracked")
    ]
    wrong = [*other, *unknown, *missing]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise NetworkError(
            f"the weights are not of '{shape.backbone}' ({'; '.join(wrong[:SHOWN])}{more}); name the backbone that they "
            "were made with"
        )


def _fitted_positions(shape: Shape, given: dict[str, torch.Tensor], ours: State) -> dict[str, torch.Tensor]:
    """A vision transformer's position embeddings for another image size, interpolated as torchvision does."""
    name = "encoder.pos_embedding"
    if not shape.backbone.startswith("vit_") or name not in given or given[name].shape == ours[name].shape:
        return given
    patch = ours["conv_proj.weight"].shape[-1]
    try:
        from torchvision.models.vision_transformer import interpolate_embeddings

        return dict(interpolate_embeddings(shape.image_size, patch, dict(given)))
    except ValueError:
        return given  # the shapes are then reported


def _head_of(shape: Shape) -> set[str]:
    """Names of the tensors whose shape depends on the number of classes."""
    with torch.device("meta"):
        one, other = (_construct(shape._replace(classes=classes)).state_dict() for classes in (7, 11))
    return {name for name in one if one[name].shape != other[name].shape}


def to_bytes(network: nn.Module) -> bytes:
    """The weights as safetensors."""
    return safetensors.torch.save({name: part.contiguous().cpu() for name, part in network.state_dict().items()})


def normalised(images: torch.Tensor) -> torch.Tensor:
    """uint8 images (n, 3, H, W) as the network wants them."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    deviation = torch.tensor(DEVIATION, device=images.device).view(1, 3, 1, 1)
    scaled = (images.float() / 255 - mean) / deviation
    return scaled.contiguous(memory_format=torch.channels_last)


def probabilities(
    network: nn.Module, images: NDArray[np.uint8], *, device: str, batch: int = 256
) -> NDArray[np.float32]:
    """Class probabilities (n, classes) of images (n, 3, H, W)."""
    network.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = []
    with quiet_torch(device), torch.inference_mode():
        for start in range(0, len(images), batch):
            rows = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).to(device)
            found.append(network(normalised(rows)).float().softmax(dim=1).cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


@contextmanager
def quiet_torch(device: str) -> Iterator[None]:
    """Deterministic algorithms on the CPU, and torch's random state and choices left as they were."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device == "cuda" else []):
        torch.use_deterministic_algorithms(device == "cpu")
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def _device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
