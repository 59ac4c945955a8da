"""Near-duplicates count once, diversity spreads a batch, and groups get their slots."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.compute import neighbours, selection


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def falling(count: int) -> NDArray[np.float64]:
    return np.linspace(1, 0, count)


def test_a_row_alone_among_what_scores_low_gives_way_to_one_among_what_scores_high() -> None:
    here, there = unit(np.eye(8)[:2] @ np.eye(8))
    generator = np.random.default_rng(0)
    good = unit(here + 0.05 * generator.normal(size=(8, 8)))
    poor = unit(there + 0.05 * generator.normal(size=(8, 8)))
    raw = np.concatenate([np.full(7, 1.0), [0.8], [0.9], np.full(7, 0.0)])
    found = selection.agreed(np.concatenate([good, poor]), raw)
    assert found[7] > found[8]
    assert found.min() >= raw.min()
    assert found.max() <= raw.max()


def test_what_has_no_neighbours_keeps_its_score() -> None:
    for count in (0, 1):
        assert selection.agreed(np.eye(4, dtype=np.float32)[:count], falling(count)).tolist() == falling(count).tolist()
    two = selection.agreed(np.eye(4, dtype=np.float32)[:2], np.asarray([1.0, 0.0]))
    assert 1 > two[0] > two[1] > 0


def test_near_duplicates_count_for_the_one_that_is_taken() -> None:
    a, b = np.eye(4, dtype=np.float32)[:2]
    almost_a = unit((a + 0.01 * b)[None].astype(np.float64))[0]
    found = selection.choose(np.stack([a, almost_a, a, b]), falling(4), budget=3, near_duplicate_cosine=0.99)
    assert found.places.tolist() == [0, 3]
    assert found.stands_for.tolist() == [2, 0]
    assert found.near_duplicates == 2


def test_choosing_stops_at_the_budget_and_what_was_not_reached_is_not_counted() -> None:
    rows = np.repeat(np.eye(5, dtype=np.float32), 2, axis=0)
    found = selection.choose(rows, falling(10), budget=2, near_duplicate_cosine=0.99)
    assert found.places.tolist() == [0, 2]
    assert found.near_duplicates == 1
    assert not len(selection.choose(rows, falling(10), budget=0, near_duplicate_cosine=0.99).places)
    assert not len(selection.choose(rows[:0], falling(0), budget=3, near_duplicate_cosine=0.99).places)


def test_diversity_prefers_what_is_unlike_the_chosen_among_equals() -> None:
    crowd = unit(np.eye(8)[0] + 0.1 * np.random.default_rng(0).normal(size=(20, 8)))
    rows = np.concatenate([crowd, np.eye(8, dtype=np.float32)[5:6]])
    scores = np.concatenate(
        [
            np.linspace(1.0, 0.98, 20),
            [
                0.9,
            ],
        ]
    )
    assert 20 not in selection.choose(rows, scores, budget=5, near_duplicate_cosine=1.01).places
    assert 20 in selection.choose(rows, scores, budget=5, near_duplicate_cosine=1.01, diversity=0.6).places


def test_groups_are_served_their_slots_before_the_rest_go_by_score() -> None:
    rows = unit(np.random.default_rng(1).normal(size=(100, 16)))
    groups = np.repeat([0, 1], [90, 10])
    shares = selection.even_shares(groups, slots=10)
    assert shares.slots.tolist() == [5, 5]
    found = selection.choose(rows, falling(100), budget=20, near_duplicate_cosine=1.01, shares=shares)
    assert (groups[found.places] == 1).sum() == 5
    assert (selection.even_shares(np.zeros(5, np.int64), slots=4).slots == 0).all()


def test_a_batch_larger_than_a_window_is_whole_and_distinct() -> None:
    rows = unit(np.random.default_rng(2).normal(size=(6_000, 8)))
    found = selection.choose(rows, falling(6_000), budget=1_500, near_duplicate_cosine=0.98, diversity=0.1)
    assert len(set(found.places.tolist())) == len(found.places) <= 1_500
    near = rows[found.places] @ rows[found.places].T
    np.fill_diagonal(near, -1)
    assert near.max() < 0.98


def test_what_is_too_close_to_evaluation_data_is_told() -> None:
    rows = np.eye(3, dtype=np.float32)
    assert selection.too_close(rows, rows[1:2], cosine=0.999).tolist() == [False, True, False]
    assert selection.too_close(rows, rows[:0], cosine=0.999).tolist() == [False, False, False]


def test_at_a_cosine_of_1_identical_stored_vectors_always_count_and_others_do_not() -> None:
    generator = np.random.default_rng(0)
    for dim in (64, 512, 4_096):
        stored = unit(generator.normal(size=(300, dim))).astype(np.float16).astype(np.float32)
        assert all(selection.too_close(row[None], row[None], cosine=1.0)[0] for row in stored)
        twice = np.vstack([stored, stored])
        found = selection.choose(twice, falling(600), budget=600, near_duplicate_cosine=1.0)
        assert found.places.tolist() == list(range(300))
        assert found.stands_for.tolist() == [1] * 300
        nudged = unit(stored + 0.02 * unit(generator.normal(size=(300, dim)))).astype(np.float16).astype(np.float32)
        assert not selection.too_close(nudged, stored, cosine=1.0).any()


def test_rows_and_references_are_compared_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, references = unit(np.random.default_rng(4).normal(size=(50, 8))), unit(np.eye(8))
    whole = selection.nearest(rows, references)
    monkeypatch.setattr(selection, "BLOCK", 7)
    shapes: list[tuple[int, ...]] = []
    real = selection.unit
    monkeypatch.setattr(selection, "unit", lambda block: shapes.append(block.shape) or real(block))
    np.testing.assert_allclose(selection.nearest(rows, references), whole, atol=1e-6)
    assert max(height for height, _ in shapes) == 7


def test_neighbours_are_those_of_a_full_sort_and_never_barred_ones() -> None:
    rows = unit(np.random.default_rng(3).normal(size=(500, 16)))
    queries = rows[:4]
    shards = [part.astype(np.float16) for part in np.split(rows, [100, 100, 350])]
    masks = [None, None, np.arange(250) % 2 == 0, None]
    allowed = np.concatenate([np.ones(100, bool), np.arange(250) % 2 == 0, np.ones(150, bool)])
    cosines = np.where(allowed, queries @ np.concatenate(shards).astype(np.float32).T, -1)
    expected = np.unique(np.argsort(-cosines, axis=1, kind="stable")[:, :7])
    assert neighbours.around(queries, shards, masks, count=7).tolist() == expected.tolist()


def test_neighbours_of_many_blocks_are_those_of_a_full_sort_with_ties_in_corpus_order() -> None:
    generator = np.random.default_rng(4)
    whole = generator.integers(-3, 4, size=(70_000, 8)).astype(np.float16)  # products are exact, and many are alike
    queries = generator.integers(-3, 4, size=(9, 8)).astype(np.float32)
    shards = np.split(whole, [50, 20_000, 20_000, 53_000])
    masks = [generator.random(len(shard)) < share for shard, share in zip(shards, (1, 0.9, 1, 0.1, 0.5), strict=True)]
    cosines = np.where(np.concatenate(masks), queries @ whole.astype(np.float32).T, -np.inf)
    for count in (1, 40, 3_000):
        expected = np.unique(np.argsort(-cosines, axis=1, kind="stable")[:, :count])
        assert neighbours.around(queries, shards, masks, count=count).tolist() == expected.tolist()
    everything = neighbours.around(queries, shards, masks, count=100_000)
    assert everything.tolist() == np.flatnonzero(np.concatenate(masks)).tolist()
    assert neighbours.around(queries, [], [], count=5).tolist() == []


def test_rows_that_are_no_numbers_are_nobodys_neighbours() -> None:
    rows = np.eye(4, dtype=np.float16)
    rows[1] = np.nan
    assert neighbours.around(np.eye(4, dtype=np.float32)[:1], [rows], [None], count=4).tolist() == [0, 2, 3]
