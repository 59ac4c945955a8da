"""The scan is exact, the probe beats the nearest exemplar where hubs mislead, and near-duplicates count once."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.compute import scan, scoring, selection


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("sizes", [[50], [7, 0, 30, 13], [scan.BLOCK_ROWS + 5, 3]])
@pytest.mark.parametrize("probes", [1, 5])
def test_the_scan_equals_a_full_sort_however_the_rows_are_sharded(sizes: list[int], probes: int) -> None:
    generator = np.random.default_rng(1)
    rows = unit(generator.normal(size=(sum(sizes), 16))).astype(np.float16)
    looked_for = unit(generator.normal(size=(probes, 16)))
    shards = np.split(rows, np.cumsum(sizes)[:-1])
    found = scan.best(looked_for, shards, keep=20)
    scores = (rows.astype(np.float32) @ looked_for.T).max(axis=1)
    expected = np.lexsort((np.arange(len(scores)), -scores))[:20]
    assert found.rows.tolist() == expected.tolist()
    np.testing.assert_allclose(found.scores, scores[expected], rtol=1e-6)


def test_equal_scores_keep_corpus_order() -> None:
    rows = np.tile(unit(np.ones((1, 4))), (30, 1)).astype(np.float16)
    assert scan.best(rows[:1].astype(np.float32), [rows], keep=5).rows.tolist() == [0, 1, 2, 3, 4]


def test_asking_for_more_than_there_is_gives_what_there_is() -> None:
    rows = unit(np.random.default_rng(0).normal(size=(3, 4))).astype(np.float16)
    assert len(scan.best(rows[:1].astype(np.float32), [rows], keep=10).rows) == 3


def hidden_concept(seed: int) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """10,000 rows with strong shared directions that say nothing, 200 with a faint one of their own: (rows, is it, exemplars)."""
    generator = np.random.default_rng(seed)
    spread = np.concatenate([np.full(4, 3.0), np.full(28, 0.4)])
    rows = generator.normal(size=(10_010, 32)) * spread
    concept = np.zeros(10_010, dtype=np.bool_)
    concept[:210] = True
    rows[concept, 20] += 2.0
    rows = unit(rows)
    return rows[10:], concept[10:], rows[:10]


@pytest.mark.parametrize("seed", range(3))
def test_the_probe_sees_past_directions_that_everything_shares(seed: int) -> None:
    rows, concept, exemplars = hidden_concept(seed)
    shards = [rows.astype(np.float16)]
    behind = scoring.background(shards, rows=20_000, seed=0)
    none = np.empty((0, 32), np.float32)

    def precision(probe: scoring.Probe) -> float:
        return float(concept[scan.best(probe.vectors, shards, keep=100).rows].mean())

    whitened = precision(scoring.whitened_lda(exemplars, none, behind, shrinkage=0.1))
    nearest = precision(scoring.nearest_exemplar(exemplars))
    assert whitened > 0.5
    assert whitened > nearest + 0.2


def test_a_probe_score_is_in_standard_deviations_of_the_background() -> None:
    rows, _, exemplars = hidden_concept(0)
    behind = scoring.background([rows.astype(np.float16)], rows=20_000, seed=0)
    probe = scoring.whitened_lda(exemplars, np.empty((0, 32), np.float32), behind, shrinkage=0.1)
    scores = rows @ probe.vectors[0] - probe.offset
    assert abs(float(scores.mean())) < 0.02
    assert float(scores.std()) == pytest.approx(1.0, abs=0.02)


def test_negative_exemplars_push_their_like_down() -> None:
    generator = np.random.default_rng(3)
    rows = unit(generator.normal(size=(2_000, 8)))
    positive = unit(generator.normal(size=(5, 8)) * 0.2 + np.eye(8)[0] + np.eye(8)[1])
    negative = unit(generator.normal(size=(5, 8)) * 0.2 + np.eye(8)[1])
    behind = scoring.background([rows.astype(np.float16)], rows=20_000, seed=0)
    without = scoring.whitened_lda(positive, negative[:0], behind, shrinkage=0.1)
    against = scoring.whitened_lda(positive, negative, behind, shrinkage=0.1)
    gap = [float((p @ probe.vectors[0]).mean()) for probe in (without, against) for p in (positive, negative)]
    assert gap[2] - gap[3] > gap[0] - gap[1]


def test_one_exemplar_is_enough_for_a_probe() -> None:
    rows, _, exemplars = hidden_concept(0)
    behind = scoring.background([rows.astype(np.float16)], rows=100, seed=0)
    probe = scoring.whitened_lda(exemplars[:1], exemplars[:0], behind, shrinkage=0.1)
    assert np.isfinite(probe.vectors).all()


def test_the_background_is_drawn_over_all_shards_and_repeatable() -> None:
    rows, _, _ = hidden_concept(0)
    whole = scoring.background([rows.astype(np.float16)], rows=20_000, seed=0)
    parts = scoring.background(np.split(rows.astype(np.float16), [100, 100, 5_000]), rows=20_000, seed=0)
    np.testing.assert_allclose(whole.covariance, parts.covariance, atol=1e-12)
    some = [scoring.background([rows.astype(np.float16)], rows=50, seed=7).mean for _ in range(2)]
    np.testing.assert_array_equal(some[0], some[1])


def test_near_duplicates_count_for_the_one_that_is_taken() -> None:
    a, b = np.eye(4, dtype=np.float32)[:2]
    almost_a = unit((a + 0.01 * b)[None].astype(np.float64))[0]
    chosen = selection.choose(np.stack([a, almost_a, a, b]), budget=3, near_duplicate_cosine=0.99)
    assert chosen.places.tolist() == [0, 3]
    assert chosen.stands_for.tolist() == [2, 0]
    assert chosen.near_duplicates == 2


def test_choosing_stops_at_the_budget() -> None:
    chosen = selection.choose(np.eye(5, dtype=np.float32), budget=2, near_duplicate_cosine=0.99)
    assert chosen.places.tolist() == [0, 1]


def test_what_is_too_close_to_evaluation_data_is_told() -> None:
    rows = np.eye(3, dtype=np.float32)
    assert selection.too_close(rows, rows[1:2], cosine=0.999).tolist() == [False, True, False]
    assert selection.too_close(rows, rows[:0], cosine=0.999).tolist() == [False, False, False]
