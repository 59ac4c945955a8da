"""Dawid-Skene and Krippendorff's alpha beside what was published and beside reference libraries."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from harness import Check

from tasks.compute import agreement
from tasks.compute.agreement import Votes
from tests.tasks.compute import test_agreement as published

SEEDS, TOLERANCE, STEPS = range(100, 120), 1e-6, 300


def checks(_migrated: Path, *, quick: bool) -> list[Check]:
    """The worked examples, and random votes of seeds that the tests do not use."""
    seeds = list(SEEDS)[: 3 if quick else None]
    found = agreement.dawid_skene(published.anaesthetists(), **published.TIGHT)
    # Dawid & Skene (1979), table 2: prevalences; table 3: how the first observer answers each true class.
    prevalence = np.abs(found.prevalence.round(2) - [0.40, 0.42, 0.11, 0.07]).max()
    first = [[0.89, 0.11, 0, 0], [0.07, 0.88, 0.05, 0], [0, 0.34, 0.66, 0], [0, 0, 0.56, 0.44]]
    habits = np.abs(found.confusion[0].round(2) - first).max()
    # Krippendorff (2011), examples A, B and C.
    examples = ((published.BINARY, 0.095), (published.NOMINAL, 0.692), (published.MISSING, 0.743))
    alphas = max(abs(round(agreement.krippendorff_alpha(published.of_rows(rows)), 3) - told) for rows, told in examples)
    by_alpha = max(_alpha_difference(seed) for seed in seeds)
    by_posterior = max(_posterior_difference(seed) for seed in seeds)
    paper, most = float(max(prevalence, habits)), "at most"
    libraries = f"{len(seeds)} seeds"
    return [
        Check("Dawid-Skene: anaesthetists, as in the paper", paper, most, 0.0, paper < 1e-9),
        Check("alpha: three published examples", float(alphas), most, 0.0, alphas < 1e-9),
        Check(f"alpha, as krippendorff, {libraries}", by_alpha, most, TOLERANCE, by_alpha <= TOLERANCE),
        Check(f"Dawid-Skene, as crowd-kit, {libraries}", by_posterior, most, TOLERANCE, by_posterior <= TOLERANCE),
    ]


def _votes(seed: int) -> Votes:
    """What three in four of six annotators say of 80 items of four classes; each is right seven times in ten."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 4, 80)
    items, annotators = np.nonzero(generator.random((80, 6)) < 0.75)
    right = generator.random(len(items)) < 0.7
    answers = np.where(right, truth[items], generator.integers(0, 4, len(items)))
    return Votes(items, annotators, answers, 80, 6, 4)


def _alpha_difference(seed: int) -> float:
    votes = _votes(seed)
    theirs = published.reference_alpha(reliability_data=published.as_matrix(votes), level_of_measurement="nominal")
    return float(abs(agreement.krippendorff_alpha(votes) - theirs))


def _posterior_difference(seed: int) -> float:
    """After as many steps of both: on some seeds either takes thousands to settle, and crowd-kit's are slow."""
    votes = _votes(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # crowd-kit's, about its own use of pandas
        # Its own bound can fall by rounding and end it early; a negative one never does.
        theirs = published.DawidSkene(n_iter=STEPS, tol=-1.0).fit(published.as_frame(votes)).probas_.sort_index()
    ours = agreement.dawid_skene(votes, tolerance=-1.0, iterations=STEPS).posterior[theirs.index]
    return float(np.abs(ours - theirs[sorted(theirs.columns)].to_numpy()).max())
