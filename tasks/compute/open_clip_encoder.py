"""Every model of open_clip, with published weights, a weights file, or from a checkpoint's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tasks.compute.encoder import EncoderError, Spec, Tower, digest, reason_of, triple
from tasks.compute.frame import Frame

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # the names that open_clip looks for


def open_clip_tower(name: str) -> Tower:
    """MODEL/PRETRAINED, MODEL/FILE or a checkpoint's folder. Raises EncoderError."""
    model, transform, tokenizer = _load(name)
    settings = model.visual.preprocess_cfg

    def words(texts: Sequence[str]) -> torch.Tensor:
        features: torch.Tensor = model.encode_text(tokenizer(list(texts)))
        return features

    with torch.inference_mode():
        dim = int(words(["a"]).shape[-1])  # asked of the text tower: a token costs less than an image
    return Tower(
        spec=Spec(name=name, dim=dim, weights_sha256=digest(model), preprocessing=str(transform)),
        frame=frame_of(settings),
        mean=triple(settings["mean"]),
        deviation=triple(settings["std"]),
        visual=model.visual,
        words=words,
    )


def frame_of(settings: dict[str, Any]) -> Frame:
    """The frame that open_clip's evaluation transform makes of a model's preprocessing settings."""
    size = settings["size"]
    sides = [size, size] if isinstance(size, int) else list(size)
    height, width = int(sides[0]), int(sides[-1])
    fit = {"shortest": "crop", "longest": "pad", "squash": "squash"}[settings["resize_mode"]]
    # Where sides differ and nothing is padded, open_clip resizes bicubically whatever the settings say.
    always_bicubic = fit == "crop" and height != width
    return Frame(
        height=height,
        width=width,
        fit=fit,  # type: ignore[arg-type]  # a value of the table above
        interpolation="bilinear" if settings["interpolation"] == "bilinear" and not always_bicubic else "bicubic",
        fill=_colour(settings["fill_color"]),
    )


def _colour(value: Any) -> tuple[int, int, int]:
    red, green, blue = triple(value)
    return int(red), int(green), int(blue)


def _load(name: str) -> tuple[Any, Any, Any]:
    """Model, evaluation transform and tokenizer from open_clip's factory."""
    import open_clip

    reference, pretrained = _reference(name)
    try:
        model, _, transform = open_clip.create_model_and_transforms(reference, pretrained=pretrained, precision="fp32")
        return model.eval(), transform, open_clip.get_tokenizer(reference)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        # Hub clients raise subclasses of OSError and ValueError when there is no way out to the net.
        raise EncoderError(
            f"the weights of encoder '{name}' cannot be loaded ({reason_of(error)}); where there is no net, download them "
            "elsewhere and give the checkpoint's folder (open_clip_config.json and open_clip_model.safetensors) as the "
            "encoder"
        ) from None


def _reference(name: str) -> tuple[str, str | None]:
    """What open_clip calls the model, and its weights. Raises EncoderError for what is neither known nor there."""
    import open_clip

    folder = Path(name)
    if folder.is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise EncoderError(
                f"encoder folder '{name}' has no open_clip_config.json; export it with open_clip's push_to_hf_hub layout"
            )
        if not any((folder / weights).is_file() for weights in WEIGHTS):  # open_clip would go on with random ones
            raise EncoderError(f"encoder folder '{name}' has no weights; put one of {', '.join(WEIGHTS)} there")
        return f"local-dir:{folder.absolute()}", None
    architecture, _, pretrained = name.partition("/")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if architecture not in open_clip.list_models():
        raise EncoderError(
            f"unknown encoder '{name}': neither a folder nor a model of open_clip; write MODEL/PRETRAINED such as "
            "ViT-B-32/laion2b_s34b_b79k, the folder of a checkpoint, or torchvision/MODEL/WEIGHTS"
        )
    if pretrained not in tags and not Path(pretrained).is_file():
        raise EncoderError(
            f"encoder '{architecture}' has no weights '{pretrained}'; there are: {', '.join(tags) or 'none'}"
        )
    return architecture, pretrained
