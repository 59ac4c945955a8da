"""Feedback sharpens the probe and never forgets the exemplars."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.compute import feedback, portable, scoring

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


def probes(rows: NDArray[np.float32], exemplars: NDArray[np.float32]) -> scoring.Probes:
    return scoring.probe(scoring.Exemplars(exemplars, NONE), background(rows), scoring.Options())


def precision(found: scoring.Probes, rows: NDArray[np.float32], concept: NDArray[np.bool_], *, top: int = 100) -> float:
    return float(concept[np.argsort(-portable.score(found.scorer, rows).raw)[:top]].mean())


def answers(
    rows: NDArray[np.float32], hits: NDArray[np.bool_], places: NDArray[np.int64], weight: float = 1.0
) -> feedback.Answers:
    return feedback.Answers(rows[places], hits[places], np.full(len(places), weight))


def test_without_answers_feedback_changes_nothing() -> None:
    rows, concept, exemplars = hidden_concept(0)
    found = probes(rows, exemplars)
    nobody = answers(rows, concept, np.empty(0, np.int64))
    assert feedback.refine(found, scoring.Exemplars(exemplars, NONE), nobody, background(rows)) is found


@pytest.mark.parametrize("seed", range(2))
def test_answers_sharpen_the_probe(seed: int) -> None:
    rows, concept, exemplars = hidden_concept(seed)
    found = probes(rows, exemplars[:1])
    told = np.argsort(-portable.score(found.scorer, rows).raw)[:60]
    better = feedback.refine(
        found, scoring.Exemplars(exemplars[:1], NONE), answers(rows, concept, told), background(rows)
    )
    rest = np.setdiff1d(np.arange(len(rows)), told)
    assert precision(better, rows[rest], concept[rest]) > precision(found, rows[rest], concept[rest])
    assert better.scorer.version == "probe-1+feedback-1"


def test_misses_alone_do_not_make_the_probe_forget_its_exemplars() -> None:
    rows, concept, exemplars = hidden_concept(0)
    found = probes(rows, exemplars)
    misses = np.flatnonzero(~concept)[:60]
    after = feedback.refine(found, scoring.Exemplars(exemplars, NONE), answers(rows, concept, misses), background(rows))
    assert precision(after, rows, concept) > precision(found, rows, concept) - 0.1


def test_a_review_counts_less_than_a_label() -> None:
    rows, concept, exemplars = hidden_concept(0)
    found, shown = probes(rows, exemplars), scoring.Exemplars(exemplars, NONE)
    told = np.flatnonzero(~concept)[:40]

    def moved(weight: float) -> float:
        after = feedback.refine(found, shown, answers(rows, concept, told, weight), background(rows))
        return float(
            np.linalg.norm(after.shared - found.shared / np.linalg.norm(found.shared) * np.linalg.norm(after.shared))
        )

    assert moved(0.1) < moved(1.0)


def test_held_out_exemplars_keep_their_scores_on_the_new_scale() -> None:
    rows, concept, exemplars = hidden_concept(0)
    found = probes(rows, exemplars)
    told = np.argsort(-portable.score(found.scorer, rows).raw)[:60]
    after = feedback.refine(found, scoring.Exemplars(exemplars, NONE), answers(rows, concept, told), background(rows))
    before = portable.likeness(found.scorer, found.held_out)
    np.testing.assert_allclose(portable.likeness(after.scorer, after.held_out), before, atol=1e-9)
    typical = float(np.median(portable.score(after.scorer, rows[told[concept[told]]]).scores))
    assert typical == pytest.approx(0.88, abs=0.03)  # a hit that is a prototype now


def test_hits_are_prototypes_and_thousands_of_answers_stay_bounded() -> None:
    rows, concept, exemplars = hidden_concept(0)
    found, shown = probes(rows, exemplars), scoring.Exemplars(exemplars, NONE)
    few = feedback.refine(found, shown, answers(rows, concept, np.arange(7)), background(rows))
    assert len(few.scorer.vectors) == len(exemplars) + int(concept[:7].sum())
    many = feedback.refine(found, shown, answers(rows, concept, np.arange(3_000)), background(rows))
    assert len(many.scorer.vectors) == scoring.PROTOTYPES
    assert len(many.members) == len(exemplars)


def test_a_prompt_is_not_forgotten_once_there_are_answers() -> None:
    rows, concept, exemplars = hidden_concept(0)
    told, shown = np.arange(40), scoring.Exemplars(exemplars, NONE)
    shared = []
    for place in (20, 25):
        words = scoring.Words(np.eye(32, dtype=np.float32)[place : place + 1], np.eye(32, dtype=np.float32)[30:31])
        found = scoring.probe(shown, background(rows), scoring.Options("text", text_weight=1.0), words=words)
        shared.append(feedback.refine(found, shown, answers(rows, concept, told), background(rows)).shared)
    assert not np.allclose(*shared)
