"""Backbones of torchvision, for teams without a CLIP: what a classifier sees before its last layer."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tasks.compute.encoder import EncoderError, Spec, Tower, digest, reason_of, triple
from tasks.compute.frame import Frame

PREFIX = "torchvision/"
# GoogLeNet and Inception normalise once more themselves, warn of slow random weights, and have classifiers on the side.
OLD = {"transform_input": True, "init_weights": False, "aux_logits": False}
ASIDE = ("aux1.", "aux2.", "AuxLogits.")


def torchvision_tower(name: str) -> Tower:
    """`torchvision/MODEL/WEIGHTS`: published weights by name, or a file of them. Raises EncoderError."""
    model_name, _, weights_name = name.removeprefix(PREFIX).partition("/")
    published = _published(name, model_name)
    model, transform = _with_weights(name, model_name, weights_name, published)
    model.eval()
    side, frame = transform.crop_size[0], _frame_of(transform)
    with torch.inference_mode():
        dim = int(model(torch.zeros(1, 3, side, side)).shape[-1])
    return Tower(
        spec=Spec(name=name, dim=dim, weights_sha256=digest(model), preprocessing=str(transform)),
        frame=frame,
        mean=triple(transform.mean),
        deviation=triple(transform.std),
        visual=model,
    )


def _frame_of(transform: Any) -> Frame:
    """The frame that torchvision's own transform of a model's weights makes."""
    return Frame(
        height=int(transform.crop_size[0]),
        width=int(transform.crop_size[-1]),
        resize=int(transform.resize_size[0]),
        interpolation="bicubic" if transform.interpolation.value == "bicubic" else "bilinear",
    )


def _published(name: str, model_name: str) -> Any:
    """The enumeration of a classification model's published weights."""
    from torchvision import models

    known = models.list_models(module=models)
    if model_name not in known:
        raise EncoderError(
            f"unknown encoder '{name}': torchvision has no model '{model_name}'; there are: {', '.join(known)}"
        )
    return models.get_model_weights(model_name)


def _with_weights(name: str, model_name: str, weights_name: str, published: Any) -> tuple[torch.nn.Module, Any]:
    """The model without its last layer, and the transform that goes with its weights."""
    from torchvision import models

    if weights_name in published.__members__:
        chosen = published[weights_name]
    elif Path(weights_name).is_file():
        chosen = published.DEFAULT  # a file says nothing of its preprocessing
    else:
        raise EncoderError(
            f"encoder 'torchvision/{model_name}' has no weights '{weights_name}'; there are: "
            f"{', '.join(published.__members__)}, or give a file (.safetensors, .pth)"
        )
    try:
        if weights_name in published.__members__:
            state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
        else:
            state = _read(Path(weights_name))
        model = models.get_model(
            model_name, weights=None, **(OLD if model_name in ("googlenet", "inception_v3") else {})
        )
        head = _cut(model)
        _load(model, state, head)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError, pickle.UnpicklingError) as error:
        raise EncoderError(
            f"the weights of encoder '{name}' cannot be loaded ({reason_of(error)}); where there is no net, download them "
            f"elsewhere and give the file: torchvision/{model_name}/FILE"
        ) from None
    return model, chosen.transforms()


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file. Only tensors are read of a .pth: a pickle of anything else is refused."""
    found = (
        load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    )
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError("no table of tensors")
    for name in [name for name in found if name.startswith("module.")]:
        found[name.removeprefix("module.")] = found.pop(name)
    return found


def _cut(model: torch.nn.Module) -> str:
    """Take the last layer that has weights of its own away: what it was given comes out. Returns its name."""
    layers = [n for n, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    head: str = layers[-1]
    owner, _, attribute = head.rpartition(".")
    setattr(model.get_submodule(owner), attribute, torch.nn.Identity())
    return head


def _load(model: torch.nn.Module, state: dict[str, torch.Tensor], head: str) -> None:
    """Every weight but the last layers', whose classes may be the team's own. Raises RuntimeError when any is amiss."""
    without = (f"{head}.", *ASIDE)
    wanted = OrderedDict((name, tensor) for name, tensor in state.items() if not name.startswith(without))
    # Versions of layers, which loading asks for, are an attribute of the table; safetensors has no room for them.
    wanted._metadata = getattr(state, "_metadata", model.state_dict()._metadata)  # type: ignore[attr-defined]
    model.load_state_dict(wanted, strict=True)
