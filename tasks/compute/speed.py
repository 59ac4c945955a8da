"""How fast an encoder is on each backend, on pictures that are like photographs, and whether its vectors stay the same."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.compute.encoder import BACKENDS, FP32, Encoder, EncoderError

LEAST_COSINE = 0.999
LEAST_GAIN = 1.05  # below that it stays with fp32
SCENES = 32
ROUNDS = 3
ROUND_SECONDS = 1.0  # of fp32, about
IMAGES = 500  # that are encoded in all to compare the backends, about, in units of fp32's time
HOPELESS = 2.0  # times slower than fp32 in the first run


class Measured(NamedTuple):
    """What was found of a backend."""

    backend: str
    rate: float = 0.0  # images a second; 0: not measured
    gain: float = 0.0  # times as fast as fp32, the median of rounds that they took in turns
    cosine: float = 0.0  # to fp32, the least of all pictures
    reason: str = ""  # why it is out of the question; '' for none

    @property
    def qualifies(self) -> bool:
        """Whether its vectors are fp32's."""
        return not self.reason


class Pictures(NamedTuple):
    """What every backend is shown."""

    pixels: NDArray[np.uint8]  # (n, H, W, 3)
    truth: NDArray[np.float32]  # (n, dim), of fp32
    timed: NDArray[np.uint8]  # (m, H, W, 3)
    seconds: float  # that fp32 took for the pixels


def scenes(count: int, height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Pictures (count, H, W, 3) with the spectrum of photographs, colours, shapes with edges, and stripes like text."""
    generator = np.random.default_rng(seed)
    return np.stack([_scene(generator, height, width) for _ in range(count)])


def _scene(generator: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Amplitudes of natural images fall as 1/f (Field, 1987)."""
    across = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    across[0, 0] = 1.0
    noise = generator.normal(size=(height, width, 3))
    clouds = np.fft.irfft2(np.fft.rfft2(noise, axes=(0, 1)) / across[:, :, None], s=(height, width), axes=(0, 1))
    mix = generator.normal(size=(3, 3)) * 0.4 + np.ones((3, 3))  # channels of photographs go together
    picture = clouds / clouds.std() @ mix * generator.uniform(10, 30) + generator.uniform(40, 215, size=3)
    rows, columns = np.mgrid[:height, :width]
    for _ in range(generator.integers(1, 5)):
        y, x, radius = generator.uniform(0, height), generator.uniform(0, width), generator.uniform(0.05, 0.4) * height
        round_ = generator.random() < 0.5
        far = np.hypot(rows - y, columns - x) if round_ else np.maximum(abs(rows - y), abs(columns - x))
        share = generator.uniform(0.4, 1.0)
        inside = far < radius
        picture[inside] = picture[inside] * (1 - share) + generator.uniform(0, 255, size=3) * share
    top, left = generator.integers(0, max(1, height // 2)), generator.integers(0, max(1, width // 2))
    letters = generator.random((max(1, height // 8), max(1, width // 4))) < 0.5
    picture[top : top + letters.shape[0], left : left + letters.shape[1]][letters] = generator.uniform(0, 255)
    shown: NDArray[np.uint8] = np.clip(picture, 0, 255).astype(np.uint8)
    return shown


def seconds_an_image(encoder: Encoder) -> float:
    """A first guess, from a few images."""
    few = scenes(4, encoder.frame.height, encoder.frame.width)
    encoder.encode_pixels(few[:1])
    return _taken(encoder, few) / len(few)


def compare(
    plain: Encoder,
    build: Callable[[str], Encoder],
    backends: Sequence[str] = BACKENDS,
    *,
    seconds: float = ROUND_SECONDS,
) -> list[Measured]:
    """Every backend against `plain`, which is fp32, in turns: a machine is not equally fast all the time.

    A backend's rate is its gain times fp32's median rate of all the rounds. One that cannot be built says why.
    """
    pixels = scenes(SCENES, plain.frame.height, plain.frame.width)
    truth = plain.encode_pixels(pixels)
    first = _taken(plain, pixels)
    pictures = Pictures(pixels, truth, _as_many(pixels, round(len(pixels) * seconds / first)), first)
    taken = [_taken(plain, pictures.timed) for _ in range(ROUNDS)]
    others = [_compared(plain, build, backend, pictures, taken) for backend in backends if backend != FP32]
    rate = len(pictures.timed) / statistics.median(taken)
    return [Measured(FP32, rate, 1.0, 1.0), *(one._replace(rate=one.gain * rate) for one in others)]


def fastest(measured: Sequence[Measured]) -> str:
    """The fastest that qualifies, where it is worth it."""
    best = max((one for one in measured if one.qualifies), key=lambda one: one.gain)
    return best.backend if best.gain >= LEAST_GAIN else FP32


def _compared(
    plain: Encoder, build: Callable[[str], Encoder], backend: str, shown: Pictures, taken: list[float]
) -> Measured:
    """Gain and cosine of a backend; what fp32 took beside it is added to `taken`."""
    try:
        other = build(backend)
    except EncoderError as error:
        return Measured(backend, reason=str(error))
    other.encode_pixels(shown.pixels[:4])  # what is done once, is done
    started = time.perf_counter()
    vectors = other.encode_pixels(shown.pixels)
    once = time.perf_counter() - started
    cosine = float(np.einsum("ij,ij->i", vectors, shown.truth).min()) if np.isfinite(vectors).all() else 0.0
    reason = "" if cosine >= LEAST_COSINE else f"its vectors differ: cosine {cosine:.5f} to fp32"
    if reason or once > HOPELESS * shown.seconds:
        slow = f"{once / shown.seconds:.1f} times slower than fp32"
        return Measured(backend, gain=shown.seconds / once, cosine=cosine, reason=reason or slow)
    rounds = [(_taken(plain, shown.timed), _taken(other, shown.timed)) for _ in range(ROUNDS)]
    taken += [base for base, _ in rounds]
    return Measured(backend, gain=statistics.median(base / one for base, one in rounds), cosine=cosine)


def _taken(encoder: Encoder, pixels: NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    encoder.encode_pixels(pixels)
    return time.perf_counter() - started


def _as_many(pixels: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Fewer of the pictures or the same again, at least half of them: what keeps every core busy."""
    count = min(max(count, len(pixels) // 2), 4_096)
    return np.concatenate([pixels] * -(-count // len(pixels)))[:count]
