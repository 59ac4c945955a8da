"""The scan is exact however rows are stored, sharded, masked or scanned in parts, and never ranks what is not a number."""

import threading
import weakref
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tasks.compute import kernels, scan, screens


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def some(count: int, dim: int = 16, seed: int = 1) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).normal(size=(count, dim)))


def by_hand(
    rows: scan.Rows, probes: NDArray[np.float32], keep: int, offsets: NDArray[np.float32] | float = 0.0
) -> scan.Ranked:
    scores = (rows.astype(np.float64) @ probes.T.astype(np.float64) - offsets).max(axis=1).astype(np.float32)
    order = np.lexsort((np.arange(len(scores)), -scores))[:keep]
    return scan.Ranked(order, scores[order])


@pytest.mark.parametrize("sizes", [[50], [7, 0, 30, 13], [scan.BLOCK_ROWS + 5, 3]])
@pytest.mark.parametrize("probes", [1, 5, screens.PROBES_AT_ONCE + 3])
@pytest.mark.parametrize("dim", [16, 13])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_the_scan_equals_a_full_sort_however_the_rows_are_sharded(
    sizes: list[int], probes: int, dim: int, kind: type[np.float16 | np.float32]
) -> None:
    rows, looked_for = some(sum(sizes), dim).astype(kind), some(probes, dim, seed=2)
    found = scan.best(looked_for, np.split(rows, np.cumsum(sizes)[:-1]), keep=20)
    expected = by_hand(rows, looked_for, 20)
    assert found.rows.tolist() == expected.rows.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


@pytest.mark.parametrize("probes", [1, 5])
def test_a_probes_offset_is_taken_off_its_scores(probes: int) -> None:
    rows, looked_for = some(3_000).astype(np.float16), some(probes, seed=2)
    offsets = np.linspace(-1, 1, probes, dtype=np.float32)
    found, expected = scan.best(looked_for, [rows], keep=50, offsets=offsets), by_hand(rows, looked_for, 50, offsets)
    assert found.rows.tolist() == expected.rows.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.9, 1.0])
@pytest.mark.parametrize("probes", [1, 5])
def test_only_allowed_rows_are_returned(share: float, probes: int) -> None:
    rows, looked_for = some(5_000).astype(np.float16), some(probes, seed=2)
    mask = np.random.default_rng(3).random(len(rows)) < share
    mask[3_000:] = True
    shards = [rows[:2_000], rows[2_000:3_000], rows[3_000:]]
    found = scan.best(looked_for, shards, keep=100, allowed=[mask[:2_000], mask[2_000:3_000], None])
    places = np.flatnonzero(mask)
    assert found.rows.tolist() == places[by_hand(rows[places], looked_for, 100).rows].tolist()


@pytest.mark.parametrize("offsets", [0.0, 0.3])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("quick", [True, False])
def test_rows_that_are_screened_out_change_nothing(
    quick: bool, offsets: float, kind: type[np.float16 | np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screens, "quick", lambda: quick)
    rows, looked_for = some(5 * scan.BLOCK_ROWS, 64).astype(kind), some(screens.PROBES_AT_ONCE + 9, 64, seed=2)
    shifts = np.linspace(0, offsets, len(looked_for), dtype=np.float32)
    found = scan.best(looked_for, [rows[:70_000], rows[70_000:]], keep=50, offsets=shifts)
    expected = by_hand(rows, looked_for, 50, shifts)
    assert found.rows.tolist() == expected.rows.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_a_bound_is_never_below_the_score_and_close_to_it(shift: float, kind: type[np.float16 | np.float32]) -> None:
    looked_for = some(screens.PROBES_AT_ONCE + 3, 64, seed=2) * np.float32(20)
    offsets = np.linspace(-shift, shift, len(looked_for), dtype=np.float32)
    for size in (1.0, 1e3, 1e-3):
        rows = (some(3_000, 64) * np.float32(size)).astype(kind)
        exact = (rows.astype(np.float64) @ looked_for.T.astype(np.float64) - offsets).max(axis=1)
        bounds = screens.Screen(looked_for, offsets, rows).bounds(rows)
        assert (bounds >= exact).all()
        assert (bounds - exact <= 0.05 * 20 * size + 0.001 * shift).all()


def test_dimensions_that_are_large_in_all_rows_do_not_blunt_the_screen() -> None:
    rows, looked_for = some(3_000, 64), some(30, 64, seed=2)
    rows[:, 7] += 20
    exact = (rows.astype(np.float64) @ looked_for.T.astype(np.float64)).max(axis=1)
    bounds = screens.Screen(looked_for, np.zeros(30, np.float32), rows[:1_000]).bounds(rows)
    assert (bounds >= exact).all()
    assert (bounds - exact <= 0.05).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_the_screen_lets_through_what_is_not_finite(value: float, kind: type[np.float16 | np.float32]) -> None:
    rows = some(300).astype(kind)
    rows[100, 3] = value
    bounds = screens.Screen(some(30, seed=2), np.zeros(30, np.float32), rows[:0]).bounds(rows)
    assert np.flatnonzero(np.isnan(bounds)).tolist() == [100]


@pytest.mark.parametrize("quick", [True, False])
def test_a_row_that_is_not_finite_is_named_after_the_ranking_is_full(
    quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screens, "quick", lambda: quick)
    rows = some(4 * scan.BLOCK_ROWS)
    rows[-7, 3] = np.nan
    with pytest.raises(ValueError, match=f"row {len(rows) - 7} .* not finite"):
        scan.best(some(kernels.SCREENED_FROM, seed=2), [rows], keep=5)


def test_equal_scores_keep_corpus_order() -> None:
    rows = np.tile(some(1, 16), (3 * scan.BLOCK_ROWS, 1)).astype(np.float16)
    for kind in (np.float16, np.float32):
        found = scan.best(rows[:1].astype(np.float32), [rows.astype(kind)], keep=5)
        assert found.rows.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("keep", "expected"), [(10, 3), (3, 3), (0, 0)])
def test_asking_for_more_than_there_is_gives_what_there_is(keep: int, expected: int) -> None:
    rows = some(3).astype(np.float16)
    assert len(scan.best(some(1), [rows], keep=keep).rows) == expected


def test_no_shards_give_no_rows() -> None:
    found = scan.best(some(1), [], keep=3)
    assert (found.rows.dtype, found.scores.dtype, len(found.rows)) == (np.int64, np.float32, 0)


def test_parts_scanned_apart_merge_into_the_whole() -> None:
    rows, looked_for = some(9_000).astype(np.float16), some(3, seed=2)
    rows[8_000:] = rows[:1_000]  # ties across the parts
    cuts = [0, 10, 4_000, 9_000]
    parts = [scan.best(looked_for, [rows[a:b]], keep=40, first_row=a) for a, b in pairwise(cuts)]
    whole, merged = scan.best(looked_for, [rows], keep=40), scan.merge(reversed(parts), keep=40)
    assert merged.rows.tolist() == whole.rows.tolist()
    np.testing.assert_allclose(merged.scores, whole.scores, rtol=1e-6)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("probes", [1, 5])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named(kind: type[np.float16 | np.float32], probes: int, wrong: float) -> None:
    rows = some(2_000).astype(kind)
    rows[1_234, 3] = wrong
    shards = [rows[:1_000], rows[1_000:]]
    with pytest.raises(ValueError, match=r"row 11234 .* not finite"):
        scan.best(some(probes, seed=2), shards, keep=5, first_row=10_000)
    masks = [None, np.arange(1_000) != 234]
    assert len(scan.best(some(probes, seed=2), shards, keep=5, allowed=masks).rows) == 5


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_probe_that_is_not_finite_is_named(wrong: float) -> None:
    probes = some(4)
    probes[2, 1] = wrong
    with pytest.raises(ValueError, match="probe 2"):
        scan.best(probes, [some(5)], keep=1)
    with pytest.raises(ValueError, match="probe 1"):
        scan.best(some(2), [some(5)], keep=1, offsets=np.array([0, wrong], np.float32))


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="16 dimensions"):
        scan.best(some(1), [some(5, 8)], keep=1)
    with pytest.raises(ValueError, match="mask"):
        scan.best(some(1), [some(5)], keep=1, allowed=[np.ones(4, np.bool_)])
    with pytest.raises(ValueError, match="offsets"):
        scan.best(some(2), [some(5)], keep=1, offsets=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="keep -1"):
        scan.best(some(1), [some(5)], keep=-1)


def test_only_a_few_shards_are_held_at_once() -> None:
    held: list[weakref.ref[NDArray[np.float32]]] = []
    most = 0

    def shards() -> Iterator[NDArray[np.float32]]:
        nonlocal most
        for number in range(60):
            shard = some(50, seed=number)
            held.append(weakref.ref(shard))
            most = max(most, sum(reference() is not None for reference in held))
            yield shard

    scan.best(some(5), shards(), keep=3)
    assert most <= 3 * (torch.get_num_threads() + 2)


def test_the_callers_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    scan.best(some(5), [some(50)], keep=3)
    assert torch.get_num_threads() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scan")]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpu_finds_the_same(device: str) -> None:
    """The code for a GPU also runs on a CPU, slowly."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    rows, looked_for = some(5_000).astype(np.float16), some(5, seed=2)
    mask = np.random.default_rng(3).random(len(rows)) < 0.5
    on_device = scan.best(looked_for, [rows[:10], rows[10:]], keep=30, allowed=[None, mask[10:]], device=f"{device}:0")
    expected = scan.best(looked_for, [rows[:10], rows[10:]], keep=30, allowed=[None, mask[10:]])
    assert on_device.rows.tolist() == expected.rows.tolist()
    np.testing.assert_allclose(on_device.scores, expected.scores, rtol=1e-5)
    rows[77, 0] = np.nan
    with pytest.raises(ValueError, match="row 77 "):
        scan.best(looked_for, [rows], keep=30, device=f"{device}:0")


@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_half_precision_on_a_gpu_changes_nothing(device: str, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    monkeypatch.setattr(scan, "DEVICE_ROWS", 1_000)
    rows, looked_for = some(8_000).astype(np.float16), some(5, seed=2)
    offsets = np.linspace(0, offset, 5, dtype=np.float32)
    whole: list[int] = []
    real = kernels.Kernels._wide
    monkeypatch.setattr(kernels.Kernels, "_wide", lambda one, rows: (whole.append(len(rows)), real(one, rows))[1])
    found = scan.best(looked_for, [rows], keep=30, offsets=offsets, device=f"{device}:0")
    assert found.rows.tolist() == by_hand(rows, looked_for, 30, offsets).rows.tolist()
    assert whole[0] == 1_000
    assert max(whole[1:]) < 400
