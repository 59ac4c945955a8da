"""Encoders by name: loaded once a process, and run on the backend that is fastest here."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import BadInput
from models.settings import Settings
from storage.remembered import Remembered, cache_folder
from tasks.compute import backends, speed, torchvision_encoder
from tasks.compute.cores import cores
from tasks.compute.encoder import BACKENDS, FP32, Encoder, EncoderError, Tower, resolve_device
from tasks.compute.open_clip_encoder import open_clip_tower
from tasks.compute.speed import Measured

AUTO = "auto"
WORTH = 20  # times what it costs must embedding take, before backends are compared
BUILD_SECONDS = 60.0  # compiling and exporting, about
FACTS = "speed-{}"
# fp16 is emulated on nearly every CPU, many times slower; ONNX Runtime's package for Python is without CUDA.
POINTLESS = {("cpu", "torch-fp16"), ("cuda", "onnx-fp32"), ("cuda", "onnx-int8")}


def load_encoder(name: str, device: str, backend: str = FP32) -> Encoder:
    """An encoder, loaded once a process. Raises BadInput, naming the way out."""
    try:
        return _loaded(name, resolve_device(device), backend)
    except EncoderError as error:
        raise BadInput(str(error)) from None


def encoder_named(name: str, settings: Settings) -> str:
    """`default` is the settings' encoder."""
    return settings.encoder if name == "default" else name


def encode_words(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors (n, dim) of texts. Raises BadInput for an encoder of images alone."""
    try:
        return encoder.encode_texts(texts)
    except EncoderError as error:
        raise BadInput(str(error)) from None


def require_backend(backend: str, device: str) -> None:
    """Raises BadInput for a backend that there is not, or that this machine cannot run."""
    try:
        if backend != AUTO:
            backends.require_possible(backend, resolve_device(device))
    except EncoderError as error:
        raise BadInput(str(error)) from None


def choose_backend(name: str, settings: Settings, *, images: int) -> str:
    """The backend that was asked for, or the one known to be fastest here; found out now where so many images repay it.

    Raises BadInput for a backend that there is not, or that this machine or this network cannot run.
    """
    if settings.backend != AUTO:
        return load_encoder(name, settings.device, settings.backend).backend
    plain = load_encoder(name, settings.device)
    known = recall(plain, settings.device)
    if known:
        return speed.fastest(known)
    seconds = speed.seconds_an_image(plain)
    if images * seconds < WORTH * (BUILD_SECONDS + speed.IMAGES * seconds):
        return FP32
    return speed.fastest(measure_backends(name, settings.device))


def measure_backends(name: str, device: str) -> list[Measured]:
    """Every backend that may run here, measured now and remembered on this machine."""
    plain, where = load_encoder(name, device), resolve_device(device)
    found = speed.compare(
        plain, partial(_built, name, where), [one for one in BACKENDS if (where, one) not in POINTLESS]
    )
    facts = {"encoder": name, "measured": [one._asdict() for one in found]}
    machine(where).keep_facts(FACTS.format(plain.spec.key), facts)
    return found


def recall(encoder: Encoder, device: str) -> list[Measured]:
    """What was measured of an encoder on this machine; nothing when it never was, or is not understood."""
    facts = machine(resolve_device(device)).facts(FACTS.format(encoder.spec.key)) or {}
    try:
        found = [Measured(**row) for row in facts.get("measured", [])]
        usable = all(isinstance(one.gain, float) and one.backend in BACKENDS for one in found)
        return found if usable and any(one.backend == FP32 and one.qualifies for one in found) else []
    except TypeError:
        return []


def machine(device: str) -> Remembered:
    """What is remembered of this machine as it is: another processor, core count or library has findings of its own."""
    on = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return Remembered((on, str(cores()), device, f"torch {torch.__version__}", f"onnxruntime {version('onnxruntime')}"))


def _processor() -> str:
    """The model and what it can do, where the kernel tells it: virtual machines of one name may be of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    found = {name.strip(): value.strip() for name, value in told.items()}
    return " ".join([found.get("model name", platform.machine()), found.get("flags", found.get("Features", ""))])


@lru_cache(maxsize=3)
def _loaded(name: str, device: str, backend: str) -> Encoder:
    return _built(name, device, backend)


def _built(name: str, device: str, backend: str) -> Encoder:
    """An encoder of its own. torch keeps what it compiled, as code, in a shared folder unless it is given one."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    return backends.encoder_on(_tower(name), backend=backend, device=device, keep=machine(device).file)


@lru_cache(maxsize=1)
def _tower(name: str) -> Tower:
    """A network's files, read once for whatever backends it is tried on. Raises EncoderError."""
    if name.startswith(torchvision_encoder.PREFIX):
        return torchvision_encoder.torchvision_tower(name)
    return open_clip_tower(name)


def rows(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """A row a backend, for people."""
    chosen = speed.fastest(measured)
    return [
        {
            "backend": one.backend,
            "images_per_second": round(one.rate, 1),
            "times_fp32": round(one.gain, 2),
            "cosine": round(one.cosine, 5),
            "chosen": one.backend == chosen,
            "detail": one.reason,
        }
        for one in measured
    ]
