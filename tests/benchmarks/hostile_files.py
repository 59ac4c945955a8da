"""Images as the world has them: damaged, disguised, enormous, odd. Each kind says what must become of it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.compute.images import Reason

READ, ANY = "", "whatever the damage hit"
MOST_BYTES = 5_000_000
Random = np.random.Generator
Kind = tuple[str, Callable[[Image.Image, Random], bytes | int]]  # an int: a file of so many bytes, all zero


def photograph(random: Random, size: tuple[int, int]) -> Image.Image:
    """Something with the spectrum of a photograph (amplitudes fall as 1/f), and edges."""
    width, height = size
    frequency = np.hypot(np.fft.rfftfreq(width)[None], np.fft.fftfreq(height)[:, None])
    frequency[0, 0] = 1.0
    noise = random.standard_normal((2, 3, *frequency.shape))
    waves = np.fft.irfft2((noise[0] + 1j * noise[1]) / frequency**1.2, (height, width))
    waves = (waves - waves.mean((1, 2), keepdims=True)) / waves.std((1, 2), keepdims=True)
    light = waves[0] * 45 + random.uniform(90, 150)
    pixels = np.stack([light + waves[1] * 12, light + waves[2] * 8, light - waves[1] * 10], -1)
    y, x = np.mgrid[:height, :width]
    for _ in range(8):
        a, b = random.uniform(0.03, 0.25, 2) * width
        across, down = (x - random.uniform(0, width)) / a, (y - random.uniform(0, height)) / b
        within = across**2 + down**2 < 1 if random.random() < 0.5 else np.maximum(abs(across), abs(down)) < 1
        pixels[within] = pixels[within] * 0.5 + random.uniform(0, 128, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def photographs(folder: Path, count: int, size: tuple[int, int], *, seed: int = 0, varied: int = 48) -> list[Path]:
    """JPEGs of photographs, quality 87 and 4:2:0; beyond `varied` they differ by a remark, and thus in their bytes."""
    random = np.random.default_rng(seed)
    made = [encoded(photograph(random, size), "JPEG", quality=87) for _ in range(min(count, varied))]
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:06d}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        file.write_bytes(remarked(made[number % varied], number))
    return files


def remarked(jpeg: bytes, number: int) -> bytes:
    """A JPEG with a number in a comment."""
    text = f"{number:012d}".encode()
    return jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + jpeg[2:]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)  # type: ignore[arg-type]
    return sink.getvalue()


def hostile_files(folder: Path, count: int, *, seed: int) -> dict[Path, str]:
    """So many files, kinds in turns, and what must become of each: READ, ANY, or a reason."""
    random = np.random.default_rng(seed)
    pictures = [photograph(random, (160, 120)) for _ in range(16)]
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[Path, str] = {}
    for number in range(count):
        wanted, make = KINDS[number % len(KINDS)]
        file = folder / f"{number:06d}.jpg"  # names tell nothing
        made = make(pictures[int(random.integers(len(pictures)))], random)
        if isinstance(made, int):
            with file.open("wb") as sparse:
                sparse.truncate(made)
        elif wanted != Reason.MISSING:
            file.write_bytes(made)
        found[file] = wanted
    return found


def _cut(kind: str, low: float, high: float) -> Callable[[Image.Image, Random], bytes]:
    def make(image: Image.Image, random: Random) -> bytes:
        data = encoded(image, kind)
        return data[: int(len(data) * random.uniform(low, high))]

    return make


def _flipped(kind: str) -> Callable[[Image.Image, Random], bytes]:
    def make(image: Image.Image, random: Random) -> bytes:
        data = bytearray(encoded(image, kind))
        for place in random.integers(0, len(data) if random.random() < 0.5 else 600, random.integers(1, 12)):
            data[place] ^= 1 << random.integers(0, 8)
        return bytes(data)

    return make


def _as(kind: str, mode: str = "RGB", **options: object) -> Callable[[Image.Image, Random], bytes]:
    return lambda image, _: encoded(image.convert(mode), kind, **options)


def _moving(kind: str) -> Callable[[Image.Image, Random], bytes]:
    return lambda image, _: encoded(image, kind, save_all=True, append_images=[image.rotate(90), image.rotate(180)])


def _png(width: int, height: int, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (header, *chunks, (b"IEND", b""))
    )


def _resized_header(kind: str) -> Callable[[Image.Image, Random], bytes]:
    """The header claims 60,000 × 60,000 pixels."""

    def make(image: Image.Image, _: Random) -> bytes:
        data = bytearray(encoded(image, kind))
        if kind == "JPEG":
            struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 60_000, 60_000)
        elif kind == "GIF":
            struct.pack_into("<HH", data, 6, 60_000, 60_000)
        else:
            struct.pack_into("<ii", data, 18, 60_000, 60_000)
        return bytes(data)

    return make


def _scans(image: Image.Image, _: Random) -> bytes:
    data = encoded(image, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 400 + data[-2:]


def _tags(image: Image.Image, _: Random) -> bytes:
    """A TIFF of which three thousand tags claim all its bytes each."""
    data = bytearray(encoded(image, "TIFF"))
    (start,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    own = bytes(data[start + 2 : start + 2 + 12 * count])
    claims = b"".join(struct.pack("<HHLL", 60_000 + number, 1, len(data) - 8, 8) for number in range(3_000))
    struct.pack_into("<L", data, 4, len(data))
    return bytes(data) + struct.pack("<H", count + 3_000) + own + claims + bytes(4)


def _text(_: Image.Image, random: Random) -> bytes:
    return b"<!doctype html><title>404</title>" + random.integers(32, 127, 900).astype(np.uint8).tobytes()


def _sixteen(image: Image.Image) -> NDArray[np.uint16]:
    return np.asarray(image.convert("L")).astype(np.uint16) * 257


def _deep_png(image: Image.Image, _: Random) -> bytes:
    rows = np.asarray(image).astype(">u2") * 257
    lines = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in rows)
    return _png(image.width, image.height, 16, 2, (b"IDAT", zlib.compress(lines)))


def _noted(image: Image.Image, random: Random) -> bytes:
    """A JPEG turned by its EXIF, with sixty kilobytes of a maker's notes."""
    exif = Image.Exif()
    exif[0x0112] = int(random.integers(1, 9))
    exif.get_ifd(0x8769)[0x927C] = random.integers(0, 256, 60_000).astype(np.uint8).tobytes()
    return encoded(image, "JPEG", exif=exif)


KINDS: Sequence[Kind] = (
    (Reason.EMPTY, lambda *_: b""),
    (Reason.MISSING, lambda *_: b""),
    (Reason.NOT_AN_IMAGE, _text),
    (Reason.NOT_AN_IMAGE, lambda _, random: b"PK\x03\x04" + random.bytes(2_000)),
    (Reason.NOT_AN_IMAGE, lambda _, random: bytes(int(random.integers(1, 5_000)))),
    (Reason.TRUNCATED, _cut("JPEG", 0.1, 0.9)),
    (Reason.TRUNCATED, _cut("PNG", 0.1, 0.9)),
    (Reason.TRUNCATED, _cut("WEBP", 0.1, 0.9)),
    (Reason.TRUNCATED, _cut("GIF", 0.1, 0.9)),
    (Reason.TRUNCATED, _cut("BMP", 0.1, 0.9)),
    (Reason.TRUNCATED, _cut("TIFF", 0.0005, 0.9)),
    (ANY, _flipped("JPEG")),
    (ANY, _flipped("PNG")),
    (ANY, _flipped("WEBP")),
    (ANY, _flipped("GIF")),
    (ANY, _flipped("BMP")),
    (ANY, _flipped("TIFF")),
    (Reason.TOO_LARGE, lambda *_: _png(60_000, 60_000, 8, 0, (b"IDAT", zlib.compress(bytes(100_000))))),
    (Reason.TOO_LARGE, _resized_header("JPEG")),
    (Reason.TOO_LARGE, _resized_header("GIF")),
    (Reason.TOO_LARGE, _resized_header("BMP")),
    (Reason.TOO_SLOW, _scans),
    (Reason.TRUNCATED, _tags),
    (Reason.TRUNCATED, lambda *_: _png(4, 4, 8, 0, (b"zTXt", b"a\x00\x00" + zlib.compress(bytes(3_000_000))))),
    (Reason.TOO_MANY_BYTES, lambda *_: MOST_BYTES + 1),
    (READ, _deep_png),
    (READ, lambda image, _: encoded(Image.fromarray(_sixteen(image)), "PNG")),
    (READ, lambda image, _: encoded(Image.fromarray(_sixteen(image)), "TIFF", compression="tiff_lzw")),
    (READ, lambda image, _: encoded(Image.fromarray(np.asarray(image.convert("F")) / 255), "TIFF")),
    (READ, _as("JPEG", "CMYK")),
    (READ, _as("TIFF", "CMYK")),
    (READ, _as("JPEG", "L")),
    (READ, _as("JPEG", progressive=True)),
    (READ, _as("JPEG", subsampling="4:4:4")),
    (READ, _as("PNG", "RGBA")),
    (READ, _as("PNG", "LA")),
    (READ, _as("PNG", "1")),
    (READ, _as("GIF", "P", transparency=3)),
    (READ, _as("TIFF", "1", compression="group4")),
    (READ, _as("WEBP", "RGBA")),
    (READ, _moving("GIF")),
    (READ, _moving("WEBP")),
    (READ, _moving("PNG")),
    (READ, _moving("TIFF")),
    (READ, _noted),
    (READ, lambda image, random: encoded(image, "JPEG") + random.bytes(20_000)),
    (READ, lambda image, _: encoded(image.resize((1, 1)), "JPEG")),
    (READ, lambda image, _: encoded(image.resize((20_000, 1)), "PNG")),
)
