"""The probe sees past what everything shares, and scores mean what they say."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.compute import portable, scoring

NONE = np.empty((0, 32), np.float32)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


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


def background(rows: NDArray[np.float32]) -> scoring.Background:
    return scoring.background([rows.astype(np.float16)], rows=20_000, seed=0)


def probes(
    rows: NDArray[np.float32], exemplars: NDArray[np.float32], *, strategy: str = "probe", negative: object = NONE
) -> scoring.Probes:
    shown = scoring.Exemplars(exemplars, np.asarray(negative, np.float32).reshape(-1, exemplars.shape[1]))
    return scoring.probe(shown, background(rows), scoring.Options(strategy))


def precision(found: scoring.Probes, rows: NDArray[np.float32], concept: NDArray[np.bool_], *, top: int = 100) -> float:
    return float(concept[np.argsort(-portable.score(found.scorer, rows).raw)[:top]].mean())


@pytest.mark.parametrize("seed", range(3))
def test_the_probe_sees_past_directions_that_everything_shares(seed: int) -> None:
    rows, concept, exemplars = hidden_concept(seed)
    whitened = precision(probes(rows, exemplars), rows, concept)
    nearest = precision(probes(rows, exemplars, strategy="nearest"), rows, concept)
    assert whitened > 0.5
    assert whitened > nearest + 0.2


def test_a_score_lies_between_the_average_image_and_a_typical_exemplar() -> None:
    rows, _, exemplars = hidden_concept(0)
    found = probes(rows, exemplars)
    behind = portable.likeness(found.scorer, found.background)
    unseen = portable.likeness(found.scorer, found.held_out)
    assert float(portable.likeness(found.scorer, np.asarray([found.background.mean()]))[0]) == pytest.approx(
        0.12, abs=0.01
    )
    assert float(np.median(unseen)) == pytest.approx(0.88, abs=0.01)
    assert ((behind > 0) & (behind < 1)).all()
    assert 0.0 < float(behind.mean()) < 0.3


def test_a_score_rises_with_the_raw_score_and_does_not_depend_on_its_neighbours() -> None:
    rows, _, exemplars = hidden_concept(0)
    found = probes(rows, exemplars)
    whole = portable.score(found.scorer, rows[:500])
    assert (np.argsort(whole.raw, kind="stable") == np.argsort(whole.scores, kind="stable")).all()
    for part in (rows[3:4], rows[:7], rows[100:301]):
        first = int(np.flatnonzero((rows == part[0]).all(axis=1))[0])
        alone = portable.score(found.scorer, part)
        np.testing.assert_array_equal(alone.scores, whole.scores[first : first + len(part)])


def test_an_issue_of_two_kinds_finds_both() -> None:
    generator = np.random.default_rng(5)
    rows = generator.normal(size=(8_000, 32))
    rows[:100, 3] += 6.0
    rows[100:200, 9] += 6.0
    rows = unit(rows)
    exemplars = np.concatenate([rows[:8], rows[100:102]])
    kinds = np.zeros(8_000, dtype=np.int64)
    kinds[:100], kinds[100:200] = 1, 2
    found = portable.score(probes(rows, exemplars).scorer, rows)
    best = np.argsort(-found.raw)[:180]
    assert (kinds[best] == 1).sum() > 80
    assert (kinds[best] == 2).sum() > 10  # by chance 2
    assert set(found.probes[best[kinds[best] == 2]].tolist()) <= {8, 9}


@pytest.mark.parametrize("strategy", ["probe", "nearest"])
def test_negative_exemplars_push_their_like_down(strategy: str) -> None:
    generator = np.random.default_rng(3)
    rows = unit(generator.normal(size=(2_000, 8)))
    positive = unit(generator.normal(size=(5, 8)) * 0.2 + np.eye(8)[0] + np.eye(8)[1])
    negative = unit(generator.normal(size=(5, 8)) * 0.2 + np.eye(8)[1])

    def gap(found: scoring.Probes) -> float:
        raw = [portable.score(found.scorer, part).scores.mean() for part in (positive, negative)]
        return float(raw[0] - raw[1])

    without = probes(rows, positive, strategy=strategy)
    against = probes(rows, positive, strategy=strategy, negative=negative)
    assert gap(against) > gap(without)


def test_one_exemplar_is_enough_and_so_are_equal_ones() -> None:
    rows, concept, exemplars = hidden_concept(0)
    alone = probes(rows, exemplars[:1])
    assert not len(alone.held_out)
    assert precision(alone, rows, concept) > 0.15
    same = probes(rows, np.repeat(exemplars[:1], 3, axis=0))
    assert np.isfinite(portable.score(same.scorer, rows).scores).all()


def test_thousands_of_exemplars_become_a_bounded_number_of_probes() -> None:
    rows, _, _ = hidden_concept(0)
    many = probes(rows, rows[:2_000])
    assert len(many.scorer.vectors) == scoring.PROTOTYPES
    assert len(many.members) == 2_000


def test_a_prototype_in_a_crowded_region_passes_no_more_of_the_background_than_another() -> None:
    generator = np.random.default_rng(4)
    crowd = generator.normal(size=(3_000, 16)) * 0.3 + 3 * np.eye(16)[0]
    rows = unit(np.concatenate([crowd, generator.normal(size=(3_000, 16))]))
    where = scoring.space(background(rows), shrinkage=0.1)
    exemplars = where.place(unit(np.stack([3 * np.eye(16)[0], np.eye(16)[5]])))
    lines = scoring.lines_of(where, np.zeros(16), exemplars, own=1.0)
    passed = (rows @ lines.vectors.T > lines.offsets).mean(axis=0)
    assert passed == pytest.approx(1 - scoring.PASSED, abs=0.005)


def test_a_ball_of_the_encoders_own_space_is_found_although_whitening_blurs_it() -> None:
    generator = np.random.default_rng(0)
    rows = unit(generator.normal(size=(10_000, 32)) * np.geomspace(3, 0.1, 32))
    cosines = rows @ rows[0]
    ball = np.argsort(-cosines)[:200]
    exemplars = rows[generator.permutation(ball)[:10]]
    where = scoring.space(background(rows), shrinkage=0.1)
    placed = where.place(exemplars)
    inside = np.isin(np.arange(len(rows)), ball)
    blurred = where.place(rows) @ placed.mean(axis=0)
    found = portable.score(probes(rows, exemplars).scorer, rows).raw
    assert inside[np.argsort(-found)[:100]].mean() > inside[np.argsort(-blurred)[:100]].mean()


def test_words_are_looked_for_without_what_all_words_share() -> None:
    rows, concept, exemplars = hidden_concept(0)
    shared = np.zeros(32)
    shared[30] = 5.0
    prompt, neutral = shared + np.eye(32)[20], np.stack([shared, shared])
    words = scoring.Words(unit(prompt[None]), unit(neutral))
    shown = scoring.Exemplars(exemplars, NONE)
    options = scoring.Options("text", text_weight=1.0)
    found = scoring.probe(shown, background(rows), options, words=words)
    assert precision(found, rows, concept) > 0.5
    alone = scoring.probe(scoring.Exemplars(NONE, NONE), background(rows), options, words=words)
    assert precision(alone, rows, concept) > 0.5
    assert (len(alone.scorer.vectors), len(alone.members), len(alone.held_out)) == (1, 0, 0)
    with pytest.raises(ValueError, match="needs words"):
        scoring.probe(shown, background(rows), options)


def test_the_background_is_drawn_over_all_shards_and_repeatable() -> None:
    rows, _, _ = hidden_concept(0)
    whole = background(rows)
    parts = scoring.background(np.split(rows.astype(np.float16), [100, 100, 5_000]), rows=20_000, seed=0)
    np.testing.assert_allclose(whole.covariance, parts.covariance, atol=1e-12)
    again = scoring.Background.from_arrays(whole.to_arrays())
    assert again.total == len(rows)
    np.testing.assert_array_equal(again.rows, whole.rows)
    some = [scoring.background([rows.astype(np.float16)], rows=50, seed=7).mean for _ in range(2)]
    np.testing.assert_array_equal(some[0], some[1])
