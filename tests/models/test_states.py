"""States move as the design says, and no other way."""

import pytest

from models.errors import IllegalMove
from models.states import BatchState, CandidateState, IssueState, RequestState, RunState, State, may_move, move

ALL = [IssueState, CandidateState, RunState, RequestState]


@pytest.mark.parametrize("states", ALL)
def test_every_move_leads_to_a_state_that_exists(states: type[State]) -> None:
    for source, targets in states.moves().items():
        assert source in set(states)
        assert set(targets) <= {str(state) for state in states}


@pytest.mark.parametrize("states", ALL)
def test_staying_is_always_legal(states: type[State]) -> None:
    assert all(move(state, state) is state for state in states)


def test_an_illegal_move_says_what_may_follow() -> None:
    with pytest.raises(IllegalMove, match=r"cannot go from 'unsorted' to 'sent'; what may follow: accepted, discarded"):
        move(CandidateState.UNSORTED, CandidateState.SENT)


def test_a_discarded_candidate_is_never_sent() -> None:
    assert not may_move(CandidateState.DISCARDED, CandidateState.SENT)


def test_an_issue_goes_all_the_way() -> None:
    state = IssueState.TRIAGE
    for target in (IssueState.COLLECTING, IssueState.LABELLING, IssueState.RETRAINING, IssueState.RESOLVED):
        state = move(state, target)
    assert state is IssueState.RESOLVED


def test_a_correction_moves_a_request_from_one_answer_to_another() -> None:
    assert move(RequestState.SKIPPED, RequestState.LABELLED) is RequestState.LABELLED


def test_a_withdrawn_answer_makes_its_request_and_its_candidate_wait_again() -> None:
    assert may_move(RequestState.LABELLED, RequestState.PENDING)
    assert may_move(CandidateState.LABELLED, CandidateState.SENT)
    assert not may_move(CandidateState.LABELLED, CandidateState.DISCARDED)


def test_a_rejected_batch_is_not_used_before_it_is_opened_again() -> None:
    assert not may_move(BatchState.REJECTED, BatchState.COMPLETE)
    assert may_move(BatchState.REJECTED, BatchState.OPEN)
