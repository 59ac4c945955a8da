"""What an encoder runs on: fp32, half precision, compiled, or int8 in ONNX Runtime. The vectors stay the same within 0.001."""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tasks.compute.encoder import BACKENDS, FP32, EncoderError, Spec, Tower, reason_of
from tasks.compute.frame import Frame

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MANY_CONVOLUTIONS = 4  # a vision transformer has one, for its patches
CPU_BATCH = 32

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # (n, H, W, 3), n at most a batch -> unit (n, dim)


class UnitVectors(torch.nn.Module):
    """Pixels (n, H, W, 3) uint8 to unit vectors (n, dim) fp32, in a tower's network at a precision."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, tower: Tower, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.visual = tower.visual if dtype == torch.float32 else copy.deepcopy(tower.visual).to(dtype)
        mean, deviation = torch.tensor(tower.mean), torch.tensor(tower.deviation)
        self.register_buffer("scale", (1 / (255 * deviation)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / deviation).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The bytes lie channels last already, which is how convolutions like them."""
        normalised = torch.addcmul(self.shift, pixels.permute(0, 3, 1, 2).float(), self.scale)
        features = self.visual(normalised.to(self.dtype))
        first = features[0] if isinstance(features, tuple) else features
        return torch.nn.functional.normalize(first.float(), dim=-1)


class TowerEncoder:
    """A tower that runs on a backend. Calls from several threads wait for each other."""

    def __init__(self, tower: Tower, run: Run, *, backend: str, device: str, batch: int) -> None:
        self._tower, self._run, self._backend, self._device, self._batch = tower, run, backend, device, batch
        self._lock = threading.Lock()

    @property
    def spec(self) -> Spec:
        """Name, dimension, digest of the weights, and the preprocessing as text."""
        return self._tower.spec

    @property
    def frame(self) -> Frame:
        """How images must be framed."""
        return self._tower.frame

    @property
    def backend(self) -> str:
        """One of BACKENDS."""
        return self._backend

    @property
    def batch(self) -> int:
        """How many images it takes at once."""
        return self._batch

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """The image framed as open_clip and torchvision frame theirs."""
        return torch.from_numpy(framed(image, self.frame))

    def encode_images(self, prepared: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Unit vectors (n, dim)."""
        return self.encode_pixels(torch.stack(list(prepared)).numpy())

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors (n, dim)."""
        vectors = np.empty((len(pixels), self.spec.dim), np.float32)
        with self._lock:
            for start in range(0, len(pixels), self._batch):
                part = slice(start, start + self._batch)
                vectors[part] = self._run(pixels[part])
        return vectors

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (n, dim), in fp32 whatever the backend. Raises EncoderError without a text tower."""
        if self._tower.words is None:
            raise EncoderError(
                f"encoder '{self.spec.name}' knows no words; search by image or exemplar, or embed with an encoder of "
                "images and texts"
            )
        with torch.inference_mode(), self._lock:
            features = torch.nn.functional.normalize(self._tower.words(texts), dim=-1)
        vectors: NDArray[np.float32] = features.float().cpu().numpy()
        return vectors


def framed(image: Image.Image, frame: Frame) -> NDArray[np.uint8]:
    """An RGB image in a frame (H, W, 3), resized from its full size as open_clip and torchvision do it."""
    from torchvision.transforms import InterpolationMode, functional

    mode = InterpolationMode(frame.interpolation)
    size, (height, width) = [frame.height, frame.width], (image.height, image.width)
    if frame.fit == "squash":
        return np.array(functional.resize(image, size, mode))
    if frame.fit == "crop" and frame.height == frame.width:
        resized = functional.resize(image, [frame.resize or frame.height], mode)
        return np.array(functional.center_crop(resized, size))
    ratios = (height / frame.height, width / frame.width)
    ratio = max(ratios) if frame.fit == "pad" else min(ratios)
    resized = functional.resize(image, [round(height / ratio), round(width / ratio)], mode)
    if frame.fit == "crop":
        return np.array(functional.center_crop(resized, size))
    canvas = Image.new("RGB", (frame.width, frame.height), frame.fill)
    canvas.paste(resized, ((frame.width - resized.width) // 2, (frame.height - resized.height) // 2))
    return np.array(canvas)


def encoder_on(tower: Tower, *, backend: str, device: str, batch: int = 0) -> TowerEncoder:
    """A tower on a backend of torch. Raises EncoderError for a backend that this machine cannot run."""
    compiled, dtype = _plan(backend, device)
    size = batch or CPU_BATCH
    module = UnitVectors(tower, dtype).eval().to(device)
    if sum(isinstance(layer, torch.nn.Conv2d) for layer in module.modules()) > MANY_CONVOLUTIONS:
        module = module.to(memory_format=torch.channels_last)
    run = _compiled(module, device, size) if compiled else _eager(module, device)
    return TowerEncoder(tower, run, backend=backend, device=device, batch=size)


def _plan(backend: str, device: str) -> tuple[bool, torch.dtype]:
    """Whether to compile, and the precision. Raises EncoderError."""
    kind, _, precision = backend.partition("-")
    if backend not in BACKENDS or kind not in ("torch", "compile"):
        raise EncoderError(f"unknown backend '{backend}'; there are: {', '.join(BACKENDS)}")
    if kind == "compile" and device == "cpu" and not shutil.which("g++"):
        raise EncoderError(f"backend '{backend}' needs a C++ compiler; install g++, or set DIPNET_BACKEND={FP32}")
    return kind == "compile", DTYPES[precision]


def _eager(module: torch.nn.Module, device: str) -> Run:
    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            vectors: NDArray[np.float32] = module(torch.from_numpy(pixels).to(device)).cpu().numpy()
        return vectors

    return run


def _compiled(module: torch.nn.Module, device: str, batch: int) -> Run:
    """Always the same batch, so that it is compiled once; what is missing is filled with zeros and cut off."""
    network: Any = torch.compile(module, dynamic=False)
    eager = _eager(network, device)

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        full = np.zeros((batch, *pixels.shape[1:]), np.uint8) if len(pixels) < batch else pixels
        full[: len(pixels)] = pixels
        try:
            return eager(full)[: len(pixels)]
        except torch._dynamo.exc.TorchDynamoException as error:
            raise EncoderError(f"the network cannot be compiled here ({reason_of(error)})") from None

    return run
