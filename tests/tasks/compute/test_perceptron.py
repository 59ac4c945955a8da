"""The small network on vectors: it learns what a line cannot, and its bits depend on rows, options and seed alone."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tasks.compute import classifier, perceptron
from tasks.compute.perceptron import Options, Rows

OPTIONS = Options(classes=3, hidden=16, regularisation=10.0, balanced=False, seed=0)


def rings(count: int, *, seed: int) -> Rows:
    """Class 0 inside of class 1 (no line parts them); class 2 has no rows."""
    generator = np.random.default_rng(seed)
    angle, inside = generator.uniform(0, 2 * np.pi, count), np.arange(count) % 2 == 0
    radius = np.where(inside, 1.0, 3.0) + generator.normal(0, 0.2, count)
    features = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) + 5.0
    return Rows(features.astype(np.float32), np.where(inside, 0, 1).astype(np.int64))


def digest(found: perceptron.Fit) -> str:
    return hashlib.sha256(b"".join(part.tobytes() for part in found.head)).hexdigest()


def test_it_learns_what_a_line_cannot() -> None:
    train, held = rings(400, seed=0), rings(200, seed=1)
    shares = perceptron.probabilities(perceptron.fit(train, None, OPTIONS).head, held.features)
    line = classifier.fit(*train, classes=3, regularisation=10.0)
    assert (shares.argmax(axis=1) == held.targets).mean() > 0.97
    assert (classifier.probabilities(line, held.features).argmax(axis=1) == held.targets).mean() < 0.7
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-6)
    assert shares[:, 2].max() == 0.0


def test_other_processes_and_thread_counts_give_the_same_bits_and_another_seed_does_not() -> None:
    train, watched = rings(200, seed=0), rings(100, seed=1)
    expected = digest(perceptron.fit(train, watched, OPTIONS))
    code = (
        "from tests.tasks.compute.test_perceptron import *\n"
        "print(digest(perceptron.fit(rings(200, seed=0), rings(100, seed=1), OPTIONS)))"
    )
    for threads in ("1", "4"):
        found = subprocess.run(
            [sys.executable, "-c", code],
            env={"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "PATH": "/usr/bin:/bin"},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == expected
    assert digest(perceptron.fit(train, watched, OPTIONS._replace(seed=1))) != expected


def test_development_rows_stop_it_and_are_never_learnt_from() -> None:
    train, watched = rings(200, seed=0), rings(100, seed=1)
    wrong = Rows(watched.features, 1 - watched.targets)
    stopped = perceptron.fit(train, wrong, OPTIONS)
    assert len(stopped.history) < len(perceptron.fit(train, watched, OPTIONS).history)
    long = perceptron.fit(train, watched, OPTIONS).history
    assert [row["loss"] for row in stopped.history] == [row["loss"] for row in long[: len(stopped.history)]]


def test_development_rows_of_a_class_that_is_not_learnt_say_nothing() -> None:
    train, watched = rings(200, seed=0), rings(100, seed=1)
    unknown = Rows(watched.features[:5], np.full(5, -1))
    assert digest(perceptron.fit(train, unknown, OPTIONS)) == digest(perceptron.fit(train, None, OPTIONS))
    both = Rows(*(np.concatenate(pair) for pair in zip(watched, unknown, strict=True)))
    assert digest(perceptron.fit(train, both, OPTIONS)) == digest(perceptron.fit(train, watched, OPTIONS))


def test_balanced_rows_find_more_of_a_rare_class() -> None:
    generator = np.random.default_rng(0)
    targets = (np.arange(600) % 20 == 0).astype(np.int64)
    train = Rows((generator.normal(0, 1, (600, 4)) + 0.8 * targets[:, None]).astype(np.float32), targets)
    recalls = []
    for balanced in (False, True):
        options = OPTIONS._replace(classes=2, regularisation=0.1, balanced=balanced)
        said = perceptron.probabilities(perceptron.fit(train, None, options).head, train.features).argmax(axis=1)
        recalls.append((said[targets == 1] == 1).mean())
    assert recalls[1] > recalls[0] + 0.2


def test_a_resample_keeps_every_class_at_its_size_and_follows_the_seed() -> None:
    targets = np.asarray([0, 1, 1, 2, 2, 2, 2] * 10)
    drawn = classifier.resample(targets, seed=3)
    assert np.bincount(targets[drawn]).tolist() == np.bincount(targets).tolist()
    assert len(set(drawn.tolist())) < len(drawn)
    assert drawn.tolist() == classifier.resample(targets, seed=3).tolist()
    assert drawn.tolist() != classifier.resample(targets, seed=4).tolist()


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        perceptron.fit(Rows(np.zeros((3, 2), np.float32), np.ones(3, np.int64)), None, OPTIONS)
