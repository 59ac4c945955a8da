"""Worlds whose truth is known: classes that are taken for one another at known rates, and models that change by so much."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.compute import deltas, gate, patterns
from tasks.compute.gate import Claim

Places = NDArray[np.int64]
Floats = NDArray[np.float64]


class World(NamedTuple):
    """How often classes occur, and what each model says of them."""

    prior: Floats  # (classes,)
    before: Floats  # (classes, classes): P(said | true)
    after: Floats
    agreement: float  # share of samples of which the model after says what the one before said, where both may


class Truth(NamedTuple):
    """What the models' metrics are in the long run, on samples of this world."""

    precision: Floats
    recall: Floats
    f1: Floats
    accuracy: float
    macro_f1: float


def confusing(classes: int, accuracy: float, generator: np.random.Generator) -> Floats:
    """(classes, classes) rates: each class right about so often, and taken mostly for a few others."""
    table = np.zeros((classes, classes))
    for c, right in enumerate(np.clip(accuracy + generator.normal(0, 0.05, classes), 0.3, 0.985)):
        table[c] = np.insert(generator.dirichlet(np.full(classes - 1, 0.7)) * (1 - right), c, right)
    return table


def steady(classes: int, accuracy: float, agreement: float, generator: np.random.Generator) -> World:
    """A world where nothing changes: both models err as often, and only partly on the same samples."""
    table = confusing(classes, accuracy, generator)
    return World(np.full(classes, 1 / classes), table, table, agreement)


def shifted(world: World, target: int, points: float) -> World:
    """The class's recall moves by so much; its errors grow or shrink in proportion."""
    after = world.after.copy()
    right = np.clip(after[target, target] + points, 0.0, 0.999)
    after[target] *= (1 - right) / (1 - after[target, target])
    after[target, target] = right
    return world._replace(after=after)


def sliced(world: World, target: int, share: float) -> World:
    """The slice of an issue: its class makes up so much of it."""
    prior = np.full(len(world.prior), (1 - share) / (len(world.prior) - 1))
    prior[target] = share
    return world._replace(prior=prior)


def draw(world: World, samples: int, generator: np.random.Generator) -> tuple[Places, Places, Places]:
    """True classes and what both models say, (samples,) each; the models' rates are exactly those of the world.

    A sample's luck is one uniform number, the same for both models with probability `agreement`.
    """
    targets = generator.choice(len(world.prior), size=samples, p=world.prior)
    first, second = generator.random((2, samples))
    second = np.where(generator.random(samples) < world.agreement, first, second)
    return targets, _said(world.before, targets, first), _said(world.after, targets, second)


def _said(table: Floats, targets: Places, luck: Floats) -> Places:
    """By inversion, with the true class first, so that one model's being right goes with the other's."""
    classes = len(table)
    own = table[targets, targets]
    others = table.copy()
    np.fill_diagonal(others, 0.0)
    edges = np.cumsum(others, axis=1)[targets] + own[:, None]
    place = np.minimum((edges < luck[:, None]).sum(axis=1), classes - 1)
    return np.where(luck < own, targets, place).astype(np.int64)


def truth(prior: Floats, table: Floats) -> Truth:
    """Long-run metrics of a model."""
    joint = prior[:, None] * table
    hits, said = np.diag(joint), joint.sum(axis=0)
    f1 = 2 * hits / (said + prior)
    return Truth(hits / said, hits / prior, f1, float(hits.sum()), float(f1.mean()))


def differences(
    drawn: tuple[Places, Places, Places], classes: int, *, resamples: int, seed: int
) -> dict[tuple[str, int], deltas.Delta]:
    """The comparison's rows by metric and class."""
    cells = patterns.triples(*drawn, classes=classes)
    rows = deltas.paired_deltas(cells, classes=classes, resamples=resamples, seed=seed)
    return {(row.metric, row.target): row for row in rows}


class Margins(NamedTuple):
    """What counts as no loss; the defaults of a GatePolicy are used."""

    overall: float
    of_class: float
    scenario: float
    error_rate: float


def judged(on_slice: World, everywhere: World, sizes: tuple[int, int], margins: Margins, seed: int) -> gate.Judged:
    """The gate as `tasks.judging` puts it: class 0 on its slice, accuracy, every class, and one scenario beside."""
    generator = np.random.default_rng(seed)
    classes = len(everywhere.prior)
    found = [
        (differences(draw(world, size, generator), classes, resamples=2_000, seed=seed), size)
        for world, size in ((on_slice, sizes[0]), (everywhere, sizes[1]), (everywhere, sizes[0]))
    ]
    (target, few), (overall, many), (beside, _) = found
    claims = [_claim("target", "0", target["f1", 0], 0.0, few)]
    claims.append(_claim("overall", "", overall["accuracy", -1], margins.overall, many))
    claims += [_claim("class", str(c), overall["recall", c], margins.of_class, many) for c in range(classes)]
    claims.append(_claim("scenario", "beside", beside["accuracy", -1], margins.scenario, few))
    return gate.judge(claims, error_rate=margins.error_rate)


def _claim(role: str, name: str, row: deltas.Delta, margin: float, samples: int) -> Claim:
    return Claim(role, name, row.metric, row.after - row.before, row.low, row.high, margin, samples)  # type: ignore[arg-type]
