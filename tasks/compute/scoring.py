"""Probes: what to look for, as vectors to take inner products with, and what their scores mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from tasks.compute import logistic
from tasks.compute.contrast import Contrast, contrast
from tasks.compute.portable import Scorer

Matrix = NDArray[np.float64]

KEPT_ROWS = 4_000  # background rows kept for PU learning, calibration and adequacy
UNLABELLED = 1_000  # of these, taken as (almost surely) negative by the PU term
PU_STRENGTH = 10.0  # of the PU term's penalty; below 3 it follows the exemplars too closely
SHOWN = 500  # exemplars that the PU term learns from at most; the LDA term takes all
PU_COST = 50.0  # what all exemplars together cost, and all unlabelled rows together
FOLDS = 5  # of the cross-fitted exemplar scores that calibrate a score
CALIBRATED_BY = 200  # exemplars at most
TYPICAL = float(np.log(0.88 / 0.12))  # logit of the score of a typical exemplar that the probe has not seen
FALLBACK = 4.0  # standard deviations above the background, for one exemplar with nothing to hold out
LEAST_GAP = 1.0  # standard deviations between background and typical exemplar at least, so that a score is finite
PROTOTYPES = 128  # at most; more exemplars are gathered into so many clusters
GATHERED_BY = 1_024  # exemplars that the clusters are found from at most; the rest join the nearest
OWN = 0.35  # weight of a prototype's own direction beside the common one; tuned on the pilot's seeds 0 to 2
PLAIN = 0.5  # weight of the exemplars' mean as the encoder has it, beside the whitened terms; tuned likewise
PASSED = 0.99  # share of the background that lies below each prototype's own line, before lines compete


class Exemplars(NamedTuple):
    """What shows the issue, and what it is not, as unit vectors."""

    positive: NDArray[np.float32]  # (p, dim)
    negative: NDArray[np.float32]  # (q, dim), q may be 0

    def without(self, out: NDArray[np.bool_]) -> Exemplars:
        """Those that are not held out; `out` (p,)."""
        return Exemplars(self.positive[~out], self.negative)


class Background(NamedTuple):
    """What vectors of the corpora look like in general."""

    mean: Matrix  # (dim,)
    covariance: Matrix  # (dim, dim)
    rows: NDArray[np.float32]  # (m, dim) some of them
    total: int  # rows that they were drawn from

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As plain arrays."""
        return {**self._asdict(), "total": np.asarray(self.total)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Background:
        """From what to_arrays gave."""
        return cls(arrays["mean"], arrays["covariance"], arrays["rows"], int(arrays["total"]))


class Options(NamedTuple):
    """How probes are made."""

    strategy: str = "probe"  # probe, nearest or text
    shrinkage: float = 0.1
    text_weight: float = 0.5


class Words(NamedTuple):
    """A prompt and neutral prompts of the same encoder, as unit vectors: what all texts share is not what is looked for."""

    prompt: NDArray[np.float32]  # (t, dim)
    neutral: NDArray[np.float32]  # (u, dim)


class Space(NamedTuple):
    """The space in which the background is round: rows become (row - mean) @ whitening."""

    mean: Matrix  # (dim,)
    whitening: Matrix  # (dim, dim), symmetric
    back: Matrix  # (dim, dim) its inverse
    covariance: Matrix  # (dim, dim) of the background in this space; not quite the identity, for the shrinkage
    rows: Matrix  # (m, dim) background rows in this space

    def place(self, vectors: NDArray[np.float32]) -> Matrix:
        """Vectors (n, dim) in this space."""
        result: Matrix = (vectors.astype(np.float64) - self.mean) @ self.whitening
        return result

    def unit(self, direction: Matrix) -> Matrix:
        """The direction (dim,) scaled so that the background has a standard deviation of one along it."""
        spread = float(np.sqrt(direction @ self.covariance @ direction))
        return direction / spread if spread > 0 else direction


class Way(NamedTuple):
    """How lines are made of exemplars, so that more can be made likewise once there are answers."""

    where: Space
    towards: Callable[[Matrix, Matrix], Matrix]  # the direction (dim,) that positives and negatives share, all whitened
    own: float  # weight of a prototype's own direction, as a part of what it would be for the strategy probe


class Probes(NamedTuple):
    """What to scan with, the probe that each positive exemplar belongs to, and how exemplars score unseen."""

    scorer: Scorer
    members: NDArray[np.int64]  # (p,)
    held_out: Matrix  # (k,) raw scores of exemplars by probes that had not seen them; empty for one exemplar
    background: Matrix  # (m,) raw scores of background rows
    shared: Matrix  # (dim,) the direction that all lines share, in the whitened space; empty for the strategy nearest
    way: Way | None = None  # None for the strategy nearest
    contrast: Contrast | None = None  # a second opinion on the best rows; for the strategy probe


class Lines(NamedTuple):
    """Linear functions in the space of the vectors: row @ vectors.T - offsets."""

    vectors: Matrix  # (k, dim)
    offsets: Matrix  # (k,)
    members: NDArray[np.int64]  # (p,)
    shared: Matrix  # (dim,) in the whitened space; empty where lines share nothing

    def raw(self, rows: NDArray[np.float32]) -> Matrix:
        """The best line's value for each row (n, dim)."""
        result: Matrix = (rows.astype(np.float64) @ self.vectors.T - self.offsets).max(axis=1)
        return result


Maker = Callable[[Exemplars], Lines]


def background(shards: Sequence[NDArray[np.float16]], *, rows: int, seed: int) -> Background:
    """Mean and covariance of up to `rows` rows drawn over all shards (n_i, dim)."""
    sizes = np.asarray([len(shard) for shard in shards], dtype=np.int64)
    total, generator = int(sizes.sum()), np.random.default_rng(seed)
    picked = np.sort(generator.choice(total, size=min(rows, total), replace=False))
    parts = []
    for shard, end in zip(shards, np.cumsum(sizes).tolist(), strict=True):
        first, last = np.searchsorted(picked, [end - len(shard), end])
        parts.append(np.asarray(shard[picked[first:last] - (end - len(shard))], dtype=np.float64))
    sample = np.concatenate(parts)
    centred = sample - sample.mean(axis=0)
    kept = generator.permutation(len(sample))[:KEPT_ROWS]
    covariance = centred.T @ centred / max(1, len(sample) - 1)
    return Background(sample.mean(axis=0), covariance, sample[kept].astype(np.float32), total)


def space(behind: Background, *, shrinkage: float) -> Space:
    """The whitened space of (Σ + λ·tr(Σ)/d·I)^(-1/2)."""
    dim = len(behind.mean)
    ridge = shrinkage * np.trace(behind.covariance) / dim + 1e-9
    values, vectors = np.linalg.eigh(behind.covariance + ridge * np.eye(dim))
    whitening, back = (vectors * values**power @ vectors.T for power in (-0.5, 0.5))
    rows = (behind.rows.astype(np.float64) - behind.mean) @ whitening
    return Space(behind.mean, whitening, back, whitening @ behind.covariance @ whitening, rows)


def probe(exemplars: Exemplars, behind: Background, options: Options, *, words: Words | None = None) -> Probes:
    """Probes for a strategy.

    probe: what all exemplars have in common (whitened LDA + PU logistic) and, a line a prototype, something of its own,
    so that a group of failures may be of several kinds. nearest: every exemplar. text: the words, mixed with exemplars.
    A score is 0.5 half-way between the average corpus image and a typical exemplar that the probes have not seen; it is
    about 0.12 for the former and 0.88 for the latter.
    """
    if options.strategy == "nearest":
        return calibrated(nearest, exemplars, behind, version="nearest-2")
    way = _way(space(behind, shrinkage=options.shrinkage), options, words)
    if options.strategy == "text":
        return calibrated(_maker(way), exemplars, behind, version="text-1")._replace(way=way)
    found = calibrated(_maker(way), exemplars, behind, version="probe-1")
    return found._replace(way=way, contrast=contrast_of(way, exemplars.positive, behind))


def contrast_of(way: Way, shown: NDArray[np.float32], behind: Background) -> Contrast:
    """The second opinion that shown (p, dim) give."""
    return contrast(shown, behind.rows, way.where.place(shown), way.where.rows)


def _way(where: Space, options: Options, words: Words | None) -> Way:
    """Exemplars alone; or what a prompt says beyond neutral ones, as a direction, mixed with theirs, or alone without any."""
    if options.strategy != "text":
        return Way(where, lambda positive, negative: common(where, positive, negative), 1.0)
    if words is None:
        raise ValueError("the strategy text needs words")
    beyond = words.prompt.mean(axis=0, dtype=np.float64) - words.neutral.mean(axis=0, dtype=np.float64)
    said, weight = where.unit(beyond @ where.whitening), options.text_weight

    def mixed(positive: Matrix, negative: Matrix) -> Matrix:
        if not len(positive) or weight == 1:
            return said
        return weight * said + (1 - weight) * common(where, positive, negative)

    return Way(where, mixed, 1 - weight)


def calibrated(make: Maker, exemplars: Exemplars, behind: Background, *, version: str) -> Probes:
    """The lines that `make` makes of the exemplars, with a score that held-out exemplars give its scale."""
    lines = make(exemplars)
    held_out = _held_out(make, exemplars)
    behind_raw = lines.raw(behind.rows)
    low = float(behind_raw.mean())
    spread = float(behind_raw.std()) or 1.0
    high = float(np.median(held_out)) if len(held_out) else low + FALLBACK * spread
    gap = max(high - low, LEAST_GAP * spread)
    scorer = Scorer(
        lines.vectors.astype(np.float32), lines.offsets.astype(np.float32), low + gap / 2, gap / 2 / TYPICAL, version
    )
    return Probes(scorer, lines.members, held_out, behind_raw, lines.shared)


def common(where: Space, positive: Matrix, negative: Matrix) -> Matrix:
    """What positives (p, dim) have in common, as a direction (dim,) of the whitened space: z(LDA), z(PU) and z(plain mean).

    LDA: the mean of the positives less the reference, which negatives pull half-way to their mean. Source: exemplar LDA
    (Hariharan, Malik, Ramanan, ECCV 2012). PU: positives against background rows and negatives, balanced, shrunk toward
    zero. Source: Elkan & Noto, KDD 2008. Plain: the same mean without whitening, for concepts that are a ball in the
    encoder's own space (sub-slices of a class), where whitening costs precision.
    """
    towards = positive.mean(axis=0) - (negative.mean(axis=0) / 2 if len(negative) else 0.0)
    behind = np.vstack([where.rows[:UNLABELLED], negative])
    some = _some(positive, SHOWN)
    rows = np.vstack([some, behind])
    costs = np.concatenate([np.full(len(part), PU_COST / len(part)) for part in (some, behind)])
    hits = np.arange(len(rows)) < len(some)
    nothing = logistic.Line(np.zeros(rows.shape[1]), 0.0)
    learnt = logistic.fit(rows, hits, costs, prior=nothing, strength=PU_STRENGTH).weights
    plain = where.back @ where.back @ towards
    return (where.unit(towards) + where.unit(learnt)) / 2 + PLAIN * where.unit(plain)


def lines_of(where: Space, shared: Matrix, positive: Matrix, *, own: float) -> Lines:
    """A line a prototype of positives (p, dim): the shared direction (dim,) and, by a weight, the prototype's own.

    Each own part is offset so that the same share of the background lies below zero: a prototype in a crowded region would
    otherwise win the max everywhere.
    """
    centres, members = _gathered(positive) if own and len(positive) else _one_line(positive)
    own_units = own * np.stack([where.unit(centre) for centre in centres])
    crowding = np.quantile(where.rows @ own_units.T, PASSED, axis=0)
    vectors = (shared + own_units) @ where.whitening.T
    return Lines(vectors, vectors @ where.mean + crowding, members, shared)


def _one_line(positive: Matrix) -> tuple[Matrix, NDArray[np.int64]]:
    """Nothing of any positive's own: words alone."""
    return np.zeros((1, positive.shape[1])), np.zeros(len(positive), dtype=np.int64)


def _gathered(positive: Matrix) -> tuple[Matrix, NDArray[np.int64]]:
    """Prototypes (k, dim) and the one that each positive (p, dim) belongs to: each its own, or clusters of many."""
    if len(positive) <= PROTOTYPES:
        return positive, np.arange(len(positive))
    with threadpool_limits(1):  # small products; see classifier.fit
        found = KMeans(PROTOTYPES, n_init=1, max_iter=20, random_state=0).fit(_some(positive, GATHERED_BY))
        members = found.predict(positive)
    return found.cluster_centers_.astype(np.float64), members.astype(np.int64)


def _some(rows: Matrix, count: int) -> Matrix:
    """Up to `count` of rows (n, dim) by chance, the same each time."""
    if len(rows) <= count:
        return rows
    picked: Matrix = rows[np.random.default_rng(0).choice(len(rows), count, replace=False)]
    return picked


def _maker(way: Way) -> Maker:
    def make(exemplars: Exemplars) -> Lines:
        positive, negative = way.where.place(exemplars.positive), way.where.place(exemplars.negative)
        return lines_of(way.where, way.towards(positive, negative), positive, own=OWN * way.own)

    return make


def nearest(exemplars: Exemplars) -> Lines:
    """Every exemplar is a line, less half of the negative exemplar that is nearest to it, so that its like scores less."""
    vectors = exemplars.positive.astype(np.float64)
    if len(exemplars.negative):
        closest = (exemplars.positive @ exemplars.negative.T).argmax(axis=1)
        vectors = vectors - exemplars.negative[closest].astype(np.float64) / 2
    return Lines(vectors, np.zeros(len(vectors)), np.arange(len(vectors)), np.empty(0))


def _held_out(make: Maker, exemplars: Exemplars) -> Matrix:
    """Raw scores of exemplars by lines made without them: in folds, or up to 200 of very many at once."""
    count = len(exemplars.positive)
    if count < 2:
        return np.empty(0)
    few = np.random.default_rng(0).permutation(count)[:CALIBRATED_BY]
    found = []
    folds = min(len(few), FOLDS) if count < FOLDS * CALIBRATED_BY else 1
    for fold in np.array_split(few, folds):
        out = np.zeros(count, dtype=np.bool_)
        out[fold] = True
        found.append(make(exemplars.without(out)).raw(exemplars.positive[fold]))
    return np.concatenate(found)
