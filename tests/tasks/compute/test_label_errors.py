"""Planted label errors are found, and right labels are left alone."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.compute import label_errors


def blobs(
    count: int, dim: int, *, classes: int, spread: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, dim))
    targets = np.arange(count, dtype=np.int64) % classes
    rows = centres[targets] + spread * generator.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), targets


def test_nine_of_ten_planted_errors_are_found_and_one_right_label_in_fifty_is_doubted_at_most() -> None:
    found, doubted = [], []
    for seed in range(10):
        rows, targets = blobs(600, 32, classes=6, spread=1.0, seed=seed)
        generator = np.random.default_rng(seed)
        wrong = generator.choice(600, 30, replace=False)
        given = targets.copy()
        given[wrong] = (targets[wrong] + generator.integers(1, 6, 30)) % 6
        judged = label_errors.judge(rows, given, seed=seed)
        found.append(judged.suspected[wrong].mean())
        right = np.setdiff1d(np.arange(600), wrong)
        doubted.append(judged.suspected[right].mean())
        hit = wrong[judged.suspected[wrong]]
        assert (judged.likely[hit] == targets[hit]).mean() > 0.9
        assert judged.quality[wrong].mean() < judged.quality[right].mean() - 0.3
    assert np.mean(found) > 0.9
    assert np.mean(doubted) < 0.02


def test_copies_of_one_wrong_image_do_not_vouch_for_each_other() -> None:
    rows, targets = blobs(300, 16, classes=3, spread=0.5, seed=0)
    wrong = np.arange(0, 12, 3)  # of class 0, said to be 1, and all the same image
    rows[wrong] = rows[0]
    targets[wrong] = 1
    judged = label_errors.judge(rows, targets, seed=0)
    assert judged.suspected[wrong].all()
    assert (judged.likely[wrong] == 0).all()


def test_the_same_labels_are_judged_the_same_twice() -> None:
    rows, targets = blobs(200, 8, classes=4, spread=1.0, seed=0)
    first, second = (label_errors.judge(rows, targets, seed=3) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("dim", [128, 512])
def test_five_thousand_labels_take_seconds(dim: int) -> None:
    rows, targets = blobs(5_000, dim, classes=20, spread=2.0, seed=0)
    label_errors.judge(rows[:200], targets[:200], seed=0)  # imports
    started = time.monotonic()
    label_errors.judge(rows, targets, seed=0)
    assert time.monotonic() - started < 10  # 0.2 to 1 s on two idle cores
