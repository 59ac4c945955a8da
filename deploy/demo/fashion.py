"""Fashion-MNIST: the idx files, the garments' names, what one can see of them, and the words for it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

SOURCE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
SIDE = 28

CLASS_NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
TONES = ("dark", "medium", "light")
TEMPLATES = ("a photo of a {}", "a picture of a {}", "a product photo of a {}", "an image of a {}", "a {}")

# Terciles of the garments' mean brightness over the first 40,000 training images; the background is 0.
TONE_EDGES = (140.0, 181.0)
GARMENT = 16  # a pixel at least this bright belongs to the garment


class Fashion(NamedTuple):
    """Images and their classes."""

    images: NDArray[np.uint8]  # (n, 28, 28)
    classes: NDArray[np.int64]  # (n,)


def read(part: Literal["train", "t10k"], *, source: Path = SOURCE) -> Fashion:
    """The 60,000 training or the 10,000 test images. Raises FileNotFoundError, naming the package to install."""
    files = [source / f"{part}-images-idx3-ubyte.gz", source / f"{part}-labels-idx1-ubyte.gz"]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"'{file}' does not exist; install Debian's dataset-fashion-mnist, or give --source DIR"
            )
    pixels, labels = (gzip.decompress(file.read_bytes()) for file in files)
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, SIDE, SIDE)
    return Fashion(images, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))


def brightness(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean brightness (n,) of the garment's pixels, 0..255."""
    garment = images >= GARMENT
    result: NDArray[np.float64] = (images * garment).sum(axis=(1, 2)) / np.maximum(1, garment.sum(axis=(1, 2)))
    return result


def tones(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Tone (n,) of each garment as a place in TONES."""
    return np.digitize(brightness(images), TONE_EDGES)


def captions(template: str) -> tuple[list[str], list[str]]:
    """(10 captions of classes, 30 captions of class and tone, class by class) in one template."""
    plain = [_article(template.format(name)) for name in CLASS_NAMES]
    toned = [_article(template.format(f"{tone} {name}")) for name in CLASS_NAMES for tone in TONES]
    return plain, toned


def _article(text: str) -> str:
    return text.replace("a ankle", "an ankle")
