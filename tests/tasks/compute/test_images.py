"""Whatever the bytes are, the outcome is an image or a reason."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from tasks.compute.frame import Frame
from tasks.compute.images import Limits, Reason, Unreadable, decode, fingerprint, inside, look

ALL = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
FRAME = Frame(16, 16)
LIMITS = Limits(1_000_000)
HOUSE = Path(__file__).parents[3]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)  # type: ignore[arg-type]
    return sink.getvalue()


def gradient(width: int = 32, height: int = 16) -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1)))


def smooth(width: int, height: int) -> Image.Image:
    """Something like a photograph: slow changes in each colour, and an edge."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    colours = [np.sin(7 * x + 3 * y), np.cos(5 * y - 2 * x), np.sin(11 * x * y)]
    pixels = 128 + 90 * np.stack(colours, -1)
    pixels[height // 3 : height // 2, width // 4 : width // 2] *= 0.4
    return Image.fromarray(pixels.astype(np.uint8))


def whole(data: bytes, frame: Frame = FRAME) -> NDArray[np.uint8]:
    (pixels,) = look(data, frame, [None], LIMITS).pixels
    assert not isinstance(pixels, Reason)
    return pixels


def decibels(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((one.astype(float) - other) ** 2), 1e-9)))


def resized_and_cropped(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """What open_clip and torchvision do."""
    width, height = image.size
    size = (side, side * height // width) if width <= height else (side * width // height, side)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side)))


def exif(orientation: int = 1, **texts: str) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    tags = {"taken": 0x9003, "offset": 0x9011, "fraction": 0x9291}
    made.get_ifd(0x8769).update({tags[name]: text for name, text in texts.items()})
    return made


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_common_formats_and_modes_come_out_in_rgb(kind: str, mode: str) -> None:
    image = gradient().convert(mode)
    if kind in ("JPEG", "WEBP") and mode == "P":
        image = image.convert("RGB")
    data = encoded(image, kind)
    found = decode(data, max_pixels=10_000)
    assert (found.image.mode, found.width, found.height) == ("RGB", 32, 16)
    assert abs(int(np.asarray(found.image)[8, 31, 0]) - 255) < 12
    assert look(data, FRAME, [None], LIMITS)[:3] == (32, 16, None)
    assert abs(int(whole(data)[8, 15, 0]) - 190) < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str, order: str) -> None:
    pixels = np.tile(np.linspace(0, 65_535, 32).astype(np.uint16), (16, 1))
    image = Image.frombytes("I;16B" if order == ">u2" else "I;16", (32, 16), pixels.astype(order).tobytes())
    found = np.asarray(decode(encoded(image, kind), max_pixels=10_000).image)[8, :, 0]
    assert found[0] == 0
    assert 120 <= found[16] <= 140
    assert found[31] == 255


def test_sixteen_bits_a_colour_are_scaled_too() -> None:
    rows = b"".join(b"\x00" + struct.pack(">3H", 0, 32_896, 65_535) * 4 for _ in range(4))
    chunks = [(b"IHDR", struct.pack(">2I5B", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    found = decode(png(chunks), max_pixels=100).image
    assert found.getpixel((2, 2)) == (0, 128, 255)


@pytest.mark.parametrize("white", [1.0, 255.0, 65_535.0, 1e9])
def test_floats_are_scaled_by_the_white_they_seem_to_have(white: float) -> None:
    pixels = np.tile(np.linspace(0, white, 32).astype(np.float32), (16, 1))
    pixels[0, :4] = [np.nan, np.inf, -np.inf, -white]
    found = np.asarray(decode(encoded(Image.fromarray(pixels), "TIFF"), max_pixels=10_000).image)[:, :, 0]
    assert found[0, :4].tolist() == [0, 0, 0, 0]
    assert found[8, [0, 31]].tolist() == [0, 255]
    assert 120 <= found[8, 16] <= 140


def test_transparency_is_laid_on_white() -> None:
    clear = encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG")
    assert decode(clear, max_pixels=100).image.getpixel((0, 0)) == (255, 255, 255)
    assert whole(clear).min() == 255
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    assert decode(encoded(palette, "GIF", transparency=1), max_pixels=100).image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_turned_into_rgb(kind: str) -> None:
    data = encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), kind)
    for red, green, blue in (decode(data, max_pixels=2_000).image.getpixel((1, 1)), whole(data)[8, 8]):  # type: ignore[misc]
        assert red > 200
        assert max(green, blue) < 60


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_what_moves_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("white", "black", "black")]
    assert whole(encoded(frames[0], kind, save_all=True, append_images=frames[1:])).min() > 250


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_upright(kind: str, orientation: int) -> None:
    turns = [None, *(Image.Transpose(turn) for turn in (0, 3, 1, 5, 2, 6, 4))]  # back from upright to how it is stored
    upright = smooth(203, 101)
    turn = turns[orientation - 1]
    stored = upright if turn is None else upright.transpose(turn)
    data = encoded(stored, kind, exif=exif(orientation), quality=95)
    assert decode(data, max_pixels=100_000).image.size == (203, 101)
    looked = look(data, FRAME, [None, (100, 0, 103, 101)], LIMITS)
    assert (looked.width, looked.height) == (203, 101)
    for pixels, wanted in zip(looked.pixels, (upright, upright.crop((100, 0, 203, 101))), strict=True):
        assert not isinstance(pixels, Reason)
        assert decibels(pixels, resized_and_cropped(wanted, 16)) > 33


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (301, 227), (90, 64), (20, 500), (1_000, 777)])
def test_a_jpeg_decoded_small_is_what_it_would_be_at_full_size(size: tuple[int, int]) -> None:
    frame = Frame(64, 64)
    data = encoded(smooth(*size), "JPEG", quality=90)
    full = decode(data, max_pixels=1_000_000).image
    assert decibels(whole(data, frame), resized_and_cropped(full, 64)) > 38


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [(333, 250), (40, 50), (500, 90)])
def test_other_formats_are_resized_and_cropped_as_pil_does(kind: str, size: tuple[int, int]) -> None:
    image = smooth(*size)
    data = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(whole(data, Frame(64, 64)), resized_and_cropped(image, 64))


def test_frames_pad_squash_and_crop() -> None:
    wide = encoded(Image.new("RGB", (40, 20), "white"), "PNG")
    padded = whole(wide, Frame(16, 16, fit="pad", fill=(1, 2, 3)))
    assert padded[:4].reshape(-1, 3).tolist() == [[1, 2, 3]] * 64
    assert padded[4:12].min() == 255
    assert whole(wide, Frame(8, 24, fit="squash")).shape == (8, 24, 3)
    assert whole(wide, Frame(8, 24)).min() == 255
    bars = np.zeros((20, 40, 3), np.uint8)
    bars[:, 10:30] = 255
    closer = whole(encoded(Image.fromarray(bars), "PNG"), Frame(16, 16, resize=32, interpolation="bilinear"))
    assert closer.min() == 255


def test_an_endless_strip_is_not_blown_up() -> None:
    strip = encoded(Image.new("RGB", (60_000, 1), "white"), "PNG")
    assert whole(strip, Frame(224, 224)).min() == 255


def test_boxes_come_from_one_decode() -> None:
    quarters = np.zeros((200, 300, 3), np.uint8)
    quarters[100:, 150:] = 255
    boxes = [None, (150, 100, 150, 100), (0, 0, 150, 100), (250, 150, 500, 500), (-50, -50, 100, 100)]
    for data in (encoded(Image.fromarray(quarters), "PNG"), encoded(Image.fromarray(quarters), "JPEG", quality=95)):
        found = look(data, FRAME, [*boxes, (300, 0, 5, 5), (0, 0, 0, 5), (-9, 0, 9, 9)], LIMITS)
        middles = [int(pixels[8, 8, 0]) if not isinstance(pixels, Reason) else pixels for pixels in found.pixels]
        assert abs(int(middles[1]) - 255) <= 3
        assert abs(int(middles[3]) - 255) <= 3
        assert max(int(middles[2]), int(middles[4])) <= 3
        assert middles[5:] == [Reason.OUTSIDE] * 3


def test_a_small_box_has_the_detail_of_the_original() -> None:
    image = smooth(1_000, 800)
    data = encoded(image, "JPEG", quality=95)
    (pixels,) = look(data, FRAME, [(700, 500, 20, 20)], LIMITS).pixels
    assert not isinstance(pixels, Reason)
    assert decibels(pixels, resized_and_cropped(image.crop((700, 500, 720, 520)), 16)) > 35


def test_what_of_a_box_juts_out_is_cut_off() -> None:
    assert inside((5, 5, 100, 2), 20, 20) == (5, 5, 20, 7)
    assert inside(None, 20, 10) == (0, 0, 20, 10)
    assert inside((20, 0, 1, 1), 20, 20) is None


@pytest.mark.parametrize(
    ("texts", "micros"),
    [
        ({"taken": "1970:01:02 00:00:01"}, 86_401_000_000),
        ({"taken": "1970:01:02 00:00:01", "offset": "+01:00"}, 82_801_000_000),
        ({"taken": "1970:01:02 00:00:01", "offset": "-00:30", "fraction": "25"}, 88_201_250_000),
        ({"taken": "0000:00:00 00:00:00"}, None),
        ({"taken": "2020:13:01 00:00:00"}, None),
        ({"taken": "yesterday"}, None),
        ({"taken": "1970:01:02 00:00:01", "offset": "Z", "fraction": "half"}, 86_401_000_000),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_time_of_a_camera_is_taken_in_utc(kind: str, texts: dict[str, str], micros: int | None) -> None:
    assert look(encoded(gradient(), kind, exif=exif(**texts)), FRAME, [None], LIMITS).taken_at == micros


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"\x00" * 500, Reason.NOT_AN_IMAGE),
        (b"just some text, named .jpg by somebody", Reason.NOT_AN_IMAGE),
        (b"BMW makes cars, and this is no bitmap", Reason.NOT_AN_IMAGE),
        (encoded(gradient(), "JPEG")[:-200], Reason.TRUNCATED),
        (encoded(gradient(), "JPEG")[:3], Reason.TRUNCATED),
        (encoded(gradient(), "PNG")[:60], Reason.TRUNCATED),
        (encoded(gradient(), "TIFF")[:40], Reason.TRUNCATED),
        (encoded(gradient(200, 200), "PNG"), Reason.TOO_LARGE),
        (encoded(gradient(200, 200), "JPEG"), Reason.TOO_LARGE),
        (encoded(gradient(200, 200), "GIF"), Reason.TOO_LARGE),
    ],
)
def test_what_cannot_be_read_has_a_reason(data: bytes, reason: Reason) -> None:
    with pytest.raises(Unreadable) as caught:
        decode(data, max_pixels=10_000)
    assert caught.value.reason is reason
    with pytest.raises(Unreadable) as caught:
        look(data, FRAME, [None], Limits(10_000))
    assert caught.value.reason is reason


def test_a_jpeg_of_a_thousand_scans_is_not_begun() -> None:
    data = encoded(smooth(64, 64), "JPEG", progressive=True)
    assert whole(data).shape == (16, 16, 3)
    last = data.rindex(b"\xff\xda")
    bomb = data[:last] + data[last:-2] * 1_000 + data[-2:]
    with pytest.raises(Unreadable, match=Reason.TOO_SLOW):
        look(bomb, FRAME, [None], LIMITS)
    film = data + b"\xff\xda" * 1_000  # whatever follows the image
    assert whole(film).shape == (16, 16, 3)


def test_tags_that_claim_more_than_there_is_are_not_read() -> None:
    data = bytearray(encoded(Image.new("RGB", (400, 400)), "TIFF"))
    (start,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    tags = bytes(data[start + 2 : start + 2 + 12 * count])
    claims = b"".join(struct.pack("<HHLL", 60_000 + number, 1, 400_000, 8) for number in range(3_000))
    bomb = data + struct.pack("<H", count + 3_000) + tags + claims + bytes(4)
    struct.pack_into("<L", bomb, 4, len(data))
    with pytest.raises(Unreadable, match=Reason.TRUNCATED):
        look(bytes(bomb), FRAME, [None], LIMITS)


def test_directories_of_tags_that_point_at_themselves_are_left() -> None:
    data = bytearray(encoded(gradient(), "TIFF"))
    (start,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<L", data, start + 2 + 12 * count, start)  # the next image is the first
    assert whole(bytes(data)).shape == (16, 16, 3)


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def test_text_that_unpacks_to_gigabytes_is_refused() -> None:
    body = b"Comment\x00\x00" + zlib.compress(bytes(5_000_000))
    header = (b"IHDR", struct.pack(">2I5B", 4, 4, 8, 0, 0, 0, 0))
    pixels = (b"IDAT", zlib.compress(bytes(20)))
    with pytest.raises(Unreadable, match=Reason.TRUNCATED):
        look(png([header, (b"zTXt", body), pixels, (b"IEND", b"")]), FRAME, [None], LIMITS)


def test_a_jpeg_with_a_slip_that_pil_forgives_is_read() -> None:
    data = encoded(smooth(64, 64), "JPEG", quality=90)
    slip = data[:-2] + b"\x00\x00\x00" + data[-2:]  # bytes between the last block and the end
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(slip)
    assert np.array_equal(whole(slip, Frame(64, 64)), whole(data, Frame(64, 64)))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ALL)
def test_damaged_bytes_never_raise_anything_else(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    options = {} if kind in ("GIF", "BMP") else {"exif": exif(6, taken="2020:01:01 00:00:00")}
    good = bytearray(encoded(gradient(), kind, **options))
    for number in range(200):
        bad = bytearray(good)
        for place in generator.integers(0, len(bad), 6):
            bad[place] = generator.integers(0, 256)
        if number % 4 == 0:
            del bad[generator.integers(0, len(bad)) :]
        try:
            look(bytes(bad), FRAME, [None, (3, 3, 9, 9)], LIMITS)
        except Unreadable as problem:
            assert problem.reason in set(Reason)


def test_the_same_bytes_have_the_same_id() -> None:
    assert (
        fingerprint(b"abc") == fingerprint(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert fingerprint(b"abd") != fingerprint(b"abc")


def test_decoding_processes_start_without_torch_and_what_else_is_slow() -> None:
    code = "import sys, tasks.decoder; print([name for name in ('torch', 'pydantic', 'sqlalchemy') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=HOUSE, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
