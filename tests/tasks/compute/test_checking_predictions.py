"""Every kind of fault is found, counted once, and told with its first rows."""

import time

import numpy as np
from numpy.typing import NDArray

from tasks.compute import checking_predictions as checking
from tasks.compute.checking_predictions import EXTRA, NOTHING, UNKNOWN, Check, Taken


def check(places: list[int], said: list[int], shares: list[list[float]], *, samples: int) -> Taken:
    found = Check(np.asarray(places, dtype=np.int64), np.asarray(said, dtype=np.int64), samples=samples)
    for place, column in enumerate(np.asarray(shares, dtype=float).T if shares else []):
        found.add(place, column)
    return found.finish()


def told(found: Taken) -> dict[str, list[int]]:
    assert all(finding.rows >= len(finding.first) > 0 for finding in found.findings)
    return {finding.kind: finding.first for finding in found.findings}


def test_sound_rows_in_any_order_say_what_they_say() -> None:
    found = check([2, 0, 1], [NOTHING, 0, 1], [[0.2, 0.8], [0.5, 0.5], [0.1, 0.9]], samples=3)
    assert told(found) == {}
    assert found.rows.tolist() == [1, 2, 0]
    assert found.predicted.tolist() == [0, 1, 1]
    assert found.sums.tolist() == [1.0, 1.0, 1.0]


def test_no_rows_at_all_are_samples_without_an_answer() -> None:
    found = check([], [], [], samples=2)
    assert told(found) == {checking.MISSING: [0, 1]}
    assert (found.rows.tolist(), found.predicted.tolist()) == ([-1, -1], [NOTHING, NOTHING])


def test_missing_and_extra_rows_and_duplicates_of_both_kinds_are_told_apart() -> None:
    rows = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.9, 0.1], [1.0, 0.0]]
    found = check([0, 0, 1, 1, EXTRA], [0, 0, 0, 0, UNKNOWN], rows, samples=4)
    assert told(found) == {
        checking.MISSING: [2, 3],
        checking.OTHER: [4],
        checking.REPEATED: [1],
        checking.CONTRADICTORY: [3],
    }
    assert found.rows.tolist() == [0, 2, -1, -1]
    assert found.predicted.tolist() == [0, 0, -1, -1]
    only_classes = check([0, 0, 1, 1], [0, 1, 0, 0], [], samples=2)
    assert told(only_classes) == {checking.CONTRADICTORY: [1], checking.REPEATED: [3]}


def test_what_is_no_probability_is_told_by_kind_and_not_blamed_twice() -> None:
    nan, inf = float("nan"), float("inf")
    rows = [[nan, 1.0], [inf, 0.0], [-0.5, 1.5], [0.6, 0.6], [0.0, 0.0], [0.5, 0.5004]]
    found = check(list(range(6)), [NOTHING] * 6, rows, samples=6)
    assert told(found) == {
        checking.NOT_A_NUMBER: [0],
        checking.INFINITE: [1],
        checking.NEGATIVE: [2],
        checking.UNNORMALISED: [3],
        checking.ZERO: [4],
    }
    assert found.sums[3] == 1.2
    assert found.sums[5] == 1.0  # rounded, not wrong


def test_classes_that_are_unknown_absent_or_not_the_most_probable_are_told() -> None:
    rows = [[0.9, 0.1], [0.9, 0.1], [0.5, 0.5]]
    assert told(check([0, 1, 2], [UNKNOWN, 1, 1], rows, samples=3)) == {
        checking.UNKNOWN_CLASS: [0],
        checking.NOT_MOST_PROBABLE: [1],
    }
    assert told(check([0, 1], [0, NOTHING], [], samples=2)) == {checking.NO_ANSWER: [1]}


def test_identical_rows_with_the_same_hole_are_duplicates_not_contradictions() -> None:
    nan = float("nan")
    found = check([0, 0], [0, 0], [[nan, 0.5], [nan, 0.5]], samples=1)
    assert told(found) == {checking.REPEATED: [1], checking.NOT_A_NUMBER: [0, 1]}


def test_a_million_rows_of_a_hundred_classes_take_seconds() -> None:
    rows = 1_000_000
    column: NDArray[np.float64] = np.full(rows, 0.01)
    started = time.monotonic()
    found = Check(np.arange(rows)[::-1].copy(), np.full(rows, NOTHING), samples=rows)
    for place in range(100):
        found.add(place, column)
    assert told(found.finish()) == {}
    assert time.monotonic() - started < 30  # 3 s on an idle machine
