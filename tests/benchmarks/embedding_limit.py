"""End to end, from files to committed shards, as a share of what the machine allows."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from models.plans import EmbedPlan, IngestPlan
from models.settings import load_settings
from tasks import embedding, encoders, ingesting, stages
from tasks.compute.encoder import Encoder
from tests.benchmarks.embedding_encoders import encoder_alone_rate, random_clip
from tests.benchmarks.embedding_images import decode_alone_rate, photographs
from tests.benchmarks.harness import Check, say

BAR = 0.90
SIZES = ((500, 375), (1024, 768))
MODELS = ("ViT-S-32", "ViT-B-32")
SECONDS = 12.0  # of the encoder alone, so that a round of everything is about a minute


class Round(NamedTuple):
    """Images a second of one round."""

    encoder: float
    decoding: float
    end_to_end: float
    told: float  # what the run itself says of its share

    @property
    def limit(self) -> float:
        """Of stages that share the cores; with a GPU of the slower one."""
        if torch.cuda.is_available():
            return min(self.encoder, self.decoding)
        return 1 / (1 / self.encoder + 1 / self.decoding)


def limit(*, quick: bool) -> list[Check]:
    """Share of the limit, for two shapes of encoder and two sizes of image."""
    found = []
    for model in MODELS[:1] if quick else MODELS:
        for size in SIZES[:1] if quick else SIZES:
            with tempfile.TemporaryDirectory(prefix="dipnet-limit-") as folder:
                found.append(_check(Path(folder), model, size, rounds=2 if quick else 3))
    return found


def _check(folder: Path, model: str, size: tuple[int, int], *, rounds: int) -> Check:
    name = str(random_clip(folder / model, model))
    os.environ |= {"DIPNET_ROOT": str(folder / "root"), "DIPNET_ENCODER": name}
    settings = load_settings()
    backend = encoders.choose_backend(name, settings, images=1_000_000)
    encoder = encoders.load_encoder(name, settings.device, backend)
    count = max(256, int(SECONDS * encoder_alone_rate(encoder, encoder.batch, 3.0)))
    files = photographs(folder / "images", count, size)
    measured = [_round(folder, number, files, encoder) for number in range(rounds)]
    shares = [one.end_to_end / one.limit for one in measured]
    for one, share in zip(measured, shares, strict=True):
        say(f"  {model} {size[0]}×{size[1]} {encoder.backend}: {one}, {share:.3f} of the limit")
    value = statistics.median(shares)
    detail = {"backend": encoder.backend, "images": count, "rounds": [one._asdict() for one in measured]}
    named = f"{model}, {size[0]}×{size[1]} JPEG ({encoder.backend}): share of the limit"
    return Check(named, value, "of the limit", BAR, value >= BAR, [min(shares), max(shares)], detail)


def _round(folder: Path, number: int, files: Sequence[Path], encoder: Encoder) -> Round:
    """Each stage alone and then all of it, close together: the machine is shared."""
    alone = encoder_alone_rate(encoder, encoder.batch, SECONDS)
    decoding = decode_alone_rate(files, encoder.frame, load_settings().decoders)
    corpus = f"round-{number}"
    ingesting.ingest(IngestPlan(corpus=corpus, prefix=str(folder / "images")))
    pending = embedding.pending_shards(corpus, "")
    started = time.monotonic()
    done = embedding.embed_shards(pending, "", EmbedPlan(corpora=[corpus]).batch_size)
    rate = len(files) / (time.monotonic() - started)
    return Round(alone, decoding, rate, stages.share_of_limit(done))
