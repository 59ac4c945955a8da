"""Figures equal scikit-learn's, intervals cover as often as they say, and the gate says what they mean."""

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, precision_recall_curve

from tasks.compute import deltas, gate, intervals, metrics, patterns, ranking
from tasks.compute.gate import Claim


def deltas_of(targets, before, after, classes=3, seed=0, resamples=500, groups=None):  # type: ignore[no-untyped-def]
    cells = patterns.triples(targets, before, after, classes=classes)
    grouping = intervals.grouping(groups, len(targets)) if groups is not None else None
    rows = deltas.paired_deltas(cells, classes=classes, resamples=resamples, seed=seed, groups=grouping)
    return {(row.metric, row.target): row for row in rows}


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_equals_scikit_learn_with_ties(seed: int) -> None:
    generator = np.random.default_rng(seed)
    positives = generator.random(300) < 0.2
    scores = np.round(generator.random(300) + 0.5 * positives, 1 + seed).astype(np.float32)
    expected = average_precision_score(positives, scores)
    assert ranking.average_precision(scores, positives) == pytest.approx(expected, abs=1e-12)
    assert ranking.ranked(scores, positives).value == pytest.approx(expected, abs=1e-12)


def test_influences_are_what_happens_to_average_precision_when_a_sample_weighs_more() -> None:
    generator = np.random.default_rng(0)
    positives = generator.random(60) < 0.3
    scores = np.round(generator.random(60), 1)
    found = ranking.ranked(scores, positives)
    for sample in range(60):
        weights = np.ones(60)
        weights[sample] += 1e-6
        moved = average_precision_score(positives, scores, sample_weight=weights) - found.value
        assert moved / 1e-6 == pytest.approx(found.influences[sample], abs=1e-5)


def test_calibration_equals_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    probabilities = generator.dirichlet(np.ones(4), 200)
    targets = generator.integers(0, 4, 200)
    gathered = ranking.Certainty(targets)
    for place in range(4):
        gathered.add(place, probabilities[:, place])
    found = gathered.measured(probabilities.argmax(1) == targets)
    assert found.brier == pytest.approx(brier_score_loss(targets, probabilities), abs=1e-12)
    assert found.log_loss == pytest.approx(log_loss(targets, probabilities), abs=1e-12)
    assert found.counts.sum() == 200


def test_a_model_that_is_as_sure_as_it_is_right_has_no_calibration_error() -> None:
    targets = np.array([0, 0, 0, 1] * 25)
    gathered = ranking.Certainty(targets)
    gathered.add(0, np.full(100, 0.75))
    gathered.add(1, np.full(100, 0.25))
    assert gathered.measured(targets == 0).ece == pytest.approx(0.0)


def test_a_threshold_sweep_is_scikit_learns_curve() -> None:
    generator = np.random.default_rng(2)
    positives = generator.random(80) < 0.4
    scores = np.round(generator.random(80), 2)
    found = ranking.threshold_sweep(scores, positives)
    precision, recall, thresholds = precision_recall_curve(positives, scores)
    np.testing.assert_array_equal(found.thresholds, thresholds)
    np.testing.assert_allclose(found.precision, precision[:-1], atol=1e-12)
    np.testing.assert_allclose(found.recall, recall[:-1], atol=1e-12)
    assert len(ranking.threshold_sweep(generator.random(5_000), generator.random(5_000) < 0.5).thresholds) == 101


def test_the_interval_of_a_share_is_jeffreys() -> None:
    found = intervals.share(np.array([0.0, 7.0, 10.0]), np.array([10.0, 10.0, 10.0]))
    assert found.low.tolist() == pytest.approx([0.0, beta.ppf(0.025, 7.5, 3.5), beta.ppf(0.025, 10.5, 0.5)])
    assert found.high.tolist() == pytest.approx([beta.ppf(0.975, 0.5, 10.5), beta.ppf(0.975, 7.5, 3.5), 1.0])
    nothing = intervals.share(np.array(0.0), np.array(0.0))
    assert (float(nothing.low), float(nothing.high)) == (0.0, 1.0)


def test_q_is_benjamini_and_hochbergs() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.2])
    assert intervals.false_discovery(p).tolist() == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.2])


def test_deltas_agree_with_the_metrics_and_repeat_for_a_seed() -> None:
    targets, before, after = np.random.default_rng(1).integers(0, 3, (3, 150))
    found = deltas_of(targets, before, after, seed=4)
    assert found == deltas_of(targets, before, after, seed=4)
    assert found["f1", 1].low != deltas_of(targets, before, after, seed=5)["f1", 1].low
    scored = metrics.scores(targets, after, classes=3)
    for c in range(3):
        assert found["f1", c].after == pytest.approx(scored.f1[c])
        assert found["precision", c].after == pytest.approx(scored.precision[c])
    assert found["accuracy", -1].after == pytest.approx(scored.accuracy)
    assert found["macro_f1", -1].after == pytest.approx(scored.macro_f1)
    assert all(row.low <= row.after - row.before <= row.high for row in found.values())


def test_a_model_beside_itself_differs_by_nothing_but_that_is_not_certain() -> None:
    targets, predicted = np.random.default_rng(0).integers(0, 3, (2, 100))
    for row in deltas_of(targets, predicted, predicted).values():
        assert row.before == row.after
        assert row.low < 0 < row.high
        assert row.p == 1.0


@pytest.mark.parametrize("samples", [100, 1_000])
def test_the_interval_covers_the_true_difference_about_as_often_as_it_says(samples: int) -> None:
    generator = np.random.default_rng(2)
    covered = {"accuracy": 0, "recall": 0}
    for trial in range(300):
        targets = generator.integers(0, 2, samples)
        before = np.where(generator.random(samples) < 0.70, targets, 1 - targets)
        after = np.where(generator.random(samples) < 0.80, targets, 1 - targets)
        found = deltas_of(targets, before, after, classes=2, seed=trial)
        for metric, target in (("accuracy", -1), ("recall", 0)):
            row = found[metric, target]
            covered[metric] += row.low <= 0.10 <= row.high
    assert all(0.92 <= count / 300 <= 0.98 for count in covered.values())


def test_one_sample_that_changed_proves_nothing() -> None:
    targets = np.zeros(50, np.int64)
    before = np.zeros(50, np.int64)
    before[:3] = 1
    found = deltas_of(targets, before, targets, classes=2)
    assert found["recall", 0].low < 0 < found["recall", 0].high


def test_related_images_count_as_what_they_are() -> None:
    """Every image ten times is no more evidence than every image once."""
    generator = np.random.default_rng(3)
    targets, before, after = generator.integers(0, 2, (3, 60))
    once = deltas_of(targets, before, after, classes=2)
    often = [np.repeat(side, 10) for side in (targets, before, after)]
    grouped = deltas_of(*often, classes=2, groups=np.repeat(np.arange(60), 10))
    alone = deltas_of(*often, classes=2)
    for key in (("accuracy", -1), ("f1", 1), ("macro_f1", -1)):
        width = once[key].high - once[key].low
        assert grouped[key].high - grouped[key].low == pytest.approx(width, rel=0.12)
        assert alone[key].high - alone[key].low < 0.5 * width
    plain = metrics.ends(targets, before, classes=2)
    wide = metrics.ends(
        often[0], often[1], classes=2, groups=intervals.grouping(np.repeat(np.arange(60), 10), len(often[0]))
    )
    np.testing.assert_allclose(wide.f1.high - wide.f1.low, plain.f1.high - plain.f1.low, rtol=0.06)


@pytest.mark.parametrize("groups", [1, 2, 5, 20])
def test_a_class_that_lies_in_few_groups_proves_little(groups: int) -> None:
    """Every group of twenty changes as a whole, for better or worse by chance: "better" at most as often as it should be."""
    generator, better = np.random.default_rng(groups), 0
    for trial in range(150):
        moved = np.repeat(generator.choice([-1, 0, 1], groups), 20)
        chance = generator.random(20 * groups) < 0.5
        before, after = np.where(moved == 0, chance, moved < 0), np.where(moved == 0, chance, moved > 0)
        rest = np.zeros(200, np.int64)
        targets = np.concatenate([np.ones(20 * groups, np.int64), rest])
        names = np.concatenate([np.repeat(np.arange(groups), 20), 1_000 + np.arange(200)])
        sides = [np.concatenate([side.astype(np.int64), rest]) for side in (before, after)]
        better += deltas_of(targets, *sides, classes=2, seed=trial, groups=names)["f1", 1].low > 0
    assert better / 150 <= 0.06


def test_samples_that_are_one_group_say_nothing_of_others() -> None:
    targets, before, after = np.random.default_rng(5).integers(0, 2, (3, 30))
    one = np.zeros(30, np.int64)
    for row in deltas_of(targets, before, after, classes=2, groups=one).values():
        assert (row.low, row.high) == (-1.0, 1.0)
    same = np.full(30, 0.2)
    found = deltas.paired_mean("brier", same, same, intervals.grouping(one, 30), most=2.0)
    assert np.isfinite([found.low, found.high, found.p]).all()
    alone = metrics.ends(targets, before, classes=2, groups=intervals.grouping(one, 30))
    assert float(alone.macro_f1.low) == 0.0 and float(alone.macro_f1.high) == 1.0


def test_ten_images_among_thousands_are_ten_images() -> None:
    targets = np.zeros(5_000, np.int64)
    targets[:10] = 1
    arm = np.stack([targets] * 3)
    wide, narrow = (
        deltas.uplift(targets[:size], arm[:, :size], arm[:, :size], metric="recall", target=1, classes=2)
        for size in (5_000, 10)
    )
    assert wide.high == pytest.approx(narrow.high, rel=0.2)
    assert wide.high > 0.1


def test_mcnemar_is_the_exact_sign_test() -> None:
    targets = np.zeros(20, np.int64)
    before, after = targets.copy(), targets.copy()
    before[:6], after[6:7] = 1, 1
    assert deltas.mcnemar(targets, before, after) == (1, 6, pytest.approx(2 * (1 + 7) / 2**7))
    assert deltas.mcnemar(targets, targets, targets).p == 1.0


def test_uplift_holds_the_luck_of_seeds_as_well_as_of_images() -> None:
    generator = np.random.default_rng(4)
    targets = generator.integers(0, 2, 400)

    def arm(rates: list[float]) -> np.ndarray:  # type: ignore[type-arg]
        return np.stack([np.where(generator.random(400) < rate, targets, 1 - targets) for rate in rates])

    steady = deltas.uplift(targets, arm([0.6] * 5), arm([0.8] * 5), metric="f1", target=1, classes=2)
    lucky = deltas.uplift(targets, arm([0.45, 0.5, 0.6, 0.7, 0.75]), arm([0.8] * 5), metric="f1", target=1, classes=2)
    assert 0.1 < steady.low < steady.mean < steady.high < 0.3
    assert lucky.high - lucky.low > 1.5 * (steady.high - steady.low)
    assert steady.by_seed.shape == (5, 2)
    same = deltas.uplift(
        targets, np.stack([targets] * 3), np.stack([targets] * 3), metric="accuracy", target=-1, classes=2
    )
    assert same.low < 0 < same.high


def claim(role: str, low: float, high: float, *, margin: float = 0.01, name: str = "x") -> Claim:
    return Claim(role, name, "f1", (low + high) / 2, low, high, margin, 1_000)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "overall", "verdict"),
    [
        ((0.1, 0.3), (-0.005, 0.02), "pass"),
        ((0.1, 0.3), (-0.02, 0.02), "inconclusive"),
        ((0.1, 0.3), (-0.05, -0.02), "fail"),
        ((-0.1, 0.3), (0.0, 0.02), "inconclusive"),
        ((-0.3, -0.1), (0.0, 0.02), "fail"),
        ((-1.0, 1.0), (0.0, 0.02), "inconclusive"),
    ],
)
def test_the_gate_judges_by_the_intervals(
    target: tuple[float, float], overall: tuple[float, float], verdict: str
) -> None:
    found = gate.judge([claim("target", *target), claim("overall", *overall)], error_rate=0.05)
    assert found.verdict == verdict
    assert len(found.findings) == 2


def test_a_class_that_is_surely_worse_fails_the_gate_and_one_that_may_be_does_not() -> None:
    good = [claim("target", 0.1, 0.3), claim("overall", 0.0, 0.02)]
    others = [claim("class", -0.03, 0.03, margin=0.02, name=f"c{i}") for i in range(20)]
    assert gate.judge([*good, *others], error_rate=0.05).verdict == "pass"
    broken = gate.judge([*good, *others, claim("class", -0.3, -0.1, margin=0.02, name="shirt")], error_rate=0.05)
    assert broken.verdict == "fail"
    assert [f.name for f in broken.findings if f.says == "worse"] == ["shirt"]
    assert "class 'shirt'" in broken.reasons[-2]


def test_an_open_gate_says_how_many_samples_would_decide_it() -> None:
    """Twice the distance needs a quarter of the samples."""
    needed = [
        gate.judge([claim("target", middle - 0.1, middle + 0.1)], error_rate=0.05).samples_needed
        for middle in (0.02, 0.04)
    ]
    assert needed[0] and needed[1]
    assert needed[0] == pytest.approx(4 * needed[1], rel=0.01)
    assert gate.judge([claim("target", -0.1, 0.1)], error_rate=0.05).samples_needed is None
