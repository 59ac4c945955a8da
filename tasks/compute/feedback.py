"""Probes that learn from what people said of earlier candidates, and forget nothing that the exemplars show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.compute import logistic, scoring
from tasks.compute.portable import Scorer

# Tuned on the pilot's seeds 0 to 2, four rounds of 50 labels.
STRENGTH = 30.0  # of the pull toward what the zero-feedback probe would be of exemplars and hits
BACKGROUND_COST = 150.0  # of all background rows together, taken as misses
BIAS = -2.0  # logits of the average image before any answer
OWN = 0.6  # weight of a prototype's own direction once hits are prototypes too


class Answers(NamedTuple):
    """What people said of elements: hits and misses, with what each counts."""

    vectors: NDArray[np.float32]  # (n, dim)
    hits: NDArray[np.bool_]  # (n,)
    weights: NDArray[np.float64]  # (n,) 1 for a label, less for an accept or a discard


def refine(
    found: scoring.Probes,
    exemplars: scoring.Exemplars,
    answers: Answers,
    behind: scoring.Background,
) -> scoring.Probes:
    """A logistic probe, shrunk toward what the zero-feedback probe would be if hits were exemplars; hits are prototypes.

    Naive feedback can be worse than none, hence the shrinkage. Source: SeeSaw (arXiv 2208.06497). Without answers it is
    the zero-feedback probe, and misses alone cannot take it far from there.
    """
    if not len(answers.hits) or found.way is None:
        return found
    way, where = found.way, found.way.where
    positive, negative = where.place(exemplars.positive), where.place(exemplars.negative)
    told = where.place(answers.vectors)
    rows = np.vstack([positive, negative, told, where.rows[: scoring.UNLABELLED]])
    unlabelled = len(rows) - len(positive) - len(negative) - len(told)
    hits = np.concatenate([np.ones(len(positive)), np.zeros(len(negative)), answers.hits, np.zeros(unlabelled)]) > 0
    behind_costs = np.full(unlabelled, BACKGROUND_COST / max(1, unlabelled))
    costs = np.concatenate([np.ones(len(positive) + len(negative)), answers.weights, behind_costs])

    shown = np.vstack([positive, told[answers.hits]])
    prior = logistic.Line(way.towards(shown, negative), BIAS)
    learnt = logistic.fit(rows, hits, costs, prior=prior, strength=STRENGTH).weights
    lines = scoring.lines_of(where, where.unit(learnt), shown, own=OWN * way.own)
    again = _rescaled(found, lines, exemplars, answers, behind)
    if found.contrast is None:
        return again
    hits_too = np.vstack([exemplars.positive, answers.vectors[answers.hits]])
    return again._replace(contrast=scoring.contrast_of(way, hits_too, behind))


def _rescaled(
    found: scoring.Probes,
    lines: scoring.Lines,
    exemplars: scoring.Exemplars,
    answers: Answers,
    behind: scoring.Background,
) -> scoring.Probes:
    """The score's scale anew: exemplars and hits are typical. They have been seen, so a score is a little too low.

    Held-out exemplars keep their scores: their raw scores are moved to the new scale.
    """
    raw = lines.raw(behind.rows)
    shown = np.vstack([exemplars.positive, answers.vectors[answers.hits]])
    low, high = float(raw.mean()), float(np.median(lines.raw(shown)))
    gap = max(high - low, scoring.LEAST_GAP * (float(raw.std()) or 1.0))
    scorer = Scorer(
        lines.vectors.astype(np.float32),
        lines.offsets.astype(np.float32),
        low + gap / 2,
        gap / 2 / scoring.TYPICAL,
        f"{found.scorer.version.partition('+')[0]}+feedback-1",
    )
    logits = (found.held_out - found.scorer.middle) / found.scorer.spread
    held_out = logits * scorer.spread + scorer.middle
    members = lines.members[: len(exemplars.positive)]
    return scoring.Probes(scorer, members, held_out, raw, lines.shared, found.way, found.contrast)
