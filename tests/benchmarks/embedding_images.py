"""Decoding: what it survives, how fast it is alone, and against what people use."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from models.elements import Place
from storage.reading import Access
from tasks.compute.cores import cores
from tasks.compute.frame import Frame
from tasks.compute.images import Reason
from tasks.decoding import LocalDecoders, Seen, Work
from tests.benchmarks.harness import Check, say
from tests.benchmarks.hostile_files import ANY, MOST_BYTES, READ, hostile_files, photographs

__all__ = ["against_dataloader", "decode_alone_rate", "hostile", "photographs"]

CHUNK = 64
FRAME = Frame(224, 224)
BARS = {(500, 375): 1.5, (1024, 768): 2.2}
MIDDLE = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
SPREAD = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]


def works(files: Sequence[Path]) -> list[Work]:
    parts = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    return [Work(number, [Place(str(file)) for file in part], [""] * len(part)) for number, part in enumerate(parts)]


def decode_alone_rate(files: Sequence[Path], frame: Frame, workers: int) -> float:
    """Images a second that reading, hashing and decoding do when nothing else runs. No workers: one a core."""
    decoders = LocalDecoders(Access(), workers=workers or cores())
    given = works(files)
    try:
        for chunk in decoders.map(given[: decoders.workers], frame):  # processes start
            chunk.release()
        started = time.monotonic()
        for chunk in decoders.map(given, frame):
            chunk.release()
        return len(files) / (time.monotonic() - started)
    finally:
        decoders.close()


def hostile(*, quick: bool) -> list[Check]:
    """Hostile files among as many good ones, in an order by chance: each is read, or has the reason that it must have."""
    count = 1_000 if quick else 10_000
    with tempfile.TemporaryDirectory(prefix="dipnet-hostile-") as folder:
        wanted = dict.fromkeys(photographs(Path(folder) / "good", count, (160, 120)), READ)
        wanted |= hostile_files(Path(folder) / "bad", count, seed=1)
        order = [list(wanted)[row] for row in np.random.default_rng(2).permutation(len(wanted))]
        decoders = LocalDecoders(Access(most_bytes=MOST_BYTES), workers=cores(), max_pixels=20_000_000)
        seen: list[Seen] = []
        pictures = 0
        try:
            for chunk in decoders.map(works(order), FRAME):
                seen += chunk.seen
                pictures += len(chunk.pixels)
                chunk.release()
        finally:
            decoders.close()
    return _judged([wanted[file] for file in order], [file.parent.name == "good" for file in order], seen, pictures)


def _judged(wanted: Sequence[str], good: Sequence[bool], seen: Sequence[Seen], pictures: int) -> list[Check]:
    reasons = Counter(row.reason for row in seen)
    as_wanted = [
        row.reason in (READ, *Reason) if want == ANY else row.reason == want
        for row, want in zip(seen, wanted, strict=True)
    ]
    wrong = Counter(
        f"{row.reason or 'read'} instead of {want or 'read'}"
        for row, want, right in zip(seen, wanted, as_wanted, strict=True)
        if not right
    )
    read = [right for right, is_good in zip(as_wanted, good, strict=True) if is_good]
    odd = [right for right, is_good in zip(as_wanted, good, strict=True) if not is_good]
    counted = (pictures + reasons.total() - reasons[READ]) / len(wanted)
    told = {"by_reason": dict(reasons), "wrong": dict(wrong)}
    crashes = reasons[Reason.CRASHED]
    return [
        _all(f"{len(read):,} good files among hostile ones: decoded", read, told),
        _all(f"{len(odd):,} hostile files: read, or counted by the right reason", odd, told),
        Check("hostile files: pixels and reasons add up", counted, "of the rows", 1.0, counted == 1.0),
        Check("hostile files: crashes", crashes, "images", 0, crashes == 0),
    ]


def _all(name: str, right: Sequence[bool], detail: dict[str, object]) -> Check:
    share = float(np.mean(right))
    return Check(name, share, "of them", 1.0, share == 1.0, detail=detail)


class Files(Dataset[torch.Tensor]):
    """Images through open_clip's own preprocessing."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files, self._prepare = files, open_clip.image_transform(224, is_train=False)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self._files[row]) as image:
            prepared: torch.Tensor = self._prepare(image)
        return prepared


def light_encoder(few: torch.Tensor) -> torch.Tensor:
    """Each sixteenth pixel of normalised images (n, 3, 14, 14), projected: (n, 64). Decoding is all there is to do."""
    return few.flatten(1) @ (torch.ones(3 * 14 * 14, 64) / 588)


def ours(decoders: LocalDecoders, files: Sequence[Path]) -> tuple[float, float]:
    """Images a second, and the mean of all vectors: both sides must have looked at the same."""
    started, total = time.monotonic(), 0.0
    for chunk in decoders.map(works(files), FRAME):
        few = torch.from_numpy(chunk.pixels[:, ::16, ::16].copy()).permute(0, 3, 1, 2) / 255
        total += float(light_encoder((few - MIDDLE) / SPREAD).mean(1).sum())
        chunk.release()
    return len(files) / (time.monotonic() - started), total / len(files)


def theirs(loader: DataLoader[torch.Tensor], files: Sequence[Path]) -> tuple[float, float]:
    """The same of torch's loader."""
    started, total = time.monotonic(), 0.0
    for batch in loader:
        total += float(light_encoder(batch[:, :, ::16, ::16]).mean(1).sum())
    return len(files) / (time.monotonic() - started), total / len(files)


def against_dataloader(*, quick: bool) -> list[Check]:
    """How many times faster than open_clip's preprocessing in a DataLoader with as many workers."""
    return [_faster(size, bar, quick=quick) for size, bar in BARS.items()]


def _faster(size: tuple[int, int], bar: float, *, quick: bool) -> Check:
    rounds, count = (3, 256) if quick else (7, 1_024)
    count = count if size[0] < 1_000 else count // 2
    workers = cores()
    decoders = LocalDecoders(Access(), workers=workers)
    with tempfile.TemporaryDirectory(prefix="dipnet-dataloader-") as folder:
        files = photographs(Path(folder), count, size)
        loader = DataLoader(Files(files), batch_size=CHUNK, num_workers=workers, persistent_workers=True)
        try:
            measured = [(ours(decoders, files), theirs(loader, files)) for _ in range(rounds + 1)][1:]  # one to start
        finally:
            decoders.close()
    ratios = [mine[0] / other[0] for mine, other in measured]
    middle = float(np.median(ratios))
    apart = max(abs(mine[1] - other[1]) for mine, other in measured)
    detail = {
        "images_per_second": float(np.median([mine[0] for mine, _ in measured])),
        "dataloader_images_per_second": float(np.median([other[0] for _, other in measured])),
        "workers": workers,
        "means_apart": apart,
        "rounds": rounds,
    }
    say(f"  {size[0]}×{size[1]}: {detail}")
    name = f"decoding {size[0]}×{size[1]} JPEG, against open_clip's preprocessing in a DataLoader"
    quartiles = [float(value) for value in np.quantile(ratios, [0.25, 0.75])]
    return Check(name, middle, "times", bar, middle >= bar and apart < 0.01, quartiles, detail)
