"""The verdict on a change: did it help where it should, and break nothing elsewhere?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np

from tasks.compute import intervals
from tasks.compute.intervals import Interval

Role = Literal["target", "overall", "class", "scenario"]
Says = Literal["better", "kept", "worse", "open"]
PLACES = {"target": "issue's slice", "overall": "overall", "class": "class", "scenario": "scenario"}


@dataclass(frozen=True)
class Claim:
    """A difference after − before with its 95 % interval, and what is asked of it.

    target: it must lie above 0; overall: not below −margin; class and scenario: not surely below −margin.
    """

    role: Role
    name: str
    metric: str
    delta: float
    low: float
    high: float
    margin: float
    samples: int

    @property
    def allowed(self) -> float:
        """The loss that counts as none; a target has no margin."""
        return 0.0 if self.role == "target" else self.margin


@dataclass(frozen=True)
class Finding(Claim):
    """What a claim amounts to. p and q are of a loss beyond the margin."""

    p: float
    q: float
    says: Says  # a target is never kept: it is better, or it is not
    samples_needed: int | None  # where it is open: about so many would decide it, if the difference stays what it is


class Judged(NamedTuple):
    """A verdict, the sentences that lead to it, and about how many samples of the target would decide an open one."""

    verdict: Literal["pass", "fail", "inconclusive"]
    reasons: list[str]
    findings: list[Finding]
    samples_needed: int | None


def judge(claims: Sequence[Claim], *, error_rate: float) -> Judged:
    """Pass, fail or inconclusive.

    Fail: at least one difference is worse beyond its margin, by Benjamini and Hochberg over all claims at the error rate:
    where nothing has changed, that happens at most so often. Pass: the target is better, overall nothing is lost beyond
    its margin, and nothing is worse. A target of which there is none asks for nothing. Raises ValueError without claims.
    """
    if not claims:
        raise ValueError("a gate needs at least one comparison")
    p = np.array([_p_of_loss(claim) for claim in claims])
    q = intervals.false_discovery(p)
    findings = [_finding(*row, error_rate) for row in zip(claims, p.tolist(), q.tolist(), strict=True)]
    needed = [f for f in findings if f.role in ("target", "overall")]
    worse = [f for f in findings if f.says == "worse"]
    verdict: Literal["pass", "fail", "inconclusive"]
    verdict = "fail" if worse else "pass" if all(f.says in ("better", "kept") for f in needed) else "inconclusive"
    told = needed + [f for f in worse if f not in needed]
    return Judged(verdict, [_sentence(f) for f in told] + _rest(findings), findings, _needed(verdict, needed))


def _p_of_loss(claim: Claim) -> float:
    """One-sided p of "no loss beyond the margin"."""
    ends = Interval(np.asarray(claim.low), np.asarray(claim.high))
    return float(intervals.p_below(np.asarray(claim.delta), ends, -claim.allowed))


def _finding(claim: Claim, p: float, q: float, error_rate: float) -> Finding:
    if q <= error_rate and claim.high < -claim.allowed:
        says: Says = "worse"
    elif claim.low > 0:
        says = "better"
    elif claim.role != "target" and claim.low > -claim.margin:
        says = "kept"
    else:
        says = "open"
    needed = _samples_needed(claim) if says == "open" else None
    return Finding(**asdict(claim), p=p, q=q, says=says, samples_needed=needed)


def _samples_needed(claim: Claim) -> int | None:
    """So many that the interval would be on one side of the bound in 80 % of cases, were the difference what it is now."""
    away = abs(claim.delta + claim.allowed)
    error = (claim.high - claim.low) / (2 * intervals.Z)
    if away == 0 or not math.isfinite(error):
        return None
    return max(claim.samples + 1, math.ceil(claim.samples * (intervals.REACH * error / away) ** 2))


def _needed(verdict: str, findings: Sequence[Finding]) -> int | None:
    """Of the claim that takes most; none where one of them cannot be decided by more of the same."""
    opened = [f for f in findings if f.says == "open"]
    if verdict != "inconclusive" or any(f.samples_needed is None for f in opened):
        return None
    return max((f.samples_needed or 0 for f in opened), default=0) or None


def _sentence(finding: Finding) -> str:
    beyond = f" of {finding.margin:.3f}" if finding.allowed else ""
    told = {
        "better": "above 0",
        "kept": f"no loss beyond the margin{beyond}",
        "worse": f"a loss beyond the margin{beyond}" if beyond else "below 0",
        "open": f"a loss beyond the margin{beyond} is possible" if beyond else "0 is possible",
    }[finding.says]
    name = f" '{finding.name}'" if finding.name else ""
    more = f"; about {finding.samples_needed:,} samples would decide it" if finding.samples_needed else ""
    return (
        f"{PLACES[finding.role]}{name}: {finding.metric} {finding.delta:+.3f} [{finding.low:+.3f}, {finding.high:+.3f}] "
        f"on {finding.samples:,} samples, {told}{more}"
    )


def _rest(findings: Sequence[Finding]) -> list[str]:
    """How many classes and scenarios were looked at."""
    sides = [f for f in findings if f.role in ("class", "scenario")]
    if not sides:
        return []
    counts = {word: sum(f.says == word for f in sides) for word in ("better", "kept", "open", "worse")}
    return [
        f"{len(sides)} classes and scenarios: {counts['better']} better, {counts['kept']} kept, "
        f"{counts['open']} not known to the margin, {counts['worse']} worse"
    ]
