"""How fast images are listed and read: a list of a million rows, and many small objects of an S3 server on loopback.

The S3 server is `rclone serve s3`, which checks signatures; it runs on the cores that the reader runs on, so both sides
of the comparison pay for it. Each reads every byte and hashes it. Rounds alternate; medians are compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.elements import Place
from storage.reading import Access, read_ahead
from tests.benchmarks.harness import Check, say
from tests.services import s3

ROOT = Path(__file__).parents[2]
ROWS, OBJECTS, OBJECT_BYTES, ROUNDS, BOTO_THREADS = 1_000_000, 10_000, 50_000, 5, 32

# Peak memory above that of the interpreter with everything imported; getrusage would tell the benchmark's own peak too.
INGEST = """
import json, sys, time
from models.plans import IngestPlan
from storage.stores import open_stores
from tasks import ingesting
def kilobytes(what):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what))
with open_stores():
    pass  # the database is made
before = kilobytes("VmRSS")
begin, work = time.perf_counter(), time.process_time()
found = ingesting.ingest(IngestPlan(corpus="million", prefix=sys.argv[1]))
told = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - work, "new": found.new_images}
print(json.dumps({**told, "bytes": (kilobytes("VmHWM") - before) * 1024, "images": found.images}))
"""


def many_rows(*, quick: bool) -> list[Check]:
    """A list in Parquet with an etag and three more columns: ingested, and again unchanged, each in a fresh process."""
    rows, rounds = (50_000, 1) if quick else (ROWS, 3)
    first: list[dict[str, Any]] = []
    again: list[dict[str, Any]] = []
    for number in range(rounds):
        say(f"a list of {rows:,} rows, round {number + 1} of {rounds}")
        with tempfile.TemporaryDirectory() as folder:
            _write_list(Path(folder) / "images.parquet", rows)
            first.append(_ingested(Path(folder)))
            again.append(_ingested(Path(folder)))
    assert {one["new"] for one in first} == {rows}
    assert {(one["new"], one["images"]) for one in again} == {(0, rows)}
    peak = max(one["bytes"] for one in first + again) / 1e9
    times = {name: median(one["seconds"] for one in some) for name, some in (("first", first), ("again", again))}
    detail = {"rows": rows, "rounds": rounds, "first": first, "again": again}
    return [
        _at_most("a list of 1,000,000 rows, ingested", times["first"], "s", 30.0, detail),
        _at_most("the same, unchanged, ingested again", times["again"], "s", 10.0, {}),
        _at_most("peak memory of either", peak, "GB", 1.0, {}),
    ]


def many_objects(*, quick: bool) -> list[Check]:
    """10,000 objects of 50 KB from an S3 server on loopback: read ahead against boto3 with 32 threads."""
    count, rounds = (500, 1) if quick else (OBJECTS, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        keys = _write_objects(Path(folder) / "s3" / "bucket", count)
        ours: list[dict[str, Any]] = []
        theirs: list[dict[str, Any]] = []
        # Buffers of 16 MB an open file and checksums of each answer would be most of the server's work.
        with s3.serving(Path(folder) / "s3", "--buffer-size", "0", "--etag-hash", "") as endpoint:
            _read("ours", endpoint, keys[:100], Path(folder))  # the server's caches are warm for both
            for number in range(rounds):
                say(f"{count:,} objects, round {number + 1} of {rounds}")
                ours.append(_read("ours", endpoint, keys, Path(folder)))
                theirs.append(_read("boto3", endpoint, keys, Path(folder)))
    assert len({one["digest"] for one in ours + theirs}) == 1
    detail = {"objects": count, "rounds": rounds, "ours": ours, "boto3": theirs}
    rate = {name: count / median(one["seconds"] for one in some) for name, some in (("ours", ours), ("boto3", theirs))}
    work = {name: median(one["cpu"] for one in some) for name, some in (("ours", ours), ("boto3", theirs))}
    ratio = rate["ours"] / rate["boto3"]
    return [
        Check(
            "objects of 50 KB against boto3 with 32 threads",
            ratio,
            "times",
            4.0,
            ratio >= 4.0,
            detail=detail,
        ),
        Check("… read ahead", rate["ours"], "objects/s"),
        Check("… boto3", rate["boto3"], "objects/s"),
        Check("… work of the reader against boto3's", work["boto3"] / work["ours"], "times less CPU"),
    ]


def _at_most(name: str, value: float, unit: str, bar: float, detail: dict[str, Any]) -> Check:
    return Check(name, value, unit, bar, value <= bar, detail=detail)


def _write_list(file: Path, rows: int) -> None:
    numbers = np.arange(rows)
    digests = [hashlib.md5(str(number).encode()).hexdigest() for number in range(rows)]
    columns = {
        "uri": [
            f"s3://photographs/{number // 10_000:04d}/{number:08d}-{digests[number][:8]}.jpg" for number in range(rows)
        ],
        "etag": digests,
        "camera": [f"camera-{number % 17}" for number in range(rows)],
        "latitude": numbers * 1e-5,
        "taken": pa.array(numbers * 1_000_000, pa.timestamp("us", tz="UTC")),
    }
    pq.write_table(pa.table(columns), file)


def _ingested(folder: Path) -> dict[str, Any]:
    return _in_a_process([INGEST, str(folder / "images.parquet")], {"DIPNET_ROOT": str(folder / "root")})


def _write_objects(folder: Path, count: int) -> list[str]:
    generator = np.random.default_rng(0)
    keys = [f"{number // 1000}/{number:06d}.jpg" for number in range(count)]
    for key in keys:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(generator.bytes(OBJECT_BYTES))
    return keys


def _read(who: str, endpoint: str, keys: Sequence[str], folder: Path) -> dict[str, Any]:
    (folder / "keys.json").write_text(json.dumps(keys))
    program = "import sys; from tests.benchmarks import embedding_sources as e; e.read_all(*sys.argv[1:])"
    env = {"AWS_ACCESS_KEY_ID": s3.KEY, "AWS_SECRET_ACCESS_KEY": s3.SECRET}
    return _in_a_process([program, who, endpoint, str(folder / "keys.json")], env)


def read_all(who: str, endpoint: str, keys: str) -> None:
    """In a process of its own: read all objects, hash them, and print seconds, CPU seconds and the digest of digests."""
    import time

    import boto3  # noqa: F401  (imported before the clock starts, and the credentials with it)

    names = json.loads(Path(keys).read_text())
    begin, work = time.perf_counter(), time.process_time()
    digests = (_ours if who == "ours" else _boto3)(endpoint, names)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - work
    told = {"seconds": seconds, "cpu": cpu, "digest": hashlib.sha256(b"".join(digests)).hexdigest()}
    print(json.dumps(told))


def _ours(endpoint: str, names: Sequence[str]) -> list[bytes]:
    places = [Place(f"s3://bucket/{name}") for name in names]
    found = read_ahead(places, [""] * len(places), Access(endpoint))
    return [hashlib.sha256(data if isinstance(data, bytes) else b"").digest() for data in found]


def _boto3(endpoint: str, names: Sequence[str]) -> list[bytes]:
    import boto3
    from botocore.config import Config

    config = Config(max_pool_connections=BOTO_THREADS, response_checksum_validation="when_required")
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)

    def digest(name: str) -> bytes:
        return hashlib.sha256(client.get_object(Bucket="bucket", Key=name)["Body"].read()).digest()

    with ThreadPoolExecutor(BOTO_THREADS) as pool:
        return list(pool.map(digest, names))


def _in_a_process(arguments: Sequence[str], env: dict[str, str]) -> dict[str, Any]:
    """What a Python program prints as JSON."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("DIPNET_", "AWS_"))}
    ran = subprocess.run(
        [sys.executable, "-c", *arguments],
        env={**mine, **env, "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.PIPE,
        timeout=1200,
        cwd=tempfile.gettempdir(),
    )
    found: dict[str, Any] = json.loads(ran.stdout)
    return found
