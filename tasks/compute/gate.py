"""The verdict on a change: did it help where it should, and break nothing elsewhere?"""

from __future__ import annotations

from typing import Literal, NamedTuple

MARGIN = 0.01  # a loss of overall accuracy below one point counts as none


class Judged(NamedTuple):
    """A verdict and the sentences that lead to it."""

    verdict: Literal["pass", "fail", "inconclusive"]
    reasons: list[str]


def verdict(target: tuple[float, float], overall: tuple[float, float], *, margin: float = MARGIN) -> Judged:
    """Judge by two 95 % intervals of a difference: the issue's metric on its slice, and accuracy over all.

    Pass: the target's lower bound is above 0 and overall is non-inferior (its lower bound is above −margin).
    Fail: the target's upper bound is below 0, or overall's upper bound is below −margin. Otherwise inconclusive.
    """
    improved, worse = target[0] > 0, target[1] < 0
    kept, broken = overall[0] > -margin, overall[1] < -margin
    reasons = [
        f"issue's slice: F1 {target[0]:+.3f} to {target[1]:+.3f}, "
        + ("above 0" if improved else "below 0" if worse else "0 is possible"),
        f"overall: accuracy {overall[0]:+.3f} to {overall[1]:+.3f}, "
        + ("no loss beyond the margin" if kept else "a loss beyond the margin" if broken else "a loss is possible")
        + f" of {margin:.3f}",
    ]
    if improved and kept:
        return Judged("pass", reasons)
    return Judged("fail" if worse or broken else "inconclusive", reasons)
