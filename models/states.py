"""States and their legal moves. An illegal move raises IllegalMove and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from models.errors import IllegalMove


class State(StrEnum):
    """An enum whose members know what may follow them."""

    @classmethod
    def moves(cls) -> Mapping[str, tuple[str, ...]]:
        """For every state the states that may follow it; a state that is absent is final."""
        raise NotImplementedError


S = TypeVar("S", bound=State)


def may_move(state: S, target: S) -> bool:
    """Whether the target is the present state or may follow it."""
    return target is state or target in state.moves().get(state, ())


def move(state: S, target: S) -> S:
    """The target, when it may follow. Raises IllegalMove."""
    if may_move(state, target):
        return target
    allowed = ", ".join(state.moves().get(state, ())) or "nothing: it is final"
    raise IllegalMove(f"{type(state).__name__} cannot go from '{state}' to '{target}'; what may follow: {allowed}")


class IssueState(State):
    """Where an issue stands between being named and being proven fixed."""

    TRIAGE = "triage"
    COLLECTING = "collecting"
    LABELLING = "labelling"
    RETRAINING = "retraining"
    RESOLVED = "resolved"
    IGNORED = "ignored"

    @classmethod
    def moves(cls) -> Mapping[str, tuple[str, ...]]:
        return {
            "triage": ("collecting", "ignored"),
            "collecting": ("labelling", "triage", "ignored"),
            "labelling": ("retraining", "collecting", "ignored"),
            "retraining": ("resolved", "collecting", "ignored"),
            "resolved": ("triage",),
            "ignored": ("triage",),
        }


class CandidateState(State):
    """Where a mined element stands."""

    UNSORTED = "unsorted"
    ACCEPTED = "accepted"
    DISCARDED = "discarded"
    SENT = "sent"
    LABELLED = "labelled"
    SKIPPED = "skipped"

    @classmethod
    def moves(cls) -> Mapping[str, tuple[str, ...]]:
        return {
            "unsorted": ("accepted", "discarded"),
            "accepted": ("sent", "discarded"),
            "discarded": ("accepted",),
            "sent": ("labelled", "skipped"),
            "skipped": ("labelled", "sent"),  # back to sent: the answer was withdrawn
            "labelled": ("skipped", "sent"),
        }


class CampaignState(State):
    """Whether a campaign goes on. A stopped one keeps what it found, and may be taken up again."""

    ACTIVE = "active"
    STOPPED = "stopped"

    @classmethod
    def moves(cls) -> Mapping[str, tuple[str, ...]]:
        return {"active": ("stopped",), "stopped": ("active",)}


class RunState(State):
    """How far one execution of a campaign has come. `empty` means that nothing was left to choose."""

    PLANNED = "planned"
    EMPTY = "empty"
    MINED = "mined"
    SENT = "sent"
    LABELLED = "labelled"

    @classmethod
    def moves(cls) -> Mapping[str, tuple[str, ...]]:
        return {"planned": ("mined", "empty"), "mined": ("sent",), "sent": ("labelled",)}


class RequestState(State):
    """What is known of one label request, or what one answer says.

    empty: somebody looked and found nothing to say. deleted: a person took it away at the labeller, unanswered.
    """

    PENDING = "pending"
    LABELLED = "labelled"
    SKIPPED = "skipped"
    EMPTY = "empty"
    DELETED = "deleted"

    @classmethod
    def moves(cls) -> Mapping[str, tuple[str, ...]]:
        """Any may follow any: answers are corrected and withdrawn, and what was deleted may be brought back."""
        return {state: tuple(other for other in cls if other != state) for state in cls}


class BatchState(State):
    """Whether a batch's labels may be used: those of a complete one, and of an open one that is not to be judged first."""

    OPEN = "open"
    COMPLETE = "complete"
    QUARANTINED = "quarantined"
    REJECTED = "rejected"

    @classmethod
    def moves(cls) -> Mapping[str, tuple[str, ...]]:
        return {
            "open": ("complete", "quarantined", "rejected"),
            "complete": ("quarantined", "rejected"),  # answers were corrected, or came late
            "quarantined": ("open", "complete", "rejected"),
            "rejected": ("open",),
        }


class Split(StrEnum):
    """What a labelled sample may be used for. Only `train` is ever fitted on."""

    TRAIN = "train"
    DEVELOPMENT = "development"
    HOLDOUT = "holdout"


class Arm(StrEnum):
    """Why a candidate was chosen: it scored best, it lies at the border, or by chance."""

    EXPLOIT = "exploit"
    BOUNDARY = "boundary"
    RANDOM = "random"


class ScenarioKind(StrEnum):
    """Why a scenario is there. Every gate looks at all regression suites."""

    CORPUS = "corpus"
    SLICE = "slice"
    ISSUE = "issue"
    REGRESSION = "regression"


class Verdict(StrEnum):
    """What a gate says of a comparison."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
