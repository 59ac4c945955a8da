"""Probes: what to look for, as vectors to take inner products with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Background(NamedTuple):
    """What vectors of the corpora look like in general."""

    mean: NDArray[np.float64]  # (dim,)
    covariance: NDArray[np.float64]  # (dim, dim)


class Probe(NamedTuple):
    """Vectors to scan with. A score is `max(row @ vectors.T) - offset`; `version` names what the score means."""

    vectors: NDArray[np.float32]  # (p, dim)
    offset: float
    version: str


def background(shards: Sequence[NDArray[np.float16]], *, rows: int, seed: int) -> Background:
    """Mean and covariance of up to `rows` rows drawn over all shards (n_i, dim)."""
    sizes = np.asarray([len(shard) for shard in shards], dtype=np.int64)
    total = int(sizes.sum())
    picked = np.sort(np.random.default_rng(seed).choice(total, size=min(rows, total), replace=False))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    parts = [
        np.asarray(shard[picked[(picked >= start) & (picked < start + len(shard))] - start], dtype=np.float64)
        for shard, start in zip(shards, starts[:-1], strict=True)
    ]
    sample = np.concatenate(parts)
    centred = sample - sample.mean(axis=0)
    return Background(sample.mean(axis=0), centred.T @ centred / max(1, len(sample) - 1))


def whitened_lda(
    positive: NDArray[np.float32], negative: NDArray[np.float32], behind: Background, *, shrinkage: float
) -> Probe:
    """One linear probe, w = (Σ + λ·tr(Σ)/d·I)⁻¹ (mean(positive) − μ); positive (p, dim), negative (q, dim), q may be 0.

    Source: exemplar LDA (Hariharan, Malik, Ramanan, ECCV 2012). Negative exemplars pull the reference μ half-way to
    their mean. Scores are standard deviations above the background's mean along w.
    """
    dim = positive.shape[1]
    reference = behind.mean if len(negative) == 0 else (behind.mean + negative.mean(axis=0, dtype=np.float64)) / 2
    ridge = shrinkage * np.trace(behind.covariance) / dim + 1e-9
    direction = np.linalg.solve(
        behind.covariance + ridge * np.eye(dim), positive.mean(axis=0, dtype=np.float64) - reference
    )
    spread = float(np.sqrt(direction @ behind.covariance @ direction))
    unit = direction / spread if spread > 0 else direction
    return Probe(unit[None].astype(np.float32), float(behind.mean @ unit), "lda-1")


def nearest_exemplar(positive: NDArray[np.float32]) -> Probe:
    """Every exemplar is a probe: a score is the cosine to the nearest one."""
    return Probe(positive.astype(np.float32), 0.0, "nearest-1")
