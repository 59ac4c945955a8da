"""What several annotators agree on, against published examples and the libraries others use."""

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene, MajorityVote
from krippendorff import alpha as reference_alpha
from sklearn.metrics import cohen_kappa_score

from tasks.compute import agreement, outlook
from tasks.compute.agreement import Votes

# Dawid & Skene (1979), table 1: 45 patients, classes 1 to 4, by observers 1 (three times) to 5.
ANAESTHETISTS = """
111 1 1 1 1, 333 4 3 3 4, 112 2 1 2 2, 222 3 1 2 1, 222 3 2 2 2, 222 3 3 2 2, 122 2 1 1 1, 333 3 4 3 3, 222 2 2 2 3,
232 2 2 2 3, 444 4 4 4 4, 222 3 3 4 3, 111 1 1 1 1, 222 3 2 1 2, 121 1 1 1 1, 111 2 1 1 1, 111 1 1 1 1, 111 1 1 1 1,
222 2 2 2 1, 222 1 3 2 2, 222 2 2 2 2, 222 2 2 2 1, 222 3 2 2 2, 221 2 2 2 2, 111 1 1 1 1, 111 1 1 1 1, 232 2 2 2 2,
111 1 1 1 1, 111 1 1 1 1, 112 1 1 2 1, 111 1 1 1 1, 333 3 2 3 3, 111 1 1 1 1, 222 2 2 2 2, 222 3 2 3 2, 433 4 3 4 3,
221 2 2 3 2, 232 3 2 3 3, 333 3 4 3 2, 111 1 1 1 1, 111 1 1 1 1, 121 2 1 1 1, 232 2 2 2 2, 121 1 1 1 1, 222 2 2 2 2
"""
# Krippendorff (2011), sections A to C: a row an observer, a letter a unit, a point where there is no answer.
BINARY = ("0100000010", "1110010000")
NOMINAL = ("aabbdcccedda", "babbbccceddd")
MISSING = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
# crowd-kit 1.4 passes keywords that pandas 3 is about to drop.
OLD_KEYWORDS = pytest.mark.filterwarnings("ignore:The (copy|inplace) keyword:DeprecationWarning")
TIGHT = {"tolerance": 1e-10, "iterations": 5_000}


def of_rows(rows: tuple[str, ...]) -> Votes:
    """Votes from one text an annotator, one character an item."""
    table = np.array([list(row) for row in rows])
    annotators, items = np.nonzero(table != ".")
    names, answers = np.unique(table[annotators, items], return_inverse=True)
    return Votes(items, annotators, answers, table.shape[1], len(rows), len(names))


def anaesthetists() -> Votes:
    patients = [patient.split() for patient in ANAESTHETISTS.replace("\n", " ").split(",")]
    told = [
        (item, observer, int(answer) - 1)
        for item, patient in enumerate(patients)
        for observer, answers in enumerate(patient)
        for answer in answers
    ]
    items, observers, answers = np.array(told).T
    return Votes(items, observers, answers, len(patients), 5, 4)


def drawn(
    seed: int, *, items: int = 80, annotators: int = 5, classes: int = 3, asked: float = 0.8
) -> tuple[Votes, np.ndarray]:
    """Votes of annotators who are right half the time to 95 %, a part of them missing, and the true classes."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, items)
    skill = generator.uniform(0.5, 0.95, annotators)
    where, who = np.nonzero(generator.random((items, annotators)) < asked)
    wrong = (truth[where] + generator.integers(1, classes, len(where))) % classes
    answers = np.where(generator.random(len(where)) < skill[who], truth[where], wrong)
    return Votes(where, who, answers, items, annotators, classes), truth


def as_frame(votes: Votes) -> pd.DataFrame:
    return pd.DataFrame({"task": votes.items, "worker": votes.annotators, "label": votes.answers})


def as_matrix(votes: Votes) -> np.ndarray:
    """(annotators, items), nan where nobody was asked."""
    matrix = np.full((votes.annotator_count, votes.item_count), np.nan)
    matrix[votes.annotators, votes.items] = votes.answers
    return matrix


def nothing(*, items: int = 3, annotators: int = 2, classes: int = 2) -> Votes:
    none = np.empty(0, dtype=np.int64)
    return Votes(none, none, none, items, annotators, classes)


# --- Dawid and Skene


def test_the_anaesthetists_get_the_estimates_of_the_paper() -> None:
    found = agreement.dawid_skene(anaesthetists(), **TIGHT)
    assert found.converged
    assert found.prevalence.round(2).tolist() == [0.40, 0.42, 0.11, 0.07]  # table 2
    assert found.confusion[0].round(2).tolist() == [  # table 3, observer 1
        [0.89, 0.11, 0.00, 0.00],
        [0.07, 0.88, 0.05, 0.00],
        [0.00, 0.34, 0.66, 0.00],
        [0.00, 0.00, 0.56, 0.44],
    ]
    assert found.posterior[:6].round(2).tolist() == np.eye(4)[[0, 3, 1, 1, 1, 1]].tolist()  # table 4


def test_every_step_makes_the_votes_likelier() -> None:
    votes = anaesthetists()
    steps = [agreement.dawid_skene(votes, tolerance=0, iterations=count).log_likelihood for count in range(1, 30)]
    assert (np.diff(steps) > -1e-9).all()
    assert steps[-1] == pytest.approx(log_likelihood(votes, agreement.dawid_skene(votes, **TIGHT)), abs=1e-6)


def log_likelihood(votes: Votes, found: agreement.Consensus) -> float:
    """Vote by vote, as equation 2.7 is written."""
    told = np.tile(found.prevalence, (votes.item_count, 1))
    for item, annotator, answer in zip(votes.items, votes.annotators, votes.answers, strict=True):
        told[item] *= found.confusion[annotator, :, answer]
    return float(np.log(told.sum(axis=1)).sum())


@OLD_KEYWORDS
@pytest.mark.parametrize("seed", [1, 3, 4])  # these settle within a hundred steps
def test_estimates_are_those_of_crowd_kit(seed: int) -> None:
    votes, _ = drawn(seed)
    found = agreement.dawid_skene(votes, **TIGHT)
    theirs = DawidSkene(n_iter=100, tol=-1).fit(as_frame(votes))  # its bound may fall by rounding: never end early
    expected = theirs.probas_.sort_index().sort_index(axis=1)
    assert np.abs(found.posterior[expected.index] - expected.to_numpy()).max() < 1e-6
    errors = theirs.errors_.sort_index().sort_index(axis=1).to_numpy().reshape(5, 3, 3)  # columns are true classes
    assert np.abs(found.confusion - errors.transpose(0, 2, 1)).max() < 1e-6
    assert np.abs(found.prevalence - theirs.priors_.sort_index().to_numpy()).max() < 1e-6


def test_an_annotator_who_swaps_two_classes_is_understood() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 300)
    items, annotators = np.repeat(np.arange(300), 4), np.tile(np.arange(4), 300)
    answers = np.where(generator.random(1_200) < 0.7, truth[items], generator.integers(0, 3, 1_200))
    swapped = np.array([1, 0, 2])
    answers = np.where(annotators == 3, swapped[truth[items]], answers)
    votes = Votes(items, annotators, answers, 300, 4, 3)
    for smoothing in (0.0, 1.0):
        found = agreement.dawid_skene(votes, **TIGHT, smoothing=smoothing)
        assert found.confusion[3].argmax(axis=1).tolist() == [1, 0, 2]
        right = (found.posterior.argmax(axis=1) == truth).mean()
        assert right > (agreement.majority(votes).winner == truth).mean() + 0.05


def test_with_few_votes_smoothing_saves_what_pure_likelihood_loses() -> None:
    right = {0.0: 0, 1.0: 0}
    for seed in range(10):
        votes, truth = drawn(seed, items=50, annotators=8, classes=10, asked=0.4)
        for smoothing in right:
            found = agreement.dawid_skene(votes, tolerance=1e-5, iterations=500, smoothing=smoothing)
            right[smoothing] += int((found.posterior.argmax(axis=1) == truth).sum())
    assert right[1.0] > right[0.0] + 10  # of 500


def test_nothing_is_nan_without_votes_of_an_item_a_class_or_an_annotator() -> None:
    votes, _ = drawn(1)
    wider = votes._replace(item_count=82, annotator_count=7, classes=5)
    found, plain = agreement.dawid_skene(wider, **TIGHT), agreement.dawid_skene(votes, **TIGHT)
    assert all(np.isfinite(part).all() for part in (found.posterior, found.prevalence, found.confusion))
    assert np.allclose(found.posterior[:80, :3], plain.posterior, atol=1e-6)
    assert np.allclose(found.posterior[80:], found.prevalence)
    assert np.allclose(found.confusion.sum(axis=2), 1)
    assert np.allclose(found.confusion[5:], 0.2)
    assert found.log_likelihood == pytest.approx(plain.log_likelihood)


def test_no_votes_say_that_everything_is_possible() -> None:
    found = agreement.dawid_skene(nothing(), **TIGHT)
    assert (found.posterior == 0.5).all()
    assert (found.log_likelihood, found.converged) == (0.0, True)
    assert agreement.dawid_skene(nothing(items=0, annotators=0), **TIGHT).posterior.shape == (0, 2)


def test_one_annotator_is_believed() -> None:
    found = agreement.dawid_skene(of_rows(("012210",)), **TIGHT)
    assert found.posterior.argmax(axis=1).tolist() == [0, 1, 2, 2, 1, 0]
    assert found.posterior.max(axis=1).tolist() == [1.0] * 6
    assert found.converged


def test_annotators_who_all_agree_are_certain() -> None:
    found = agreement.dawid_skene(of_rows(("0121", "0121", "0121")), **TIGHT)
    assert found.posterior.tolist() == np.eye(3)[[0, 1, 2, 1]].tolist()
    assert found.confusion.tolist() == [np.eye(3).tolist()] * 3


def test_a_thousand_votes_of_one_item_do_not_underflow() -> None:
    items, annotators = np.repeat([0, 1], 1_000), np.tile(np.arange(1_000), 2)
    answers = np.where(annotators % 3 == 0, 1 - items, items)
    found = agreement.dawid_skene(Votes(items, annotators, answers, 2, 1_000, 2), **TIGHT)
    assert np.isfinite(found.posterior).all()
    assert np.isfinite(found.log_likelihood)


def test_what_has_not_settled_says_so() -> None:
    found = agreement.dawid_skene(drawn(0)[0], tolerance=1e-12, iterations=2)
    assert (found.iterations, found.converged) == (2, False)


# --- Majority


@OLD_KEYWORDS
@pytest.mark.parametrize("seed", range(4))
def test_winners_are_those_of_crowd_kit_where_there_is_no_tie(seed: int) -> None:
    votes, _ = drawn(seed)
    found = agreement.majority(votes)
    theirs = MajorityVote().fit_predict(as_frame(votes)).sort_index()
    clear = ~found.tied[theirs.index]
    assert clear.sum() > 50
    assert (found.winner[theirs.index][clear] == theirs.to_numpy()[clear]).all()


def test_a_tie_is_reported_and_goes_to_the_lowest_code() -> None:
    found = agreement.majority(of_rows(("210.", "211.", "10..")))
    assert found.winner.tolist() == [2, 1, 0, -1]
    assert found.tied.tolist() == [False, False, True, False]
    assert found.share.tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 2, 0])
    assert found.votes.tolist() == [3, 3, 2, 0]


# --- Krippendorff


@pytest.mark.parametrize(("rows", "expected"), [(BINARY, 0.095), (NOMINAL, 0.692), (MISSING, 0.743)])
def test_alphas_are_those_that_krippendorff_published(rows: tuple[str, ...], expected: float) -> None:
    assert round(agreement.krippendorff_alpha(of_rows(rows)), 3) == expected


@pytest.mark.parametrize("seed", range(6))
def test_alphas_are_those_of_the_krippendorff_library(seed: int) -> None:
    votes, _ = drawn(seed, asked=0.5)
    matrix = as_matrix(votes)
    found = agreement.krippendorff_alpha(votes)
    assert found == pytest.approx(reference_alpha(matrix, level_of_measurement="nominal"), abs=1e-12)
    for code in range(3):
        against = np.where(np.isnan(matrix), np.nan, matrix == code)
        expected = reference_alpha(against, level_of_measurement="nominal")
        assert agreement.alpha_of_class(votes, code) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rows", [("0101",), ("0...", ".1.."), ("000", "000"), ("0.", "01")])
def test_alpha_is_undefined_where_nothing_can_be_compared(rows: tuple[str, ...]) -> None:
    votes = of_rows(rows)
    assert np.isnan(agreement.krippendorff_alpha(votes))
    assert np.isnan(agreement.alpha_of_annotator(votes, 0))
    assert np.isnan(agreement.alpha_interval(votes, resamples=20, seed=0)).all()


def test_no_votes_have_no_alpha_and_no_majority() -> None:
    assert np.isnan(agreement.krippendorff_alpha(nothing()))
    assert np.isnan(agreement.alpha_of_annotator(nothing(), 0))
    assert np.isnan(agreement.alpha_interval(nothing(), resamples=20, seed=0)).all()
    assert agreement.majority(nothing()).winner.tolist() == [-1, -1, -1]


def test_the_annotators_alphas_average_to_that_of_the_batch() -> None:
    votes, _ = drawn(3, asked=0.5)
    shared = np.bincount(votes.items, minlength=votes.item_count)[votes.items] > 1
    weights = np.bincount(votes.annotators[shared], minlength=5)
    alphas = [agreement.alpha_of_annotator(votes, annotator) for annotator in range(5)]
    assert np.average(alphas, weights=weights) == pytest.approx(agreement.krippendorff_alpha(votes))


def test_the_annotator_who_guesses_has_the_lowest_alpha() -> None:
    votes = of_rows(("001122001122", "001122001122", "001122001120", "210210012012"))
    alphas = [agreement.alpha_of_annotator(votes, annotator) for annotator in range(4)]
    assert np.argmin(alphas) == 3
    assert alphas[3] < 0.1 < min(alphas[:3])


def test_an_interval_of_alpha_holds_alpha_and_is_the_same_for_a_seed() -> None:
    votes, _ = drawn(0)
    low, high = agreement.alpha_interval(votes, resamples=1_000, seed=7)
    assert low < agreement.krippendorff_alpha(votes) < high
    assert (low, high) == agreement.alpha_interval(votes, resamples=1_000, seed=7)
    assert (low, high) != agreement.alpha_interval(votes, resamples=1_000, seed=8)
    more = agreement.alpha_interval(drawn(0, items=2_000)[0], resamples=1_000, seed=7)
    assert more[1] - more[0] < (high - low) / 3


def test_drawing_items_with_equal_counts_together_is_the_plain_bootstrap() -> None:
    votes, _ = drawn(2, items=40, annotators=3, asked=1)
    matrix, generator = as_matrix(votes), np.random.default_rng(0)
    plain = [
        reference_alpha(matrix[:, generator.integers(0, 40, 40)], level_of_measurement="nominal") for _ in range(1_000)
    ]
    found = agreement.alpha_interval(votes, resamples=4_000, seed=0)
    assert found == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.03)


def test_two_votes_of_one_annotator_on_an_item_are_refused() -> None:
    twice = Votes(np.array([0, 1, 1]), np.array([0, 2, 2]), np.array([0, 1, 1]), 2, 3, 2)
    for counted in (agreement.majority, agreement.krippendorff_alpha):
        with pytest.raises(ValueError, match="annotator 2 voted twice on item 1"):
            counted(twice)


def test_codes_out_of_bounds_are_refused() -> None:
    votes = of_rows(("01", "01"))
    for wrong, name in ((votes._replace(classes=1), "class"), (votes._replace(item_count=1), "item")):
        with pytest.raises(ValueError, match=f"{name} codes run from 0 to 1"):
            agreement.majority(wrong)
    with pytest.raises(ValueError, match="no class"):
        agreement.dawid_skene(nothing(classes=0), **TIGHT)


# --- Predictions against annotations


def test_judged_counts_agrees_and_corrects_for_chance() -> None:
    generator = np.random.default_rng(0)
    correct = generator.integers(0, 4, 200)
    answers = np.where(generator.random(200) < 0.6, correct, generator.integers(0, 4, 200))
    found = agreement.judged(correct, answers, classes=5)
    assert found.table.sum() == 200
    assert found.table[1, 2] == ((correct == 1) & (answers == 2)).sum()
    assert found.agreement == outlook.rate(int((correct == answers).sum()), 200)
    assert found.kappa == pytest.approx(cohen_kappa_score(correct, answers))


def test_kappa_is_that_of_a_published_table() -> None:
    """Artstein & Poesio (2008), Computational Linguistics 34(4), 555-596, table 1."""
    cells = np.repeat(np.arange(4), [20, 20, 10, 50])
    found = agreement.judged(cells // 2, cells % 2, classes=2)
    assert (found.agreement.share, round(found.kappa, 3)) == (0.70, 0.348)


@pytest.mark.parametrize("said", [[], [1, 1, 1]])
def test_kappa_is_undefined_when_chance_agrees_fully(said: list[int]) -> None:
    answers = np.array(said, dtype=np.int64)
    assert np.isnan(agreement.judged(answers, answers, classes=2).kappa)
