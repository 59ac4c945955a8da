"""An index finds what the exact scan finds, nearly always, at any size and dimension, from its files alone."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.compute import index, scan
from tasks.compute.index import Effort, Opened, Truth


def clustered(count: int, dim: int, seed: int = 0) -> NDArray[np.float16]:
    """Unit rows around 50 centres."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(50, dim))
    rows = centres[generator.integers(0, 50, count)] + 0.5 * generator.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def build(rows: NDArray[np.float16], folder: Path, *, cuts: list[int]) -> Opened:
    """An index of rows in shards, half of them in each part."""
    shards, half = np.split(rows, cuts), len(cuts) // 2
    starts = np.cumsum([0, *map(len, shards)])
    shape = index.shape_for(len(rows), rows.shape[1])
    index.train(shape, rows[: shape.train_rows].astype(np.float32), folder / "trained", seed=0)
    for number, group in enumerate([range(half), range(half, len(shards))]):
        part = [shards[place] for place in group]
        filled = index.fill(folder / "trained", part, int(starts[group.start]), folder / f"part-{number}")
        assert filled == sum(map(len, part))
    index.merge(folder / "trained", [folder / "part-0", folder / "part-1"], folder)
    return Opened(
        folder / index.INDEX, folder / index.LISTS, [partial(shards.__getitem__, n) for n in range(len(shards))], starts
    )


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float16]:
    return clustered(10_000, 64)


@pytest.fixture(scope="module")
def opened(rows: NDArray[np.float16], tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return build(rows, tmp_path_factory.mktemp("index"), cuts=[10, 10, 3_000, 9_000])


def test_with_enough_effort_it_is_the_exact_scan(rows: NDArray[np.float16], opened: Opened) -> None:
    probes, offsets = rows[[5, 9_500]].astype(np.float32), np.array([0.0, 0.1], np.float32)
    found = opened.search(probes, keep=20, effort=Effort(opened.lists, len(rows)), offsets=offsets)
    expected = scan.best(probes, [rows], keep=20, offsets=offsets)
    assert found.rows.tolist() == expected.rows.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


def test_tuning_on_some_queries_holds_on_others(rows: NDArray[np.float16], opened: Opened) -> None:
    drawn = rows[np.random.default_rng(1).permutation(len(rows))[:200]].astype(np.float32)
    truth = index.truth_of(drawn, [rows[:7_000], rows[7_000:]], k=100)
    effort = index.tune(opened, Truth(truth.queries[:100], truth.scores[:100]), target=0.96)
    shares = index.recalls(opened, Truth(truth.queries[100:], truth.scores[100:]), effort)
    recall = index.mean_recall(shares, seed=0)
    assert recall.low <= recall.mean <= recall.high
    assert recall.mean > 0.94
    assert effort.nprobe < opened.lists


def test_the_truth_is_the_exact_scan(rows: NDArray[np.float16]) -> None:
    queries = rows[:3].astype(np.float32)
    truth = index.truth_of(queries, np.split(rows, [50, 50, 4_000]), k=100)
    for query, scores in zip(queries, truth.scores, strict=True):
        np.testing.assert_allclose(scores, scan.best(query[None], [rows], keep=100).scores, rtol=1e-4)


@pytest.mark.parametrize(("count", "dim"), [(1, 8), (30, 512), (3_000, 13), (5_000, 33)])
def test_any_size_and_dimension_can_be_indexed(count: int, dim: int, tmp_path: Path) -> None:
    rows = clustered(count, dim)
    opened = build(rows, tmp_path, cuts=[count // 2])
    found = opened.search(rows[:1].astype(np.float32), keep=3, effort=Effort(opened.lists, min(count, 2_000)))
    assert found.rows[0] == 0
    assert len(found.rows) == min(3, count)


def test_product_codes_are_refined_to_exact_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, least in (("CODE_ROWS", 10_000), ("OPQ_ROUNDS", 1), ("CODE_ROUNDS", 2)):
        monkeypatch.setattr(index, name, least)
    rows = clustered(10_000, 34)
    opened = build(rows, tmp_path, cuts=[4_000])
    assert index.shape_for(*rows.shape).description.startswith("OPQ8_32,")
    query = rows[:1].astype(np.float32)
    found, expected = opened.search(query, keep=10, effort=Effort(30, 1_000)), scan.best(query, [rows], keep=10)
    assert len(set(found.rows.tolist()) & set(expected.rows.tolist())) >= 9
    np.testing.assert_allclose(found.scores[0], expected.scores[0], rtol=1e-5)


def test_the_same_sample_and_seed_train_the_same(rows: NDArray[np.float16], tmp_path: Path) -> None:
    shape = index.shape_for(len(rows), rows.shape[1])
    for name in ("a", "b"):
        index.train(shape, rows.astype(np.float32), tmp_path / name, seed=3)
        index.fill(tmp_path / name, [rows[:500]], 0, tmp_path / f"{name}-part")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a-part").read_bytes() == (tmp_path / "b-part").read_bytes()


def test_what_is_mapped_stays_when_its_files_go(rows: NDArray[np.float16], tmp_path: Path) -> None:
    opened = build(rows[:2_000], tmp_path, cuts=[1_000])
    for file in tmp_path.iterdir():
        file.unlink()
    assert opened.search(rows[7:8].astype(np.float32), keep=1, effort=Effort(8, 50)).rows.tolist() == [7]


def test_nothing_is_printed_where_somebody_may_expect_json(
    rows: NDArray[np.float16], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build(rows[:1_000], tmp_path, cuts=[500])
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("rows_of", "dim", "description"),
    [
        (1_000_000, 512, "OPQ64_256,IVF4096_HNSW32,PQ64"),
        (1_000_000_000, 768, "OPQ64_256,IVF65536_HNSW32,PQ64"),
        (200_000, 64, "OPQ16_64,IVF2048_HNSW32,PQ16"),
        (10_000, 64, "IVF250_HNSW32,SQ8"),
        (500, 13, "IVF12_HNSW32,SQ8"),
    ],
)
def test_the_shape_follows_from_rows_and_dimensions(rows_of: int, dim: int, description: str) -> None:
    assert index.shape_for(rows_of, dim).description == description
