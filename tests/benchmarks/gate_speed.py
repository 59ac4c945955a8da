"""A million predictions of a hundred classes: evaluated, compared, and what that takes of memory.

Run as a script it measures in a process of its own, whose memory is that of the work alone, and prints JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HOUSE = Path(__file__).parents[2]
sys.path.insert(0, str(HOUSE))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

CLASSES = 100


class Speed(NamedTuple):
    """Seconds, and the most memory that the process held."""

    evaluate: float
    compare: float
    gigabytes: float


def measure(samples: int) -> Speed:
    """In a process of its own."""
    with tempfile.TemporaryDirectory(prefix="dipnet-benchmark-") as folder:
        for name, seed in (("before", 0), ("after", 1)):
            write(Path(folder) / f"{name}.parquet", samples, seed)
        command = [sys.executable, str(Path(__file__).absolute()), folder]
        done = subprocess.run(command, cwd=HOUSE, stdout=subprocess.PIPE, check=True, text=True)
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def write(path: Path, samples: int, seed: int) -> None:
    """Predictions as dipnet stores them: true classes are the same for both seeds, the model's answers are not."""
    targets = np.random.default_rng(99).integers(0, CLASSES, samples)
    generator = np.random.default_rng(seed)
    names = np.array([f"class-{c:03}" for c in range(CLASSES)])
    ids = pa.array([f"{row:064x}" for row in range(samples)], pa.string())
    schema = pa.schema(
        [(name, pa.string()) for name in ("sample_id", "class_name", "predicted")]
        + [(f"p:{name}", pa.float32()) for name in names]
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, samples, 50_000):
            true = targets[start : start + 50_000]
            logits = generator.normal(size=(len(true), CLASSES)).astype(np.float32)
            logits[np.arange(len(true)), true] += 3.2
            odds = np.exp(logits)
            odds /= odds.sum(axis=1, keepdims=True)
            columns = [ids[start : start + len(true)], pa.array(names[true]), pa.array(names[odds.argmax(1)])]
            writer.write_table(pa.table([*columns, *(pa.array(odds[:, c]) for c in range(CLASSES))], schema=schema))


def _here(folder: Path) -> Speed:
    from storage.tables import open_parquet
    from tasks.compute.intervals import grouping
    from tasks.measuring import differences, measured
    from tasks.predicting import of_parquet

    def timed(work):  # type: ignore[no-untyped-def]
        began = time.perf_counter()
        found = work()
        return time.perf_counter() - began, found

    took, before = timed(lambda: of_parquet(open_parquet(folder / "before.parquet")))
    groups = grouping(None, len(before.targets))
    evaluating, _ = timed(lambda: measured(before, groups))
    opening, after = timed(lambda: of_parquet(open_parquet(folder / "after.parquet")))
    comparing, _ = timed(lambda: differences(before, after, groups, resamples=2_000, seed=0))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return Speed(took + evaluating, took + opening + comparing, most)


if __name__ == "__main__":
    print(json.dumps(_here(Path(sys.argv[1]))._asdict()))
