"""From stored predictions to figures: what an evaluation says of one model, and a comparison of two."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.errors import Incompatible
from tasks.compute import deltas, metrics, patterns, ranking
from tasks.compute.intervals import Grouping, Interval
from tasks.predicting import Predictions

T = TypeVar("T")
THREADS = 2  # sorting lets go of the interpreter; more columns at once would only take more memory
JSON = dict[str, Any]
Scores = NDArray[np.float32]


class Differences(NamedTuple):
    """Two models on the same samples."""

    class_names: list[str]
    deltas: list[deltas.Delta]
    summary: JSON
    changes: pa.Table  # sample_id, class_name, before, after, change: 1 improved, −1 worsened, 0 wrong otherwise


def measured(found: Predictions, groups: Grouping) -> JSON:
    """Everything that an evaluation keeps, as JSON. Values that are not defined, such as of absent classes, are None."""
    names = found.class_names
    scored = metrics.scores(found.targets, found.predicted, classes=len(names))
    ends = metrics.ends(found.targets, found.predicted, classes=len(names), groups=groups)
    areas, certainty = _by_probability(found)
    table = metrics.confusion(found.targets, found.predicted, classes=len(names))
    return {
        "samples": len(found.targets),
        "groups": groups.groups,
        "accuracy": scored.accuracy,
        "macro_f1": scored.macro_f1,
        "intervals": {"accuracy": _pair(ends.accuracy), "macro_f1": _pair(ends.macro_f1)},
        **certainty,
        "class_names": names,
        "confusion": table.tolist(),
        "classes": {
            name: {
                "precision": float(scored.precision[c]),
                "recall": float(scored.recall[c]),
                "f1": float(scored.f1[c]),
                "average_precision": areas[c],
                "support": int(scored.support[c]),
                "intervals": {m: _pair(getattr(ends, m), c) for m in patterns.METRICS},
            }
            for c, name in enumerate(names)
        },
    }


def differences(before: Predictions, after: Predictions, groups: Grouping, *, resamples: int, seed: int) -> Differences:
    """Every metric's difference with its interval, McNemar's test, and the samples whose answers changed.

    Raises Incompatible when the samples or their true classes differ.
    """
    names, targets, (was, now) = _aligned(before, after)
    cells = patterns.triples(targets, was, now, classes=len(names))
    rows = deltas.paired_deltas(cells, classes=len(names), resamples=resamples, seed=seed, groups=groups)
    rows += _by_score(before, after, groups, names, targets)
    test = deltas.mcnemar(targets, was, now)
    tables = [metrics.confusion(targets, said, classes=len(names)) for said in (was, now)]
    changes = _changes(before.sample_ids, np.asarray(names, dtype=object), targets, was, now)
    summary = {
        "mcnemar": {**test._asdict(), "by_groups": not groups.alone},
        "class_names": names,
        "confusion_delta": (tables[1] - tables[0]).tolist(),
        "improved": test.only_after,
        "worsened": test.only_before,
    }
    return Differences(names, rows, summary, changes)


def _by_probability(found: Predictions) -> tuple[list[float | None], JSON]:
    """Average precision of each class, and calibration; Nones where the model gave no probabilities."""
    names = found.class_names
    if not found.scored:
        return [None] * len(names), {"ece": None, "brier": None, "log_loss": None, "calibration": []}
    certainty = ranking.Certainty(found.targets)

    def columns() -> Iterator[Callable[[], float | None]]:
        for place, (scores,) in _columns([found], names):
            certainty.add(place, scores)
            if place >= 0:
                yield partial(_area, scores, found.targets == place)

    areas = _each(columns())
    calibration = certainty.measured(found.predicted == found.targets)
    bins = zip(calibration.counts.tolist(), calibration.confidence.tolist(), calibration.accuracy.tolist(), strict=True)
    told: JSON = {"ece": calibration.ece, "brier": calibration.brier, "log_loss": calibration.log_loss}
    told["calibration"] = [{"samples": n, "confidence": sure, "accuracy": right} for n, sure, right in bins]
    return areas, told


def _by_score(
    before: Predictions, after: Predictions, groups: Grouping, names: Sequence[str], targets: NDArray[np.int64]
) -> list[deltas.Delta]:
    """Differences of average precision and of the Brier score, where both models gave probabilities."""
    if not (before.scored and after.scored):
        return []
    certainties = ranking.Certainty(targets), ranking.Certainty(targets)

    def columns() -> Iterator[Callable[[], deltas.Delta | None]]:
        for place, pair in _columns([before, after], names):
            for certainty, scores in zip(certainties, pair, strict=True):
                certainty.add(place, scores)
            if place >= 0:
                yield partial(_area_delta, place, pair, targets == place, groups)

    areas = [row for row in _each(columns()) if row is not None]
    was, now = (certainty.losses() for certainty in certainties)
    return [*deltas.with_q(areas), deltas.paired_mean("brier", was, now, groups, most=2.0)]


def _area(scores: Scores, own: NDArray[np.bool_]) -> float | None:
    return ranking.average_precision(scores, own) if own.any() else None


def _area_delta(place: int, pair: Sequence[Scores], own: NDArray[np.bool_], groups: Grouping) -> deltas.Delta | None:
    if not own.any():
        return None
    was, now = (ranking.ranked(scores, own) for scores in pair)
    return deltas.ranked_delta(place, was, now, groups)


def _columns(sides: Sequence[Predictions], names: Sequence[str]) -> Iterator[tuple[int, list[Scores]]]:
    """Place of a class (−1: it never occurs) and its probabilities by each model; a file is read by one thread at a time."""
    places = {name: place for place, name in enumerate(names)}
    unseen = sorted({name for side in sides for name in side.scored} - set(names))
    for name in [*names, *unseen]:
        found = [side.read_probability(name) for side in sides]
        yield places.get(name, -1), [np.zeros(0, np.float32) if scores is None else scores for scores in found]


def _each(work: Iterator[Callable[[], T]]) -> list[T]:
    """What the pieces of work come to, in their order; only a few are under way at a time, for the memory's sake."""
    found: list[T] = []
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for piece in work:
            waiting.append(pool.submit(piece))
            if len(waiting) > THREADS:
                found.append(waiting.popleft().result())
        found += [one.result() for one in waiting]
    return found


def _aligned(before: Predictions, after: Predictions) -> tuple[list[str], NDArray[np.int64], list[NDArray[np.int64]]]:
    """Both models' answers in one list of class names."""
    if before.sample_ids != after.sample_ids:
        raise Incompatible("the two models were evaluated on different samples; evaluate both on the same scenario")
    names = sorted({*before.class_names, *after.class_names})

    def shared(side: Predictions, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(np.asarray(names), np.asarray(side.class_names)).astype(np.int64)[places]

    targets = shared(before, before.targets)
    if not np.array_equal(targets, shared(after, after.targets)):
        raise Incompatible("the two models were evaluated on other labels of the same samples; evaluate both anew")
    return names, targets, [shared(before, before.predicted), shared(after, after.predicted)]


def _changes(
    ids: Sequence[str],
    names: NDArray[np.object_],
    targets: NDArray[np.int64],
    was: NDArray[np.int64],
    now: NDArray[np.int64],
) -> pa.Table:
    """Samples whose answer is another one, in the scenario's order."""
    rows = np.flatnonzero(was != now)
    change = (now[rows] == targets[rows]).astype(np.int8) - (was[rows] == targets[rows]).astype(np.int8)
    columns = {"class_name": targets, "before": was, "after": now}
    return pa.table(
        {
            "sample_id": pa.array([ids[row] for row in rows.tolist()], pa.string()),
            **{name: pa.array(names[places[rows]].tolist(), pa.string()) for name, places in columns.items()},
            "change": pa.array(change, pa.int8()),
        }
    )


def _pair(ends: Interval, place: int | None = None) -> dict[str, float]:
    low, high = (np.asarray(side) if place is None else np.asarray(side)[place] for side in ends)
    return {"low": float(low), "high": float(high)}
