"""Whatever the bytes are, the outcome is an image or a reason."""

import io

import numpy as np
import pytest
from PIL import Image

from tasks.compute.images import Reason, Unreadable, decode, fingerprint


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)  # type: ignore[arg-type]
    return sink.getvalue()


def gradient(width: int = 32, height: int = 16) -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_common_formats_and_modes_come_out_in_rgb(kind: str, mode: str) -> None:
    image = gradient().convert(mode)
    if kind in ("JPEG", "WEBP") and mode == "P":
        image = image.convert("RGB")
    found = decode(encoded(image, kind), max_pixels=10_000)
    assert (found.image.mode, found.width, found.height) == ("RGB", 32, 16)
    assert abs(int(np.asarray(found.image)[8, 31, 0]) - 255) < 12


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    pixels = np.tile(np.linspace(0, 65_535, 32).astype(np.uint16), (16, 1))
    found = np.asarray(decode(encoded(Image.fromarray(pixels), "PNG"), max_pixels=10_000).image)[8, :, 0]
    assert found[0] == 0
    assert 120 <= found[16] <= 140
    assert found[31] == 255


def test_transparency_is_laid_on_white() -> None:
    found = decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG"), max_pixels=100)
    assert found.image.getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_is_turned_into_rgb() -> None:
    found = decode(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"), max_pixels=100)
    red, green, blue = found.image.getpixel((1, 1))  # type: ignore[misc]
    assert red > 200
    assert max(green, blue) < 60


def test_exif_orientation_turns_the_image_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(encoded(gradient(), "JPEG", exif=exif), max_pixels=10_000)
    assert found.image.size == (16, 32)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"just some text, named .jpg by somebody", Reason.NOT_AN_IMAGE),
        (encoded(gradient(), "JPEG")[:-200], Reason.TRUNCATED),
        (encoded(gradient(), "PNG")[:60], Reason.TRUNCATED),
        (encoded(gradient(200, 200), "PNG"), Reason.TOO_LARGE),
    ],
)
def test_what_cannot_be_read_has_a_reason(data: bytes, reason: Reason) -> None:
    with pytest.raises(Unreadable) as caught:
        decode(data, max_pixels=10_000)
    assert caught.value.reason is reason


def test_damaged_bytes_never_raise_anything_else() -> None:
    generator = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        good = bytearray(encoded(gradient(), kind))
        for _ in range(60):
            bad = bytearray(good)
            for place in generator.integers(0, len(bad), 6):
                bad[place] = generator.integers(0, 256)
            try:
                decode(bytes(bad), max_pixels=10_000)
            except Unreadable as problem:
                assert problem.reason in set(Reason)


def test_the_same_bytes_have_the_same_id() -> None:
    assert (
        fingerprint(b"abc") == fingerprint(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert fingerprint(b"abd") != fingerprint(b"abc")
