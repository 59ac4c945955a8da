"""Metrics equal scikit-learn's, the head repeats itself bit by bit, slices of failures are told."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from tasks.compute import classifier, metrics, slices


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    targets, predicted = generator.integers(0, 5, 200), generator.integers(0, 6, 200)  # class 5 never occurs
    found = metrics.scores(targets, predicted, classes=6)
    expected = precision_recall_fscore_support(targets, predicted, labels=range(6), zero_division=0)
    for ours, theirs in zip((found.precision, found.recall, found.f1, found.support), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert found.accuracy == pytest.approx(accuracy_score(targets, predicted), abs=1e-12)
    table = confusion_matrix(targets, predicted, labels=range(6))
    np.testing.assert_array_equal(metrics.confusion(targets, predicted, classes=6), table)


def blobs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 3, 300)
    return (generator.normal(size=(300, 8)) + 2 * np.eye(8)[targets]).astype(np.float32), targets


def test_a_head_predicts_what_scikit_learn_predicts() -> None:
    features, targets = blobs()
    head = classifier.fit(features, targets, classes=3, regularisation=10.0)
    scaled = (features - features.mean(0)) / features.std(0)
    expected = LogisticRegression(C=10.0, max_iter=2_000).fit(scaled, targets).predict_proba(scaled)
    np.testing.assert_allclose(classifier.probabilities(head, features), expected, atol=2e-3)


def test_a_head_repeats_itself_bit_by_bit() -> None:
    features, targets = blobs()
    heads = [classifier.fit(features, targets, classes=3, regularisation=1.0) for _ in range(2)]
    assert heads[0].weights.tobytes() == heads[1].weights.tobytes()
    assert heads[0].bias.tobytes() == heads[1].bias.tobytes()


def test_two_classes_and_classes_without_examples_work() -> None:
    features, targets = blobs()
    two = targets < 2
    head = classifier.fit(features[two], targets[two], classes=4, regularisation=10.0)
    found = classifier.probabilities(head, features[two])
    assert (found.argmax(1) == targets[two]).mean() > 0.9
    assert found[:, 2:].max() == 0.0
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-6)


def test_one_class_is_not_enough() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        classifier.fit(np.ones((4, 2), np.float32), np.zeros(4, np.int64), classes=2, regularisation=1.0)


def test_a_cluster_of_failures_and_the_value_that_tells_it_are_found() -> None:
    generator = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], 100)
    predicted = targets.copy()
    predicted[:40] = 1  # forty of class 0, all light
    predicted[[120, 250]] = 0
    vectors = generator.normal(size=(300, 8)).astype(np.float32) * 0.1 + np.eye(8, dtype=np.float32)[targets]
    cluster = slices.failure_clusters(vectors, targets, predicted, most=1, seed=0)[0]
    assert (cluster.true_class, cluster.predicted_class) == (0, 1)
    assert set(cluster.places.tolist()) <= set(range(40))
    tone = ["light"] * 40 + ["dark"] * 60
    inside = np.isin(np.arange(100), cluster.places)
    told = slices.most_enriched({"tone": tone, "camera": ["a", "b"] * 50}, inside)
    assert told is not None
    assert (told.column, told.value, told.share_inside) == ("tone", "light", 1.0)


def test_no_value_tells_a_slice_that_looks_like_the_rest() -> None:
    assert slices.most_enriched({"camera": ["a", "b"] * 50}, np.arange(100) < 30) is None
