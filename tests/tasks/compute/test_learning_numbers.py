"""Metrics equal scikit-learn's, intervals cover, the head repeats itself bit by bit, the gate says what it means."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from tasks.compute import classifier, gate, metrics, slices


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


def test_a_delta_of_a_model_with_itself_is_nothing() -> None:
    generator = np.random.default_rng(0)
    targets, predicted = generator.integers(0, 3, 100), generator.integers(0, 3, 100)
    for delta in metrics.paired_deltas(targets, predicted, predicted, classes=3, resamples=300, seed=0):
        assert delta.low == delta.high == 0.0
        assert delta.before == delta.after


def test_deltas_agree_with_the_metrics_and_repeat_for_a_seed() -> None:
    generator = np.random.default_rng(1)
    targets, before, after = generator.integers(0, 3, (3, 150))
    first = metrics.paired_deltas(targets, before, after, classes=3, resamples=500, seed=4)
    assert first == metrics.paired_deltas(targets, before, after, classes=3, resamples=500, seed=4)
    scored = metrics.scores(targets, after, classes=3)
    by_name = {(delta.metric, delta.target): delta for delta in first}
    assert by_name["f1", 2].after == pytest.approx(scored.f1[2])
    assert by_name["accuracy", -1].after == pytest.approx(scored.accuracy)
    assert by_name["macro_f1", -1].after == pytest.approx(scored.macro_f1)
    assert all(delta.low <= delta.after - delta.before <= delta.high for delta in first)


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        targets = generator.integers(0, 2, 300)
        before = np.where(generator.random(300) < 0.70, targets, 1 - targets)
        after = np.where(generator.random(300) < 0.80, targets, 1 - targets)
        found = metrics.paired_deltas(targets, before, after, classes=2, resamples=400, seed=trial)
        accuracy = next(delta for delta in found if delta.metric == "accuracy")
        covered += accuracy.low <= 0.10 <= accuracy.high
    assert 0.90 <= covered / 200 <= 0.99


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


@pytest.mark.parametrize(
    ("target", "overall", "verdict"),
    [
        ((0.1, 0.3), (-0.005, 0.02), "pass"),
        ((0.1, 0.3), (-0.02, 0.02), "inconclusive"),
        ((0.1, 0.3), (-0.05, -0.02), "fail"),
        ((-0.1, 0.3), (0.0, 0.02), "inconclusive"),
        ((-0.3, -0.1), (0.0, 0.02), "fail"),
        ((-np.inf, np.inf), (0.0, 0.02), "inconclusive"),
    ],
)
def test_the_gate_judges_by_the_intervals(
    target: tuple[float, float], overall: tuple[float, float], verdict: str
) -> None:
    found = gate.verdict(target, overall)
    assert found.verdict == verdict
    assert len(found.reasons) == 2


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
