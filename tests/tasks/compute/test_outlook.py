"""What is said before money is spent, and when to stop."""

import numpy as np
import pytest

from tasks.compute import outlook

BEHIND = np.random.default_rng(0).normal(size=4_000)


@pytest.mark.parametrize(
    ("held_out", "verdict"),
    [([4.0, 5.0, 3.5, 4.2], "good"), ([0.1, -0.4, 0.3, -0.1, 0.0, 0.2], "blind"), ([1.5, -0.3, 0.9, 0.4], "weak"),
     ([4.0], "unknown")],
)  # fmt: skip
def test_an_encoder_that_sees_the_issue_is_told_from_one_that_does_not(held_out: list[float], verdict: str) -> None:
    found = outlook.adequacy(np.asarray(held_out), BEHIND)
    assert found.verdict == verdict
    assert found.reason
    assert 0.0 <= found.low <= found.high <= 1.0


def test_a_rate_has_its_exact_interval() -> None:
    found = outlook.rate(3, 10)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0667, 0.6525)  # Clopper and Pearson's own table
    assert outlook.rate(0, 20).low == 0.0
    assert outlook.rate(20, 20).high == 1.0
    assert (outlook.rate(0, 0).low, outlook.rate(0, 0).high) == (0.0, 1.0)


def test_the_next_hit_costs_what_the_last_ones_did() -> None:
    found = outlook.next_hit(outlook.rate(5, 50), minutes_per_label=0.5, rate_per_hour=30)
    assert (found.labels, found.minutes, found.money) == pytest.approx((10, 5, 2.5))
    none = outlook.next_hit(outlook.rate(0, 50), minutes_per_label=0.5, rate_per_hour=30)
    assert none.labels == pytest.approx(1 / outlook.rate(0, 50).high)


def test_a_campaign_stops_when_its_yield_is_surely_low_and_not_before() -> None:
    bounds = {"labels": 100, "min_yield": 0.2, "max_cost": 0.0, "max_labels": 0}
    low, unsure = outlook.rate(2, 50), outlook.rate(1, 10)
    coming = outlook.Cost(10, 5, 2.5)
    assert "the bound is 20.0%" in outlook.stop_reason(low, coming, **bounds)
    assert outlook.stop_reason(unsure, coming, **bounds) == ""
    assert "projected to cost 2.50" in outlook.stop_reason(unsure, coming, **bounds | {"max_cost": 2.0})
    assert "100 labels came back" in outlook.stop_reason(unsure, coming, **bounds | {"max_labels": 100})
    assert outlook.stop_reason(low, coming, labels=100, min_yield=0, max_cost=0, max_labels=0) == ""


def test_a_batch_that_stands_out_is_expected_to_yield_more() -> None:
    held_out = np.asarray([5.0, 6.0, 4.5, 5.5])
    far = outlook.expected_yield(held_out, BEHIND, np.linspace(5, 8, 200), pool=30_000)
    near = outlook.expected_yield(held_out, BEHIND, np.linspace(2.5, 4, 200), pool=30_000)
    assert far.share > near.share
    for one in (far, near):
        assert 0.0 <= one.low < one.share < one.high <= 1.0
    assert outlook.expected_yield(held_out, BEHIND, np.empty(0), pool=10) == (0.0, 0.0, 1.0)


def test_without_held_out_exemplars_nothing_is_known_of_the_yield() -> None:
    found = outlook.expected_yield(np.empty(0), BEHIND, np.linspace(5, 8, 200), pool=30_000)
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_yield_is_of_whole_hits() -> None:
    held_out = np.asarray([5.0, 6.0, 4.5, 5.5])
    found = outlook.expected_yield(held_out, BEHIND, np.linspace(4, 7, 7), pool=3_000)
    for end in (found.low * 7, found.high * 7):
        assert end == pytest.approx(round(end))


def test_labels_narrow_what_the_next_round_is_expected_to_yield() -> None:
    scores = np.full(50, 0.8)
    rich, poor = outlook.next_yield([(40, 50), (38, 50)], scores), outlook.next_yield([(4, 50), (2, 50)], scores)
    assert rich.share > poor.share
    assert rich.high - rich.low < 0.8
    assert outlook.next_yield([(40, 50), (0, 0)], scores) == outlook.next_yield([(40, 50)], scores)
    assert outlook.next_yield([(40, 50)], np.full(50, 0.2)).share < outlook.next_yield([(40, 50)], scores).share
    with pytest.raises(ValueError, match="no round has labels"):
        outlook.next_yield([(0, 0)], scores)
