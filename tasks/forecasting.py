"""What a mined run tells of itself: adequacy, how its scores lie, what it will probably yield."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.states import Arm
from tasks.choosing import Selected
from tasks.compute import outlook, portable
from tasks.probing import Aim
from tasks.progress import ELIGIBLE

HITS = ("expected", "low", "high")
QUANTILES = {"5%": 0.05, "median": 0.5, "95%": 0.95, "99%": 0.99}


def told(aim: Aim, selected: Selected, rounds: Sequence[tuple[int, int]], *, pool: int) -> dict[str, Any]:
    """As JSON: no NaN, four digits. The random strategy, which looks for nothing, tells only what it was drawn from.

    rounds: (hits, labels) of the exploit arm of earlier runs, oldest first; they say more of the next than scores alone.
    """
    drawn_from = {ELIGIBLE: _plain(selected.eligible._asdict())} if selected.eligible else {}
    if aim.probes is None or aim.adequacy is None:
        return drawn_from
    behind = portable.likeness(aim.probes.scorer, aim.probes.background)
    batch = selected.scores[[arm is Arm.EXPLOIT for arm in selected.arms]]
    raw = selected.raw[[arm is Arm.EXPLOIT for arm in selected.arms]]
    if rounds:
        expected = outlook.next_yield(rounds, batch)
    else:
        expected = outlook.expected_yield(aim.probes.held_out, aim.probes.background, raw, pool=pool)
    return drawn_from | {
        "adequacy": _plain(aim.adequacy._asdict()),
        "prototypes": np.bincount(aim.probes.members).tolist(),
        "background_scores": _quantiles(behind),
        "best_scores": _quantiles(batch),
        "expected_hits": {name: round(share * len(raw), 1) for name, share in zip(HITS, expected, strict=True)}
        | {"of_the_best": len(raw)},
        "answers_learnt_from": len(aim.history.hits),
    }


def _quantiles(scores: NDArray[np.float64]) -> dict[str, float]:
    return (
        {name: round(float(np.quantile(scores, share)), 4) for name, share in QUANTILES.items()} if len(scores) else {}
    )


def _plain(said: dict[str, Any]) -> dict[str, Any]:
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in said.items()}
    return {name: value for name, value in rounded.items() if not isinstance(value, float) or math.isfinite(value)}
