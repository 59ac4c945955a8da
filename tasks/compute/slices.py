"""Groups of failures that look alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans


class FailureCluster(NamedTuple):
    """Failures of one class taken for another that lie together; places are among all samples, most typical first."""

    true_class: int
    predicted_class: int
    places: NDArray[np.int64]  # (k,)


class Enriched(NamedTuple):
    """A metadata value that is more common among some samples than among the rest."""

    column: str
    value: str
    share_inside: float
    share_outside: float


def failure_clusters(
    vectors: NDArray[np.float32], targets: NDArray[np.int64], predicted: NDArray[np.int64], *, most: int, seed: int
) -> list[FailureCluster]:
    """Clusters of failures, biggest excess first; vectors (n, dim) unit rows, targets and predicted (n,).

    Failures of one true class are clustered together (k-means, one cluster for every 30 failures, four at most); a
    cluster is ranked by its size times the class's failure rate, so that a class that fails throughout comes before a
    big class that fails at its usual rate.
    """
    ranked: list[tuple[float, FailureCluster]] = []
    for true_class in np.unique(targets[targets != predicted]).tolist():
        places = np.flatnonzero((targets == true_class) & (predicted != true_class))
        rate = len(places) / int((targets == true_class).sum())
        groups = min(4, 1 + len(places) // 30)
        member = KMeans(groups, n_init=4, random_state=seed).fit_predict(vectors[places])
        for group in range(groups):
            inside = places[member == group]
            centre = vectors[inside].mean(axis=0)
            typical = inside[np.argsort(-(vectors[inside] @ centre), kind="stable")]
            said = int(np.bincount(predicted[inside]).argmax())
            ranked.append((len(inside) * rate, FailureCluster(true_class, said, typical)))
    ranked.sort(key=lambda pair: -pair[0])
    return [cluster for _, cluster in ranked[:most]]


def most_enriched(columns: Mapping[str, Sequence[str]], inside: NDArray[np.bool_]) -> Enriched | None:
    """The (column, value) with the greatest difference in share between samples inside (n,) and the rest.

    None unless it covers at least 60 % of the inside and is at least 1.5 times as common as outside: a slice that is
    told by a value must be told by it.
    """
    best: Enriched | None = None
    for name, values in columns.items():
        column = np.asarray(values, dtype=np.str_)
        for value in np.unique(column[inside]).tolist():
            hit = column == value
            found = Enriched(
                name, value, float(hit[inside].mean()), float(hit[~inside].mean()) if (~inside).any() else 0.0
            )
            if found.share_inside < 0.6 or found.share_inside < 1.5 * found.share_outside:
                continue
            if best is None or found.share_inside - found.share_outside > best.share_inside - best.share_outside:
                best = found
    return best
