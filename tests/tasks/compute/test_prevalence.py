"""What was missed is told without bias round by round, and the intervals keep their promise."""

import math

import numpy as np
import pytest

from tasks.compute import outlook, prevalence
from tasks.compute.prevalence import Drawn

POOL = 10_000


def campaign(
    generator: np.random.Generator, *, hits: int, drawn: int, rounds: int = 4, finds: float = 0.4, exact: bool = True
) -> tuple[list[Drawn], int]:
    """Rounds that draw by chance from what is left and find a share of the other hits; and how many hits are left."""
    truth = np.zeros(POOL, bool)
    truth[generator.choice(POOL, hits, replace=False)] = True
    left, told, found = np.arange(POOL), [], []
    for _ in range(rounds):
        arm = generator.choice(left, drawn, replace=False)
        eligible, error = float(len(left)), 0.0
        if not exact:
            looked_at = 2 * drawn + 100
            share = generator.hypergeometric(len(left), POOL - len(left), looked_at) / looked_at
            eligible, error = share * POOL, math.sqrt((1 - share) / share / looked_at)
        left = np.setdiff1d(left, arm)
        rest = left[truth[left]]
        best = rest[: int(finds * len(rest))]
        left = np.setdiff1d(left, best)
        told.append((int(truth[arm].sum()), drawn, eligible, error))
        found.append(int(truth[arm].sum()) + len(best))
    since = np.cumsum(found[::-1])[::-1].tolist()
    return [Drawn(*one, number) for one, number in zip(told, since, strict=True)], int(truth[left].sum())


@pytest.mark.parametrize(
    ("hits", "drawn", "finds", "exact"),
    [(300, 500, 0.2, True), (100, 500, 0.4, True), (1_000, 50, 0.2, True), (1_000, 100, 0.1, False)],
)
def test_missed_and_prevalence_are_unbiased_over_rounds_and_covered(
    hits: int, drawn: int, finds: float, exact: bool
) -> None:
    generator = np.random.default_rng(0)
    trials = [campaign(generator, hits=hits, drawn=drawn, finds=finds, exact=exact) for _ in range(200)]
    for told, truth in (
        ([prevalence.missed([rounds]) for rounds, _ in trials], np.asarray([left for _, left in trials])),
        ([prevalence.prevalence([rounds]) for rounds, _ in trials], np.full(200, hits / POOL)),
    ):
        share, low, high = np.asarray(told).T
        assert ((low <= truth) & (truth <= high)).mean() >= 0.93
        noise = (share - truth).std() / math.sqrt(len(trials))
        assert abs((share - truth).mean()) <= 3 * noise + 0.1 * truth.mean()


def test_disjoint_pools_add_up_and_their_interval_is_that_of_the_sum() -> None:
    generator = np.random.default_rng(1)
    covered, errors = [], []
    for _ in range(200):
        pools = [campaign(generator, hits=100, drawn=20, rounds=2, finds=0.3) for _ in range(6)]
        found, truth = prevalence.missed([rounds for rounds, _ in pools]), sum(left for _, left in pools)
        covered.append(found.low <= truth <= found.high)
        errors.append((found.share - truth) / truth)
    assert np.mean(covered) >= 0.93
    assert abs(np.mean(errors)) < 0.15


def test_one_round_is_its_share_of_the_eligible_less_what_was_found() -> None:
    found = prevalence.missed([[Drawn(2, 100, 5_000.0, 0.0, 60)]])
    assert found.share == pytest.approx(40)
    assert found.low == 0.0
    assert found.high == pytest.approx(5_000 * outlook.rate(2, 100).high - 60, rel=0.05)
    assert prevalence.prevalence([[Drawn(2, 100, 5_000.0, 0.0, 60)]]).share == pytest.approx(0.02)


def test_no_hit_leaves_an_upper_end_and_no_label_leaves_nothing_known() -> None:
    none = prevalence.missed([[Drawn(0, 100, 1_000.0, 0.0, 0), Drawn(0, 100, 900.0, 0.0, 0)]])
    assert (none.share, none.low) == (0.0, 0.0)
    assert 10 < none.high < 25
    for pools in ([], [[]], [[Drawn(0, 0, 1_000.0, 0.0, 5)]]):
        assert all(map(math.isnan, prevalence.missed(pools)))
        assert all(map(math.isnan, prevalence.prevalence(pools)))


def test_a_round_without_random_labels_still_counts_for_what_was_found() -> None:
    first, second = Drawn(0, 0, 1_000.0, 0.0, 30), Drawn(5, 50, 900.0, 0.0, 10)
    assert prevalence.missed([[first, second]]).share == pytest.approx(80)
    assert prevalence.prevalence([[first, second]]).share == pytest.approx((90 + 20) / 1_000)


def test_what_is_not_surely_eligible_widens_the_interval() -> None:
    sure, unsure = (prevalence.missed([[Drawn(20, 100, 1_000.0, error, 0)]]) for error in (0.0, 0.3))
    assert unsure.low < sure.low < sure.high < unsure.high


def test_prevalence_is_never_below_what_has_been_found() -> None:
    found = prevalence.prevalence([[Drawn(0, 2, 3_000.0, 0.0, 67)]])
    assert (found.share, found.low) == (pytest.approx(67 / 3_000), pytest.approx(67 / 3_000))
    assert found.high > 0.5
