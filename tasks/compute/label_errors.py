"""Which labels of labelled vectors are probably wrong, by confident learning."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
LEAST = FOLDS  # labels of a class, so that each fold leaves some to learn from
# Strong shrinkage: a head that can learn an odd label by heart believes it. On the demo's data with three planted errors
# among an issue's exemplars, 0.1 finds as many as 0.01 and more than 1, and calls no right exemplar wrong.
REGULARISATION = 0.1


class Judged(NamedTuple):
    """What is thought of each given label."""

    quality: NDArray[np.float64]  # (n,) 0..1: how far the label is believed (the probability of the given class)
    suspected: NDArray[np.bool_]  # (n,)
    likely: NDArray[np.int64]  # (n,) the class that the others would give it


def judge(features: NDArray[np.float32], targets: NDArray[np.int64], *, seed: int) -> Judged:
    """Judge labels (n,) of features (n, dim) by heads that have not seen them.

    The classes are 0..max(targets), each with LEAST rows or more; there are two or more. Identical rows are in one fold.
    Confident learning prunes, of each class, as many of the least believed as its estimated joint distribution of given
    and true classes says are wrong (Northcutt, Jiang and Chuang 2021; cleanlab's prune_by_class).
    """
    from cleanlab.filter import find_label_issues  # seconds: sklearn and pandas
    from cleanlab.rank import get_label_quality_scores

    probabilities = _out_of_sample(features, targets, seed=seed)
    suspected = find_label_issues(targets, probabilities, filter_by="prune_by_class", n_jobs=1)
    likely = probabilities.argmax(axis=1)
    return Judged(
        quality=np.asarray(get_label_quality_scores(targets, probabilities), dtype=np.float64),
        suspected=np.asarray(suspected, dtype=np.bool_) & (likely != targets),
        likely=np.asarray(likely, dtype=np.int64),
    )


def _out_of_sample(features: NDArray[np.float32], targets: NDArray[np.int64], *, seed: int) -> NDArray[np.float64]:
    """Class probabilities (n, classes) of each row by a head that was fitted without its fold."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    scaled = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    folds = _folds(features, targets, seed=seed)
    found = np.zeros((len(targets), int(targets.max()) + 1))
    with threadpool_limits(1):  # small products, as in classifier.fit
        for fold in range(FOLDS):
            seen, unseen = folds != fold, folds == fold
            head = LogisticRegression(C=REGULARISATION, max_iter=300, tol=1e-3).fit(scaled[seen], targets[seen])
            found[np.ix_(unseen, head.classes_)] = head.predict_proba(scaled[unseen])
    return found


def _folds(features: NDArray[np.float32], targets: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """A fold (n,) for each row: dealt out class by class; rows that are the same go with the first of them."""
    _, first, same = np.unique(features, axis=0, return_index=True, return_inverse=True)
    generator = np.random.default_rng(seed)
    folds = np.zeros(len(targets), dtype=np.int64)
    heads = np.sort(first)
    for target in np.unique(targets[heads]):
        mine = heads[targets[heads] == target]
        folds[generator.permutation(mine)] = np.arange(len(mine)) % FOLDS
    return folds[first[same.reshape(-1)]]
