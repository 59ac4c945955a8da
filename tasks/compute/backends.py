"""What an encoder runs on: fp32, half precision, compiled, ONNX Runtime. The vectors stay the same within 0.001."""

from __future__ import annotations

import copy
import logging
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.compute import onnx_backend
from tasks.compute.cores import cores
from tasks.compute.crew import QUEUED, Run, on_cuda, on_every_core, workers
from tasks.compute.encoder import BACKENDS, FP32, EncoderError, Spec, Tower, reason_of
from tasks.compute.frame import Frame

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MANY_CONVOLUTIONS = 4  # a vision transformer has one, for its patches
# Images a core takes at a time, measured: convolutions want their activations in the cache, products want rows.
PIECE, PIECE_OF_CONVOLUTIONS, PIECE_OF_ONNX = 8, 4, 4
TURNS = 4  # pieces a core has of a batch, so that the last one is a small wait
LEAST_GAIN, FIRST_BATCH, MOST_BATCH = 1.03, 64, 2_048  # of a GPU
Keep = Callable[[str, Callable[[], bytes]], bytes]  # bytes of a name, made when they are not kept yet


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

    @property
    def convolutional(self) -> bool:
        """Whether it is convolutions that it spends its time on."""
        return sum(isinstance(layer, torch.nn.Conv2d) for layer in self.modules()) > MANY_CONVOLUTIONS


class TowerEncoder:
    """A tower that runs on a backend. Calls from several threads wait for each other."""

    def __init__(self, tower: Tower, run: Run, *, backend: str, batch: int) -> None:
        self._tower, self._run, self._backend, self._batch = tower, run, backend, batch
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
        """How many images a call should bring."""
        return self._batch

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors (n, dim) of framed images (n, H, W, 3)."""
        if not len(pixels):
            return np.empty((0, self.spec.dim), np.float32)
        with self._lock:
            return self._run(pixels)

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


def encoder_on(tower: Tower, *, backend: str, device: str, keep: Keep | None = None) -> TowerEncoder:
    """A tower on a backend. `keep` keeps what took long to make. Raises EncoderError for what this machine cannot run."""
    require_possible(backend, device)
    kind, _, precision = backend.partition("-")
    if kind == "onnx":
        return _on_onnx(tower, backend, keep or (lambda _, make: make()))
    module = UnitVectors(tower, DTYPES[precision]).eval().to(device)
    if module.convolutional:
        module = module.to(memory_format=torch.channels_last)
    build = _on_gpu if device == "cuda" else _on_cores
    run, batch = build(module, tower.frame, compiled=kind == "compile")
    return TowerEncoder(tower, run, backend=backend, batch=batch)


def require_possible(backend: str, device: str) -> None:
    """Raises EncoderError, naming what there is."""
    if backend not in BACKENDS:
        raise EncoderError(f"unknown backend '{backend}'; there are: auto, {', '.join(BACKENDS)}")
    if backend.startswith("onnx") and device == "cuda":
        raise EncoderError(f"backend '{backend}' runs on a CPU; set DIPNET_DEVICE=cpu, or DIPNET_BACKEND=auto")
    if backend.startswith("compile") and device == "cpu" and not shutil.which("g++"):
        raise EncoderError(f"backend '{backend}' needs a C++ compiler; install g++, or set DIPNET_BACKEND={FP32}")


def _on_onnx(tower: Tower, backend: str, keep: Keep) -> TowerEncoder:
    # int8 takes the range of activations from what is in a call: with one image it depends on no neighbour.
    piece = 1 if backend == "onnx-int8" else PIECE_OF_ONNX

    def make() -> bytes:
        module = UnitVectors(tower, torch.float32).eval()
        model = onnx_backend.exported(module, (tower.frame.height, tower.frame.width), rows=piece)
        return onnx_backend.serialised(onnx_backend.quantised(model) if backend == "onnx-int8" else model)

    run = on_every_core(onnx_backend.onnx_run(keep(f"{tower.spec.key}-{backend}", make)), piece=piece, always=True)
    return TowerEncoder(tower, run, backend=backend, batch=cores() * PIECE_OF_ONNX * TURNS)


def _on_cores(module: UnitVectors, frame: Frame, *, compiled: bool) -> tuple[Run, int]:
    piece = PIECE_OF_CONVOLUTIONS if module.convolutional else PIECE
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it tells that there is no CUDA
    network: Any = torch.compile(module, dynamic=False, options={"freezing": True}) if compiled else module

    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            vectors: NDArray[np.float32] = network(torch.from_numpy(pixels)).numpy()
        return vectors

    if compiled:  # once, before threads would do it at once, and for the one core that each of them has
        _first(lambda: workers().submit(encode, np.zeros((piece, frame.height, frame.width, 3), np.uint8)).result())
    return on_every_core(encode, piece=piece, always=compiled), cores() * piece * TURNS


def _on_gpu(module: UnitVectors, frame: Frame, *, compiled: bool) -> tuple[Run, int]:
    """The batch is doubled until there is no room or no gain; what is compiled, is compiled for that one."""
    batch = _best_batch(module, frame)
    network: Any = torch.compile(module, dynamic=False, mode="max-autotune") if compiled else module
    run = on_cuda(network, batch=batch)
    _first(lambda: run(np.zeros((batch, frame.height, frame.width, 3), np.uint8)))
    return run, batch * QUEUED


def _best_batch(module: UnitVectors, frame: Frame) -> int:
    """Of images on a GPU: the least after which doubling gains less than LEAST_GAIN."""
    best, rate, batch = FIRST_BATCH, 0.0, FIRST_BATCH
    while batch <= MOST_BATCH:
        try:
            found = _rate_on_gpu(module, torch.zeros(batch, frame.height, frame.width, 3, dtype=torch.uint8))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if found < rate * LEAST_GAIN:
            break
        best, rate, batch = batch, found, 2 * batch
    return best


def _rate_on_gpu(module: UnitVectors, pixels: torch.Tensor, rounds: int = 3) -> float:
    """Images a second of the best round, the first not counted."""
    on_device, taken = pixels.to("cuda"), []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begun.record()
            module(on_device)
            ended.record()
            torch.cuda.synchronize()
            taken.append(begun.elapsed_time(ended) / 1_000)
    return float(len(pixels) / min(taken[1:]))


def _first(call: Callable[[], Any]) -> None:
    """Compile. Raises EncoderError with the reason when a compiler fails; inductor's own errors are RuntimeErrors."""
    try:
        call()
    except (RuntimeError, OSError, AssertionError, ImportError, subprocess.SubprocessError) as error:
        raise EncoderError(f"the network cannot be compiled here ({reason_of(error)})") from None
