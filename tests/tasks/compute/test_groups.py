"""Near-duplicates exactly, whatever the blocks, and splits that groups keep while they grow."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.compute import groups


def clustered(seed: int, rows: int, *, spread: float = 0.02) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(rows // 4, 1), 16))
    found = centres[generator.integers(len(centres), size=rows)] + spread * generator.standard_normal((rows, 16))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float16).astype(np.float32)


def same_group(count: int, edges: NDArray[np.int64]) -> NDArray[np.bool_]:
    numbers = groups.components(count, edges)
    return numbers[:, None] == numbers[None, :]


def reference(vectors: NDArray[np.float32], cosine: float) -> NDArray[np.bool_]:
    wide = vectors.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1))
    near = (wide @ wide.T) / np.outer(lengths, lengths) >= cosine
    np.fill_diagonal(near, True)
    for _ in range(len(near)):
        near = (near.astype(int) @ near.astype(int)) > 0
    return near


@pytest.mark.parametrize("cosine", [0.9, 0.99, 0.995])
def test_near_duplicates_are_those_of_a_plain_loop_whatever_the_tile(
    monkeypatch: pytest.MonkeyPatch, cosine: float
) -> None:
    for seed in range(3):
        vectors = clustered(seed, 60)
        expected = reference(vectors, cosine)
        assert 60 < expected.sum() < 3_600
        for tile in (7, 16, 2_048):
            monkeypatch.setattr(groups, "TILE_ROWS", tile)
            edges = groups.near_duplicates(vectors, cosine=cosine)
            assert (same_group(60, edges) == expected).all()
            assert len(edges) == 60 - len(np.unique(groups.components(60, edges)))


def test_the_first_rows_are_connected_as_if_they_were_alone() -> None:
    vectors = clustered(1, 80)
    edges = groups.near_duplicates(vectors, cosine=0.97)
    for count in (10, 33, 79):
        alone = same_group(count, groups.near_duplicates(vectors[:count], cosine=0.97))
        assert (same_group(count, edges[edges[:, 1] < count]) == alone).all()


def test_a_pair_at_the_very_threshold_is_one_and_a_row_without_vector_is_alone() -> None:
    vectors = np.asarray([[1, 0], [0, 0], [0.5, 0.5], [1, 0]], np.float32)
    exactly = float(0.5 / np.sqrt(1.0 * 0.5))
    edges = groups.near_duplicates(vectors, cosine=exactly)
    assert groups.components(4, edges).tolist() in ([0, 1, 0, 0], [1, 0, 1, 1])
    above = groups.near_duplicates(vectors, cosine=np.nextafter(exactly, 1))
    assert above.tolist() == [[0, 3]]
    assert not len(groups.near_duplicates(np.empty((0, 4), np.float32), cosine=0.5))


def test_rows_that_share_a_value_are_joined_through_any_of_their_values() -> None:
    edges = groups.joined([["a"], [], ["b"], ["a", "b"], [], ["c", "c"]])
    assert groups.components(6, edges).tolist() == [0, 1, 0, 0, 2, 3]


def one_by_one(near: NDArray[np.bool_], own: list[int]) -> list[int]:
    """The plain rule: who joins nothing brings a rank of its own, who joins takes the highest of what it connects."""
    group, rank = list(range(len(own))), list(own)
    for row in range(len(own)):
        met = {group[other] for other in range(row) if near[row, other]}
        if met:
            highest = max(rank[other] for other in range(row) if group[other] in met)
            for other in [*(one for one in range(row) if group[one] in met), row]:
                group[other], rank[other] = min(met), highest
    return rank


@pytest.mark.parametrize("seed", range(12))
def test_ranks_are_handed_down_as_rows_come_and_only_rise_where_groups_merge(seed: int) -> None:
    vectors = clustered(seed, 50, spread=0.05)
    near = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    lengths = np.sqrt(np.diag(near))
    near = near / np.outer(lengths, lengths) >= 0.97
    own = np.random.default_rng(seed).integers(0, 3, 50).astype(np.int8)
    edges = groups.near_duplicates(vectors, cosine=0.97)
    after = groups.handed_down(edges, own)
    assert after.tolist() == one_by_one(near, own.tolist())
    before = groups.handed_down(edges[edges[:, 1] < 30], own[:30])
    assert (after[:30] >= before).all()
    early, late = groups.components(30, edges[edges[:, 1] < 30]), groups.components(50, edges)
    for number in np.unique(late[:30]):
        known = np.flatnonzero(late[:30] == number)
        joined = np.flatnonzero(late[30:] == number) + 30
        if len(set(early[known].tolist())) == 1 and all(near[row, known].any() for row in joined):
            assert (after[known] == before[known]).all()  # nothing merged: it keeps what it had
