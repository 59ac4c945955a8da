"""A campaign's scores, with numpy alone: copy this file to wherever images are collected.

A collection process (an ingest job, a vehicle) reads the file that `dipnet campaign export` wrote, scores the vectors of
its frames, and keeps what passes; `dipnet campaign collect` takes what it kept. The flow scores with this very function,
so the same vector has the same score here and there, bit for bit on the same machine.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
BLOCK_PRODUCTS = 4_194_304  # float64 products at a time: 32 MB


class Scorer(NamedTuple):
    """What a campaign looks for.

    A raw score is `max over probes of (row · vector - offset)`; a score is `1 / (1 + exp(-(raw - middle) / spread))`.
    `version` names what a score means; scores of two versions, or of two campaigns, are not to be compared.
    """

    vectors: NDArray[np.float32]  # (p, dim)
    offsets: NDArray[np.float32]  # (p,)
    middle: float
    spread: float
    version: str


class Scored(NamedTuple):
    """How well rows match, and the probe that matches each best."""

    raw: NDArray[np.float64]  # (n,)
    scores: NDArray[np.float64]  # (n,), 0..1
    probes: NDArray[np.int64]  # (n,)

    def at(self, places: NDArray[np.int64]) -> Scored:
        """Some of them, in the order given."""
        return Scored(self.raw[places], self.scores[places], self.probes[places])


def score(scorer: Scorer, rows: NDArray[np.float16] | NDArray[np.float32]) -> Scored:
    """Scores of unit rows (n, dim). A row's score does not depend on the rows beside it.

    Rows are rounded to float16, as they are stored; products are summed in float64 row by row, since a matrix product
    rounds differently with the shape of the matrix.
    """
    dim = scorer.vectors.shape[1]
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(f"rows are {rows.shape}, not (n, {dim}); use the encoder that the campaign was exported with")
    vectors, offsets = scorer.vectors.astype(np.float64), scorer.offsets.astype(np.float64)
    raw, probes = np.empty(len(rows)), np.empty(len(rows), np.int64)
    step = max(1, BLOCK_PRODUCTS // vectors.size)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(np.float16).astype(np.float64)
        found = (block[:, None, :] * vectors[None]).sum(axis=2) - offsets
        probes[start : start + step] = found.argmax(axis=1)
        raw[start : start + step] = found.max(axis=1)
    return Scored(raw, likeness(scorer, raw), probes)


def likeness(scorer: Scorer, raw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Raw scores (n,) as scores 0..1."""
    result: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip((raw - scorer.middle) / scorer.spread, -60.0, 60.0)))
    return result


class Exported(NamedTuple):
    """An active campaign, as a collection process needs it."""

    campaign: str
    run: str  # key of the run whose probes these are
    encoder: str  # key of the encoder that vectors must come from
    min_score: float
    scorer: Scorer


class Kept(NamedTuple):
    """What a collection process kept for one campaign, and how many frames it looked at for that."""

    campaign: str
    run: str
    seen: int
    uris: list[str]  # (n,)
    vectors: NDArray[np.float16]  # (n, dim)
    scores: NDArray[np.float64]  # (n,)


def write_campaigns(path: Path, exported: Sequence[Exported]) -> None:
    """Campaigns as one small npz; nothing in it is pickled."""
    said = [
        {**one._asdict(), "scorer": {"version": one.scorer.version, "at": [one.scorer.middle, one.scorer.spread]}}
        for one in exported
    ]
    arrays = {f"vectors_{number}": one.scorer.vectors for number, one in enumerate(exported)}
    arrays |= {f"offsets_{number}": one.scorer.offsets for number, one in enumerate(exported)}
    _write(path, {"format": FORMAT, "campaigns": said}, arrays)


def read_campaigns(path: Path) -> list[Exported]:
    """What write_campaigns wrote. Raises ValueError for a file that is none of ours."""
    said, arrays = _read(path)
    try:
        return [
            Exported(
                str(one["campaign"]),
                str(one["run"]),
                str(one["encoder"]),
                float(one["min_score"]),
                Scorer(
                    arrays[f"vectors_{number}"],
                    arrays[f"offsets_{number}"],
                    float(one["scorer"]["at"][0]),
                    float(one["scorer"]["at"][1]),
                    str(one["scorer"]["version"]),
                ),
            )
            for number, one in enumerate(said["campaigns"])
        ]
    except (KeyError, TypeError, IndexError) as problem:
        raise ValueError(f"'{path}' does not hold campaigns ({problem!r} is missing)") from None


def sift(exported: Exported, uris: Sequence[str], rows: NDArray[np.float16] | NDArray[np.float32]) -> Kept:
    """Those of the frames, by their URIs and unit vectors (n, dim), that the campaign wants."""
    scores = score(exported.scorer, rows).scores
    passes = np.flatnonzero(scores >= exported.min_score)
    kept = [uris[place] for place in passes.tolist()]
    return Kept(exported.campaign, exported.run, len(rows), kept, rows[passes].astype(np.float16), scores[passes])


def write_kept(path: Path, kept: Kept) -> None:
    """What was kept, as one npz, for `dipnet campaign collect`."""
    said = {"format": FORMAT, "campaign": kept.campaign, "run": kept.run, "seen": kept.seen, "uris": kept.uris}
    _write(path, said, {"vectors": kept.vectors, "scores": kept.scores})


def read_kept(path: Path) -> Kept:
    """What write_kept wrote. Raises ValueError for a file that is none of ours."""
    said, arrays = _read(path)
    try:
        uris = [str(uri) for uri in said["uris"]]
        found = Kept(
            str(said["campaign"]), str(said["run"]), int(said["seen"]), uris, arrays["vectors"], arrays["scores"]
        )
    except (KeyError, TypeError) as problem:
        raise ValueError(f"'{path}' does not hold what a campaign kept ({problem!r} is missing)") from None
    for name, array, dimensions in (("vectors", found.vectors, 2), ("scores", found.scores, 1)):
        if array.ndim != dimensions or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(
                f"'{path}' holds {name} that are no {dimensions}-dimensional array of finite floats "
                f"({array.dtype}, {array.shape})"
            )
    if not len(found.uris) == len(found.vectors) == len(found.scores):
        raise ValueError(f"'{path}' names {len(found.uris)} images, but holds {len(found.vectors)} vectors")
    return found


def _write(path: Path, said: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    header = np.frombuffer(json.dumps(said).encode(), dtype=np.uint8)
    with path.open("wb") as handle:
        np.savez(handle, allow_pickle=False, header=header, **arrays)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        said = json.loads(arrays.pop("header").tobytes())
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as problem:
        raise ValueError(f"'{path}' is no file of dipnet's ({problem})") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise ValueError(f"'{path}' was written by another version of dipnet")
    return said, arrays
