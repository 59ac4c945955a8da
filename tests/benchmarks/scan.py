"""The scan against the machine's limits and faiss, its memory, and the index against the scan.

Limits and peers are measured in the same run, in turn with what they are compared with; a figure is the median of the
ratios of the rounds, its interval their quartiles. The index tunes on queries other than those it reports on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from harness import Check, finish
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

HOUSE = Path(__file__).parents[2]
sys.path.insert(0, str(HOUSE))

from tasks import indexing  # noqa: E402
from tasks.compute import blocks, index, kernels, scan  # noqa: E402

OnCores = Callable[[Callable[[int], object], Sequence[int]], object]

DIM, KEEP, PROBES = 512, 1_000, 64
CACHED_ROWS = 1_024  # 2 MB in fp32: a product of them is as fast as they come
SHARD_ROWS = 10_000


class Size(NamedTuple):
    """How large a run is."""

    rows: int
    rounds: int
    gigabytes: int  # to scan while memory is watched
    indexed: int
    queries: int  # of the index


FULL = Size(rows=2_000_000, rounds=9, gigabytes=20, indexed=1_000_000, queries=200)
QUICK = Size(rows=100_000, rounds=5, gigabytes=1, indexed=110_000, queries=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a small version, without bars for what grows with size")
    parser.add_argument("--only", choices=sorted(CHECKS), help="run one check")
    parser.add_argument("--folder", type=Path, help="where to put up to 6 GB of vectors; default: a temporary folder")
    chosen = parser.parse_args()
    size = QUICK if chosen.quick else FULL
    found: list[Check] = []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        for name, check in CHECKS.items():
            if chosen.only in (None, name):
                found += check(Path(folder), size)
    finish(found, as_json=chosen.json)


def stored(folder: Path, rows: int, kind: type[np.float16 | np.float32]) -> NDArray[Any]:
    """Random unit rows (n, DIM) in a file, mapped; made once."""
    path = folder / f"{np.dtype(kind).name}-{rows}.npy"
    if not path.exists():
        made = np.lib.format.open_memmap(path, "w+", kind, (rows, DIM))
        for start in range(0, rows, SHARD_ROWS):
            block = np.random.default_rng(start).standard_normal((min(SHARD_ROWS, rows - start), DIM), dtype=np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            made[start : start + SHARD_ROWS] = torch.from_numpy(block).half().numpy()  # the same numbers in both kinds
        made.flush()
    found: NDArray[Any] = np.load(path, mmap_mode="r")
    return found


def shards(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (rows[start : start + SHARD_ROWS] for start in range(0, len(rows), SHARD_ROWS))


def some_probes(count: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(1).standard_normal((count, DIM), dtype=np.float32)
    unit: NDArray[np.float32] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


def seconds(work: Callable[[], object]) -> list[float]:
    """By the clock, and of the processor: where others use the machine too, the second says what the work needs."""
    start = time.perf_counter(), time.process_time()
    work()
    return [time.perf_counter() - start[0], time.process_time() - start[1]]


def in_turn(rounds: int, *works: Callable[[], object]) -> NDArray[np.float64]:
    """Seconds (rounds, works, 2) by the clock and of the processor, after one round that is not counted."""
    return np.asarray([[seconds(work) for work in works] for _ in range(rounds + 1)])[1:]


def ratio(
    name: str, unit: str, bar: float | None, above: NDArray[np.float64], below: NDArray[np.float64], **told: Any
) -> Check:
    """Median and quartiles of above / below (rounds, 2), round by round."""
    low, middle, high = np.quantile((above / below)[:, 0], [0.25, 0.5, 0.75]).tolist()
    medians = {
        "limit_or_peer_seconds": float(np.median(above[:, 0])),
        "seconds": float(np.median(below[:, 0])),
        "ratio_of_processor_time": float(np.median(above[:, 1] / below[:, 1])),
    }
    ok = None if bar is None else middle >= bar
    return Check(name, middle, unit, bar=bar, ok=ok, interval=[low, high], detail=medians | told)


@contextmanager
def cores() -> Iterator[OnCores]:
    """A way to work on items on all cores, each kernel in one thread; made before the clock starts."""
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(torch.get_num_threads(), initializer=_alone) as pool:
        yield lambda work, items: list(pool.map(work, items))


def _alone() -> None:
    torch.get_num_threads()
    threadpool_limits(1, user_api="openmp")


def one_probe(folder: Path, size: Size, kind: type[np.float16 | np.float32], bar: float) -> list[Check]:
    """The limit is to read all bytes with all cores: a sum of 8-byte words."""
    rows, probe = stored(folder, size.rows, kind), some_probes(1)
    words = blocks.as_tensor(rows).view(torch.int64)
    starts = range(0, len(rows), 16_384)
    with cores() as run:
        times = in_turn(
            size.rounds,
            lambda: run(lambda start: words[start : start + 16_384].sum(), starts),
            lambda: scan.best(probe, shards(rows), keep=KEEP),
        )
    name = f"scan, 1 probe, {np.dtype(kind).name} shards"
    speed = {"read_GB_per_s": rows.nbytes / 1e9 / float(np.median(times[:, 0, 0]))}
    return [ratio(name, "of read bandwidth", bar, times[:, 0], times[:, 1], **speed)]


def fp32(folder: Path, size: Size) -> list[Check]:
    return one_probe(folder, size, np.float32, 0.8)


def fp16(folder: Path, size: Size) -> list[Check]:
    return one_probe(folder, size, np.float16, 0.5)


def gemm(folder: Path, size: Size) -> list[Check]:
    """The limit is the faster of two libraries at products of 1,024 rows that never leave the cache."""
    rows, probes = stored(folder, size.rows, np.float16), some_probes(PROBES)
    block, across = some_probes(CACHED_ROWS), np.ascontiguousarray(probes.T)
    tensor, wide = torch.from_numpy(block), torch.from_numpy(probes)
    blocks = range(-(-size.rows // CACHED_ROWS))
    with cores() as run:
        times = in_turn(
            size.rounds,
            lambda: run(lambda _: block @ across, blocks),
            lambda: run(lambda _: wide @ tensor.T, blocks),
            lambda: scan.best(probes, shards(rows), keep=KEEP),
        )
    limit = times[:, :2].min(axis=1)
    flops = {"gemm_GFLOP_per_s": 2e-9 * size.rows * DIM * PROBES / float(np.median(limit[:, 0]))}
    return [ratio(f"scan, {PROBES} probes, float16 shards", "of GEMM", 0.7, limit, times[:, 2], **flops)]


def peer(folder: Path, size: Size) -> list[Check]:
    """faiss as it comes: 64 queries, the best of each, the best of those."""
    count = min(size.rows, 1_000_000)
    rows, probes = stored(folder, size.rows, np.float16)[:count], some_probes(PROBES)
    flat = faiss.IndexFlatIP(DIM)
    for block in shards(rows):
        flat.add(torch.tensor(block).float().numpy())
    found: dict[str, NDArray[np.int64]] = {}

    def ours() -> None:
        found["ours"] = scan.best(probes, shards(rows), keep=KEEP).rows

    def theirs() -> None:
        scores, places = flat.search(probes, KEEP)
        order = np.argsort(-scores, axis=None, kind="stable")
        found["theirs"] = list(dict.fromkeys(places.ravel()[order].tolist()))[:KEEP]  # type: ignore[assignment]

    times = in_turn(max(3, size.rounds // 3), theirs, ours)
    same = len(set(found["ours"]) & set(found["theirs"])) / KEEP
    return [
        ratio(
            f"scan against faiss IndexFlatIP, {PROBES} exemplars",
            "times as fast",
            10 if size is FULL else None,
            times[:, 0],
            times[:, 1],
        ),
        Check("same top 1,000 as faiss", same, "of rows", bar=0.999, ok=same >= 0.999),  # the last may tie in fp32
    ]


WATCHED = """
import json, sys, threading, time
import numpy as np
from tasks.compute import kernels, scan
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Anonymous:")) / 1024
rows, times, count = np.load(sys.argv[1], mmap_mode="r"), int(sys.argv[2]), int(sys.argv[3])
probes = np.random.default_rng(0).standard_normal((count, rows.shape[1]), dtype=np.float32)
before, peak, over = anonymous(), [0.0], threading.Event()
def watch():
    while not over.wait(0.05):
        peak[0] = max(peak[0], anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
def shards():
    for _ in range(times):
        again = np.load(sys.argv[1], mmap_mode="r")
        yield from (again[start : start + 10_000] for start in range(0, len(again), 10_000))
start = time.perf_counter()
scan.best(probes, shards(), keep=1_000)
took = time.perf_counter() - start
over.set()
watcher.join()
print(json.dumps({"above": max(peak[0], anonymous()) - before, "interpreter_MB": before, "seconds": took}))
"""


def memory(folder: Path, size: Size) -> list[Check]:
    """A process of its own scans one file, mapped again and again as other shards."""
    if not Path("/proc/self/smaps_rollup").exists():
        return []
    rows = stored(folder, size.rows, np.float16)
    times = max(1, round(size.gigabytes * 1e9 / rows.nbytes))
    checks = []
    for count in (1, PROBES):
        command = [sys.executable, "-c", WATCHED, str(folder / f"float16-{size.rows}.npy"), str(times), str(count)]
        found = json.loads(subprocess.run(command, cwd=HOUSE, check=True, capture_output=True).stdout)
        name = f"private memory while scanning {times * rows.nbytes / 1e9:.0f} GB, {count} probe{'s' * (count > 1)}"
        above = found.pop("above") / 1024
        checks.append(Check(name, above, "GB above the interpreter's", bar=1, ok=above <= 1, detail=found))
    return checks


def clustered(count: int, number: int) -> NDArray[np.float16]:
    """Unit rows like an encoder's: 2,000 centres of uneven weight, each with low-rank noise, and a little of no rank."""
    fixed = np.random.default_rng(0)
    centres = fixed.standard_normal((2_000, 64), dtype=np.float32) @ fixed.standard_normal((64, DIM), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    weights = fixed.pareto(1.5, len(centres)) + 0.2
    banks = fixed.standard_normal((40, 24, DIM), dtype=np.float32) / np.float32(np.sqrt(DIM))
    own = np.random.default_rng([1, number])
    chosen = own.choice(len(centres), count, p=weights / weights.sum())
    noise = own.standard_normal((count, 24), dtype=np.float32) * np.linspace(1, 0.2, 24, dtype=np.float32)
    rows = centres[chosen]
    for place, bank in enumerate(banks):
        mine = np.flatnonzero(chosen % len(banks) == place)
        rows[mine] += 0.16 * (noise[mine] @ bank)
    rows += 0.004 * own.standard_normal(rows.shape, dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(rows).half().numpy()


def indexed(folder: Path, size: Size) -> list[Check]:
    """Built as tasks/indexing.py does, without its database."""
    held = []
    for number in range(size.indexed // SHARD_ROWS):
        np.save(folder / f"clustered-{number}.npy", clustered(SHARD_ROWS, number))
        held.append(np.load(folder / f"clustered-{number}.npy", mmap_mode="r"))
    starts = np.cumsum([0, *map(len, held)])
    shape, own = index.shape_for(size.indexed, DIM), np.random.default_rng(2)
    start = time.perf_counter()
    each = -(-shape.train_rows // len(held))
    sample = np.concatenate([rows[np.sort(own.choice(len(rows), each, replace=False))] for rows in held])
    index.train(shape, torch.from_numpy(sample).float().numpy(), folder / "trained", seed=0)
    trained = time.perf_counter() - start
    index.fill(folder / "trained", held, 0, folder / "part")
    index.merge(folder / "trained", [folder / "part"], folder)
    built = time.perf_counter() - start
    opened = index.Opened(folder / index.INDEX, folder / index.LISTS, [lambda rows=rows: rows for rows in held], starts)  # type: ignore[misc]

    drawn = own.choice(size.indexed, 2 * size.queries, replace=False)
    queries = own.permutation(opened.vectors(np.sort(drawn)).astype(np.float32))
    truth, half = index.truth_of(queries, held, k=100), size.queries
    effort = index.tune(opened, index.Truth(truth.queries[:half], truth.scores[:half]), target=indexing.TARGET)
    others = index.Truth(truth.queries[half:], truth.scores[half:])
    recall = index.mean_recall(index.recalls(opened, others, effort), seed=0)
    told = {"effort": effort._asdict(), "train_seconds": trained, "build_seconds": built, "index": shape.description}

    ways = [
        lambda query: scan.best(query[None], held, keep=100),
        lambda query: opened.search(query[None], keep=100, effort=effort),
    ]
    times = np.asarray([[seconds(lambda way=way, query=query: way(query)) for way in ways] for query in others.queries])  # type: ignore[misc]
    return [
        Check(f"index of {size.indexed:,} vectors, recall@100", recall.mean, "of the true nearest", bar=0.95,
              ok=recall.mean >= 0.95, interval=[recall.low, recall.high], detail=told),
        ratio("index against the exact scan, 1 query", "times as fast", 20 if size is FULL else None, times[:, 0], times[:, 1]),
    ]  # fmt: skip


def gpu(folder: Path, size: Size) -> list[Check]:
    """Where a GPU is at hand: rows that lie in its memory, as a share of a copy's bandwidth there."""
    if not torch.cuda.is_available():
        return []
    free, _ = torch.cuda.mem_get_info()
    rows = min(50_000_000 if size is FULL else 1_000_000, int(free * 0.7) // (2 * DIM))
    resident = torch.randn(rows, DIM, device="cuda", dtype=torch.float16).mul_(DIM**-0.5)
    checks = []
    for count in (1, PROBES, 256):
        looked_for = kernels.Kernels(some_probes(count), None)
        some = looked_for.on_device(resident[: scan.DEVICE_ROWS])
        least = float(some.topk(KEEP).values[-1])  # as a scan knows it after its first block

        def whole(looked_for: kernels.Kernels = looked_for, least: float = least) -> None:
            for block in resident.split(scan.DEVICE_ROWS):
                looked_for.on_device(block, least, longest=1.3)
            torch.cuda.synchronize()

        def limit() -> None:
            for block in resident.split(scan.DEVICE_ROWS):
                block.view(torch.int32).sum()
            torch.cuda.synchronize()

        times = in_turn(size.rounds, limit, whole)
        name = f"GPU, {rows:,} resident rows, {count} probe{'s' * (count > 1)}"
        checks.append(ratio(name, "of read bandwidth", 0.6, times[:, 0], times[:, 1]))
    return checks


CHECKS: dict[str, Callable[[Path, Size], list[Check]]] = {
    "fp32": fp32,
    "fp16": fp16,
    "gemm": gemm,
    "faiss": peer,
    "memory": memory,
    "index": indexed,
    "gpu": gpu,
}


if __name__ == "__main__":
    main()
