"""Encoders: pixels and texts to unit vectors. What is one, whatever network it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.compute.frame import Frame

FP32 = "torch-fp32"
BACKENDS = (FP32, "torch-bf16", "torch-fp16", "compile-fp32", "compile-bf16", "onnx-fp32", "onnx-int8")


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
    """Something that turns pixels and texts into unit vectors of one space. Used by one thread at a time."""

    @property
    def spec(self) -> Spec:
        """What makes the vectors what they are."""
        ...

    @property
    def frame(self) -> Frame:
        """How images must be framed for it."""
        ...

    @property
    def backend(self) -> str:
        """What it runs on; backends differ in speed, and by at most a thousandth in cosine."""
        ...

    @property
    def batch(self) -> int:
        """How many images a call should bring to keep the machine busy; any number is fine."""
        ...

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors (n, dim) of framed images (n, H, W, 3)."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (n, dim) of texts. Raises EncoderError for an encoder that knows no words."""
        ...


class Tower(NamedTuple):
    """A network as its files give it, in fp32 on the CPU, before it runs on anything."""

    spec: Spec
    frame: Frame
    mean: tuple[float, float, float]  # of the channels, as shares of 255
    deviation: tuple[float, float, float]
    visual: torch.nn.Module  # (n, 3, H, W) normalised -> (n, dim), or a tuple that begins with it
    words: Callable[[Sequence[str]], torch.Tensor] | None = None  # texts -> (n, dim) of any length, on the CPU


def resolve_device(device: str) -> str:
    """`auto` is CUDA where there is one. Raises EncoderError for a CUDA that is not there."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise EncoderError("no CUDA device on this machine; set DIPNET_DEVICE=auto or cpu")
    return ("cuda" if available else "cpu") if device == "auto" else device


def digest(network: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and fp32 values of the weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().float().cpu().contiguous().numpy().reshape(-1).view(np.uint8))
    return found.hexdigest()


def reason_of(error: BaseException) -> str:
    """The first line of an error, short enough for a sentence."""
    told = str(error).strip()
    return told.splitlines()[0][:200] if told else type(error).__name__


def triple(value: Any) -> tuple[float, float, float]:
    """One number a channel, or one for all three."""
    red, green, blue = value if isinstance(value, Sequence) else (value,) * 3
    return float(red), float(green), float(blue)
