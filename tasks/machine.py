"""What this machine can do: how fast each backend and decoding is, and what to expect of embedding."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from models.elements import place_of
from models.settings import Settings, load_settings
from tasks import encoders
from tasks.compute import speed
from tasks.compute.cores import cores
from tasks.compute.encoder import resolve_device
from tasks.compute.frame import Frame
from tasks.decoding import Work, local_decoders
from tasks.stages import DECODING, ENCODING

Row = dict[str, Any]
SIZES = ((500, 375), (1024, 768))
QUALITY = 90
DECODE_SECONDS = 2.0  # about, of every core
CHUNK = 16


def measure(encoder_name: str) -> Row:
    """Backends, decoding and what they amount to, measured now. Backends are remembered. Raises BadInput."""
    settings = load_settings()
    encoder_name = encoders.encoder_named(encoder_name, settings)
    measured = encoders.measure_backends(encoder_name, settings.device)
    chosen = speed.fastest(measured)
    best = next(one for one in measured if one.backend == chosen)
    frame = encoders.load_encoder(encoder_name, settings.device).frame
    device = resolve_device(settings.device)
    decoding = [decode_rates(settings, frame, size) for size in SIZES]
    return {
        "encoder": encoder_name,
        "device": device,
        "cores": cores(),
        "backends": encoders.rows(measured),
        "decoding": decoding,
        "expect": [expected(best, row, shared=device == "cpu") for row in decoding],
    }


def decode_rates(settings: Settings, frame: Frame, size: tuple[int, int]) -> Row:
    """Images a second, of a core and of all, that JPEGs of a size are read and decoded to a frame at."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dipnet-doctor-")))
        files = _written(folder, size)
        decoders = local_decoders(settings)

        def works(count: int) -> Iterator[Work]:
            for tag in range(-(-count // CHUNK)):
                places = [place_of(str(files[(tag * CHUNK + i) % len(files)])) for i in range(CHUNK)]
                yield Work(tag, places, [""] * CHUNK)

        def run(count: int) -> tuple[int, float, float]:
            started, done, busy = time.monotonic(), 0, 0.0
            for chunk in decoders.map(works(count), frame):
                done, busy = done + len(chunk.seen), busy + chunk.decode_seconds
                chunk.release()
            return done, time.monotonic() - started, busy

        run(CHUNK * decoders.workers)  # processes start
        done, seconds, _ = run(2 * CHUNK * decoders.workers)
        done, seconds, busy = run(int(DECODE_SECONDS * done / seconds))
    return {
        "jpeg": f"{size[0]}×{size[1]}",
        "images_per_second_a_core": round(done / busy, 1),
        "images_per_second": round(done / seconds, 1),
    }


def expected(best: speed.Measured, decoding: Row, *, shared: bool) -> Row:
    """What embedding should reach. Stages that share the cores take turns; with a GPU the slower one decides."""
    rate = decoding["images_per_second"]
    reached = 1 / (1 / best.rate + 1 / rate) if shared else min(best.rate, rate)
    return {
        "jpeg": decoding["jpeg"],
        "images_per_second": round(reached, 1),
        "hours_a_million": round(1e6 / reached / 3_600, 1),
        "bottleneck": DECODING if rate < best.rate else ENCODING,
    }


def _written(folder: Path, size: tuple[int, int]) -> Sequence[Path]:
    """Pictures like photographs, as JPEG."""
    files = []
    for number, scene in enumerate(speed.scenes(8, size[1], size[0])):
        held = io.BytesIO()
        Image.fromarray(scene).save(held, "JPEG", quality=QUALITY)
        files.append(folder / f"{number}.jpg")
        files[-1].write_bytes(held.getvalue())
    return files
