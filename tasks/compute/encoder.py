"""Encoders: images and texts to unit vectors. The open_clip implementation follows open_clip's own transform exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # the names that open_clip looks for


class EncoderError(Exception):
    """An encoder that cannot be had; the text says why and what to do."""


class Spec(NamedTuple):
    """What determines the vectors. Two encoders with the same key make the same vectors."""

    name: str
    dim: int
    weights_sha256: str
    preprocessing: str

    @property
    def key(self) -> str:
        """Hash of everything but the name, which only says where the weights came from."""
        return hashlib.sha256(f"{self.dim}|{self.weights_sha256}|{self.preprocessing}".encode()).hexdigest()


class Encoder(Protocol):
    """Something that turns images and texts into unit vectors of one space."""

    @property
    def spec(self) -> Spec:
        """What makes the vectors what they are."""
        ...

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """An RGB image as the network wants it, (3, H, W). Safe to call from many threads."""
        ...

    def encode_images(self, prepared: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Unit vectors (n, dim) of prepared images."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (n, dim) of texts."""
        ...


class OpenClipEncoder:
    """A model of open_clip in fp32."""

    def __init__(self, name: str, *, device: str) -> None:
        """Load MODEL/PRETRAINED or a checkpoint's folder. Raises EncoderError."""
        self._device = resolve_device(device)
        model, self._transform, self._tokenizer = _load(name)
        self._model = model.eval().to(self._device)
        self._spec = Spec(
            name=name,
            dim=_output_dim(model, self._tokenizer),
            weights_sha256=_digest(model),
            preprocessing=str(self._transform),
        )

    @property
    def spec(self) -> Spec:
        """Name, dimension, digest of the weights, and the transform as text."""
        return self._spec

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """open_clip's own transform."""
        tensor: torch.Tensor = self._transform(image)
        return tensor

    def encode_images(self, prepared: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Unit vectors (n, dim)."""
        with torch.inference_mode():
            features = self._model.encode_image(torch.stack(list(prepared)).to(self._device), normalize=True)
        return _as_array(features)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (n, dim)."""
        with torch.inference_mode():
            features = self._model.encode_text(self._tokenizer(list(texts)).to(self._device), normalize=True)
        return _as_array(features)


def resolve_device(device: str) -> str:
    """`auto` is CUDA where there is one. Raises EncoderError for a CUDA that is not there."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise EncoderError("no CUDA device on this machine; set DIPNET_DEVICE=auto or cpu")
    return ("cuda" if available else "cpu") if device == "auto" else device


def _load(name: str) -> tuple[Any, Any, Any]:
    """Model, evaluation transform and tokenizer from open_clip's factory."""
    import open_clip

    folder = Path(name)
    if folder.is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise EncoderError(
                f"encoder folder '{name}' has no open_clip_config.json; export it with open_clip's push_to_hf_hub layout"
            )
        if not any((folder / weights).is_file() for weights in WEIGHTS):  # open_clip would go on with random ones
            raise EncoderError(f"encoder folder '{name}' has no weights; put one of {', '.join(WEIGHTS)} there")
        reference, pretrained = f"local-dir:{folder.absolute()}", None
    else:
        architecture, _, pretrained = name.partition("/")
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if architecture not in open_clip.list_models():
            raise EncoderError(
                f"unknown encoder '{name}': neither a folder nor a model of open_clip; "
                "write MODEL/PRETRAINED such as ViT-B-32/laion2b_s34b_b79k, or the folder of a checkpoint"
            )
        if pretrained not in tags and not Path(pretrained).is_file():
            raise EncoderError(
                f"encoder '{architecture}' has no weights '{pretrained}'; there are: {', '.join(tags) or 'none'}"
            )
        reference = architecture
    try:
        model, _, transform = open_clip.create_model_and_transforms(reference, pretrained=pretrained, precision="fp32")
        return model, transform, open_clip.get_tokenizer(reference)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        # Hub clients raise subclasses of OSError and ValueError when there is no way out to the net.
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise EncoderError(
            f"the weights of encoder '{name}' cannot be loaded ({reason}); where there is no net, download them elsewhere "
            "and give the checkpoint's folder (open_clip_config.json and open_clip_model.safetensors) as the encoder"
        ) from None


def _as_array(features: torch.Tensor) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = features.float().cpu().numpy()
    return vectors


def _output_dim(model: Any, tokenizer: Any) -> int:
    """The dimension of the shared space, asked of the text tower: a token costs less than an image."""
    with torch.inference_mode():
        return int(model.encode_text(tokenizer(["a"])).shape[-1])


def _digest(model: Any) -> str:
    """SHA-256 over names, shapes and values of the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
