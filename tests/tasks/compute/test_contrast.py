"""The second opinion counts where exemplars are a ball, and not where they share a direction."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.compute import contrast, scoring, selection


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def ball(seed: int) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """A class of 2,000 among 6,000 others, and the 210 of it around one of them: (rows, is it one of these, exemplars)."""
    generator = np.random.default_rng(seed)
    spread = np.concatenate([np.full(6, 1.5), np.full(26, 0.3)])
    members = 2 * generator.normal(size=32) + generator.normal(size=(2_000, 32)) * spread
    rows = unit(np.concatenate([members, generator.normal(size=(6_000, 32)) * 1.2]))
    order = np.concatenate([np.argsort(-(rows[:2_000] @ rows[0])), np.arange(2_000, 8_000)])
    inside = generator.permutation(order[:210])
    rows = rows[np.concatenate([inside, order[210:]])]
    return rows[10:], np.arange(len(rows) - 10) < 200, rows[:10]


def line(seed: int) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """200 rows that are like 8,000 others but for one faint direction."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(8_210, 32)) * np.concatenate([np.full(4, 3.0), np.full(28, 0.4)])
    rows[:210, 20] += 2.0
    rows = unit(rows)
    return rows[10:], np.arange(8_200) < 200, rows[:10]


def probes_of(rows: NDArray[np.float32], exemplars: NDArray[np.float32]) -> scoring.Probes:
    behind = scoring.background([rows.astype(np.float16)], rows=8_000, seed=0)
    return scoring.probe(scoring.Exemplars(exemplars, exemplars[:0]), behind, scoring.Options())


def precision(found: scoring.Probes, rows: NDArray[np.float32], hits: NDArray[np.bool_], *, second: bool) -> float:
    raw = found.scorer.vectors.astype(np.float64) @ rows.T.astype(np.float64) - found.scorer.offsets[:, None]
    top = np.argsort(-raw.max(axis=0), kind="stable")[:1_000]
    best = contrast.merits(rows[top], raw.max(axis=0)[top], found.contrast if second else None)
    return float(hits[top[np.argsort(-best, kind="stable")[:150]]].mean())


def test_a_ball_within_a_class_is_found_better_with_the_second_opinion() -> None:
    weights, gains = [], []
    for seed in range(5):
        rows, hits, exemplars = ball(seed)
        found = probes_of(rows, exemplars)
        weights.append(found.contrast.weight if found.contrast else 0.0)
        gains.append(precision(found, rows, hits, second=True) - precision(found, rows, hits, second=False))
    assert np.mean(weights) > 0.5
    assert np.mean(gains) > 0.1
    assert min(gains) >= 0


@pytest.mark.parametrize("seed", range(3))
def test_a_direction_is_left_to_the_probe(seed: int) -> None:
    found = probes_of(*(line(seed)[place] for place in (0, 2)))
    assert found.contrast is not None
    assert found.contrast.weight < 0.1


def test_a_row_in_a_crowd_is_held_back() -> None:
    generator = np.random.default_rng(0)
    crowd = unit(np.eye(8)[0] + 0.1 * generator.normal(size=(500, 8)))
    behind = np.concatenate([crowd, unit(generator.normal(size=(500, 8)))])
    shown = unit(np.asarray([np.eye(8)[0] + np.eye(8)[1]]))
    rows = unit(np.asarray([np.eye(8)[0], np.eye(8)[1]]))  # as like what is shown as each other
    in_crowd, alone = contrast.Contrast(shown, behind, 1.0).of(rows)
    assert alone > in_crowd + 0.3


def test_one_exemplar_and_little_to_compare_with_change_nothing() -> None:
    rows, _, exemplars = line(0)
    found = probes_of(rows, exemplars[:1])
    assert found.contrast is not None
    assert found.contrast.weight == 0.0
    raw = np.linspace(1, 0, 60)
    kept = np.argsort(-contrast.merits(rows[:60], raw, found.contrast), kind="stable")
    assert kept.tolist() == np.argsort(-selection.agreed(rows[:60], raw), kind="stable").tolist()
    assert contrast.merits(rows[:1], raw[:1], found.contrast).tolist() == [1.0]
    few = contrast.Contrast(exemplars, rows[:3], 1.0).of(rows[:5])
    assert np.isfinite(few).all()
