"""Encoders by name: loaded once a process, and run on the backend that is fastest here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.errors import BadInput
from models.settings import Settings
from tasks.compute import torchvision_encoder
from tasks.compute.backends import encoder_on
from tasks.compute.encoder import FP32, Encoder, EncoderError, Tower, resolve_device
from tasks.compute.open_clip_encoder import open_clip_tower


@lru_cache(maxsize=2)
def load_encoder(name: str, device: str, backend: str = FP32) -> Encoder:
    """An encoder, loaded once a process. Raises BadInput, naming the way out."""
    try:
        return encoder_on(_tower(name), backend=backend, device=resolve_device(device))
    except EncoderError as error:
        raise BadInput(str(error)) from None


def encode_words(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors (n, dim) of texts. Raises BadInput for an encoder of images alone."""
    try:
        return encoder.encode_texts(texts)
    except EncoderError as error:
        raise BadInput(str(error)) from None


@lru_cache(maxsize=1)
def _tower(name: str) -> Tower:
    """A network's files, read once for whatever backends it is tried on. Raises EncoderError."""
    if name.startswith(torchvision_encoder.PREFIX):
        return torchvision_encoder.torchvision_tower(name)
    return open_clip_tower(name)


def choose_backend(name: str, settings: Settings, *, images: int) -> str:
    del name, settings, images
    return FP32
