"""Kill -9 at random instants of `dipnet embed`, here and on Ray: the finished set is what an undisturbed run gives."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.harness import Check, say
from tests.conftest import CLIP, draw_images
from tests.tasks.killed_embedding import Campaign, Nursery, campaign, corpus_of, ray_campaign

CORPUS = "pool"
SHARDS, OF = 12, 40


def kills(*, quick: bool) -> list[Check]:
    """Of the process group, of the first process alone, and of one that decodes, in turns."""
    count = 3 if quick else 20
    began = time.monotonic()
    with _house(SHARDS) as scratch, Nursery() as nursery:
        found = campaign(nursery, CORPUS, scratch, count, ["group", "parent", "worker"])
    return [_check(f"{count} kills −9 at random instants, local", found, time.monotonic() - began)]


def ray_kills(*, quick: bool) -> list[Check]:
    """Of workers of Ray: those that decode, and actors that encode, of which there are two each."""
    count = 1 if quick else 5
    began = time.monotonic()
    with _house(SHARDS if quick else 3 * SHARDS) as scratch, Nursery() as nursery:
        found = ray_campaign(nursery, CORPUS, scratch, count)
    return [_check(f"{count} worker kills −9, Ray with 2 workers", found, time.monotonic() - began)]


def _check(name: str, found: Campaign, seconds: float) -> Check:
    for one in found.wrong:
        say(f"  {one}")
    detail = {
        "kills": dict(found.kills), "wrong": found.wrong, "half-written files left": found.partial,
        "seconds": round(seconds),
    }  # fmt: skip
    return Check(
        f"{name}: other sets, shards redone, processes or files left", len(found.wrong), "", 0, not found.wrong,
        detail=detail,
    )  # fmt: skip


@contextmanager
def _house(shards: int) -> Iterator[Path]:
    """A dipnet of the benchmark's own, with a corpus that has labels and two unreadable images; an empty folder in it."""
    with tempfile.TemporaryDirectory(prefix="dipnet-kills-") as name:
        folder = Path(name)
        os.environ |= {
            "DIPNET_ROOT": str(folder / "root"), "DIPNET_ENCODER": str(CLIP), "DIPNET_SHARD_SIZE": str(OF),
            "DIPNET_LABELER": "oracle",
        }  # fmt: skip
        images = draw_images(folder / "images", shards * OF, seed=1)
        (images / "0007.png").write_bytes(b"")
        (images / "0100.png").write_bytes((images / "0101.png").read_bytes()[:300])
        corpus_of(images, CORPUS)
        (folder / "scratch").mkdir()
        yield folder / "scratch"
