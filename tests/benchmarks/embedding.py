"""Embedding: how near the machine's limit it is, against what others do, and what it survives.

    uv run python tests/benchmarks/embedding.py [--json] [--quick] [--only CHECK]

CHECK: limit, dataloader, preprocessing, backends, objects, memory, rows, hostile, kills, ray, overhead. Limits and peers
are measured in the same run, in turns with what is compared to them; figures are medians of the rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

HOUSE = Path(__file__).parents[2]
sys.path.insert(0, str(HOUSE))

from harness import Check, run  # noqa: E402

from tests.benchmarks import (  # noqa: E402
    embedding_encoders,
    embedding_images,
    embedding_kills,
    embedding_limit,
    embedding_overhead,
    embedding_sources,
)

CHECKS: dict[str, Callable[..., list[Check]]] = {
    "limit": embedding_limit.limit,
    "dataloader": embedding_images.against_dataloader,
    "preprocessing": embedding_encoders.preprocessing,
    "backends": embedding_encoders.backends,
    "objects": embedding_sources.many_objects,
    "memory": embedding_overhead.memory,
    "rows": embedding_sources.many_rows,
    "hostile": embedding_images.hostile,
    "kills": embedding_kills.kills,
    "ray": embedding_kills.ray_kills,
    "overhead": embedding_overhead.overhead,
}


if __name__ == "__main__":
    run(str(__doc__), CHECKS)
