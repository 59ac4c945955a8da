"""What a shard costs besides its images, and how much memory embedding takes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flows.control_plane import call, control_plane
from flows.corpus import embed_corpus
from models.plans import EmbedPlan, IngestPlan
from models.settings import load_settings
from storage.claims import FileClaims
from tasks import embedding, encoders, ingesting, pipeline, shards
from tests.benchmarks.harness import Check, say
from tests.conftest import CLIP

HOUSE = Path(__file__).parents[2]
OVERHEAD_BAR, SHARD = 0.02, 10_000
MEMORY_BAR, FLAT_BAR = 1e9, 1e8  # bytes; flat: what a hundred times as many images may take besides
KINDS = 256  # different pictures among the images; every file has bytes of its own
EVERY_S = 0.1


def overhead(*, quick: bool) -> list[Check]:
    """Flow, database and storage as a share of a shard's time, with the demo's CLIP: the lightest encoder there is.

    A shard's overhead is what its step takes in a real flow run that is no reading, decoding or encoding: all of the step
    outside the pipeline, Prefect's calls among it, and, though they overlap with the next shard's images where there are
    several in a step, claims, opening the shard and putting it away. It is measured in the run itself, since a
    difference of two runs of a busy machine is mostly the machine. What a flow run takes once, however many shards it
    has, is told beside it: the run's own states, looking for what is pending, counting, the artifact.
    """
    size, count, rounds = (1_000, 2, 1) if quick else (SHARD, 3, 3)
    with _house() as folder, control_plane(folder / "prefect.log"):
        _write_images(folder / "images", size * count, (500, 375))
        os.environ["DIPNET_SHARD_SIZE"] = str(size)
        encoders.load_encoder(str(CLIP), load_settings().device)
        found = [_measured(folder, f"round-{number}", count) for number in range(rounds)]
    spent = [one["overhead"] / count for one in found]
    of_images = [one["images"] / count * SHARD / size for one in found]
    shares = [one / (one + all_of_it) for one, all_of_it in zip(spent, of_images, strict=True)]
    for one, share in zip(found, shares, strict=True):
        say(f"  {one}, {share:.4f} of a shard of {SHARD:,} images")
    share = statistics.median(shares)
    detail = {"shards": count, "images a shard": size, "rounds": found}
    name = f"overhead a shard of {SHARD:,} JPEGs of 500×375, the demo's CLIP"
    once = statistics.median(one["once"] for one in found)
    return [
        Check(name, share, "of its time", OVERHEAD_BAR, share <= OVERHEAD_BAR, [min(shares), max(shares)], detail),
        Check("… and once a flow run, however many shards it has", once, "s"),
    ]


def memory(*, quick: bool) -> list[Check]:
    """The most that all processes of an embedding have at once, above model and interpreter, for two sizes of corpus."""
    sizes = (500, 5_000) if quick else (1_000, 100_000)
    peaks = {}
    for size in sizes:
        with _house() as folder:
            _write_images(folder / "images", size, (64, 64))
            ingesting.ingest(IngestPlan(corpus="pool", prefix=str(folder / "images")))
            told = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.embedding_overhead"],
                env={**os.environ, "PYTHONPATH": str(HOUSE)}, check=True, capture_output=True, text=True,
            )  # fmt: skip
        peaks[size] = json.loads(told.stdout.splitlines()[-1])
        say(f"  {size:,} images: {peaks[size]}")
    small, large = (peaks[size]["peak"] - peaks[size]["before"] for size in sizes)
    grown = large - small
    return [
        Check(f"peak memory, {sizes[0]:,} images", small / 1e6, "MB", MEMORY_BAR / 1e6, small <= MEMORY_BAR),
        Check(f"peak memory, {sizes[1]:,} images", large / 1e6, "MB", MEMORY_BAR / 1e6, large <= MEMORY_BAR),
        Check("… more than with the smaller corpus", grown / 1e6, "MB", FLAT_BAR / 1e6, grown <= FLAT_BAR),
    ]


def _measured(folder: Path, corpus: str, count: int) -> dict[str, float]:
    """A flow run over a new corpus, and where its time went."""
    ingesting.ingest(IngestPlan(corpus=corpus, prefix=str(folder / "images")))
    clock = Clock()
    with (
        clock.on(embedding, "embed_shards"), clock.on(pipeline, "run"),
        clock.on(shards, "open_shard"), clock.on(shards, "put_away"),
        clock.on(pipeline.Job, "vectors"), clock.on(FileClaims, "take"), clock.on(FileClaims, "release"),
    ):  # fmt: skip
        started = time.monotonic()
        (done,) = call(embed_corpus)(EmbedPlan(corpora=[corpus]))
        total = time.monotonic() - started
    if done.shards_done != count:
        raise RuntimeError(f"{done.shards_done} shards instead of {count}")
    spent = clock.spent
    # Whoever puts a shard away first waits for its last vectors.
    inside = spent["open_shard"] + spent["put_away"] - spent["vectors"] + spent["take"] + spent["release"]
    outside = spent["embed_shards"] - spent["run"]
    once = total - spent["embed_shards"]
    return {"overhead": outside + inside, "images": spent["run"] - inside, "once": once, "total": total} | spent


class Clock:
    """How long calls of functions took, all together."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def on(self, owner: Any, name: str) -> Iterator[None]:
        """Time a function for the block."""
        real: Callable[..., Any] = getattr(owner, name)
        self.spent[name] = 0.0

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            try:
                return real(*args, **kwargs)
            finally:
                self.spent[name] += time.monotonic() - started

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, real)


@contextmanager
def _house() -> Iterator[Path]:
    """A dipnet of the benchmark's own."""
    with tempfile.TemporaryDirectory(prefix="dipnet-overhead-") as name:
        folder = Path(name)
        os.environ.pop("DIPNET_SHARD_SIZE", None)
        os.environ |= {"DIPNET_ROOT": str(folder / "root"), "DIPNET_ENCODER": str(CLIP), "DIPNET_LABELER": "oracle"}
        yield folder


def _write_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEGs, each of bytes of its own: what follows a picture's end no decoder looks at."""
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(min(KINDS, count)):
        coarse = Image.fromarray(generator.integers(0, 256, (size[1] // 16 + 1, size[0] // 16 + 1, 3)).astype(np.uint8))
        grain = generator.normal(0, 6, (size[1], size[0], 3))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float64)
        buffer = BytesIO()
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        pictures.append(buffer.getvalue())
    for number in range(count):
        part = folder / f"{number // 1_000:03d}"
        if number % 1_000 == 0:
            part.mkdir(parents=True)
        (part / f"{number:06d}.jpg").write_bytes(pictures[number % len(pictures)] + number.to_bytes(8))


def _embed_watched() -> None:
    """In a process of its own: embed, and say what all its processes had at most, and before they began."""
    encoder = encoders.load_encoder(str(CLIP), load_settings().device)
    encoder.encode_pixels(np.zeros((4, encoder.frame.height, encoder.frame.width, 3), np.uint8))
    peak = before = _memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(EVERY_S):
            peak = max(peak, _memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    (found,) = embed_corpus.fn(EmbedPlan(corpora=["pool"]))
    done.set()
    watcher.join()
    told = {"before": before, "peak": peak, "vectors": found.vectors, "images a second": found.images_per_second}
    print(json.dumps(told))


def _memory() -> int:
    """Bytes of this process and its children; what they share counts once."""
    own = str(os.getpid())
    pids = [own, *(pid for pid in os.listdir("/proc") if pid.isdigit() and _parent(pid) == own)]  # noqa: PTH208
    return sum(_pss(pid) for pid in pids)


def _pss(pid: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _parent(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except (OSError, IndexError):
        return ""


if __name__ == "__main__":
    _embed_watched()
