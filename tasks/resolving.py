"""What several answers to an item amount to, and when a batch is complete, or not to be trusted."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL

from models.campaign import Campaign, CampaignRun, Candidate
from models.errors import BadInput
from models.labeling import Label, LabelBatch, LabelRequest
from models.plans import LabelPolicy
from models.states import BatchState, CandidateState, RequestState, RunState, may_move, move
from storage import campaigns, labels
from storage.labelers import Labeler
from storage.stores import Stores, open_stores
from tasks.compute import agreement, outlook

SMOOTHING = 1.0  # what agreement.dawid_skene advises for labels of people
Classes = tuple[str, ...]  # what an answer names; empty: it found nothing to say


class Resolution(NamedTuple):
    """What the answers to one request amount to."""

    state: RequestState
    classes: Classes
    confidence: float
    opinions: int  # answers that are needed by now
    overlap: int  # annotators that the labeller must let answer


def resolve(project_id: int, labeler: Labeler) -> tuple[set[int], set[str]]:
    """Derive the labels of the requests that have new answers, and the states of their batches.

    Returns these batches, and the keys of requests that were answered and wait again.

    Which have is a mark in the database, set with the answers and taken off here, so that a kill between loses nothing.

    A disagreement asks the labeller for another annotator first and is remembered then, so that a kill between the two
    leaves nothing waiting for an answer that nobody was asked for.
    """
    with open_stores() as stores:
        project = labels.get_project(stores.db, project_id=project_id)
        stale = labels.requests_with_answers(stores.db, project_id=project_id, stale=True)
        found = _resolutions(stores, project_id, stale)
        reopened = {one.key for one in stale if _waits_again(one, found[one.id or 0])}
        usable = labels.usable_batches(stores.db, project_id=project_id)
    more = {
        one.external_id: found[one.id or 0].overlap
        for one in stale
        if found[one.id or 0].overlap > one.opinions and one.batch_id in usable and not one.gone
    }
    if more:
        labeler.ask_again(project.external_id, more)
    with open_stores() as stores:
        return _apply(stores, project_id, found), reopened


def _waits_again(request: LabelRequest, found: Resolution) -> bool:
    return found.state is RequestState.PENDING and request.state is not RequestState.PENDING


def note_gone(stores: Stores, requests: Sequence[LabelRequest], present: set[str]) -> int:
    """Remember which items a person deleted, or brought back; how many are gone. Answers that were stored stay."""
    candidates = labels.candidates_of(stores.db, requests=requests)
    for request in requests:
        gone = request.key not in present
        if gone == request.gone:
            continue
        request.gone = gone
        answered = request.state in (RequestState.LABELLED, RequestState.SKIPPED, RequestState.EMPTY)
        request.stale = request.stale or not gone  # what was answered before it went counts again
        if not answered:
            _move(request, candidates, RequestState.DELETED if gone else RequestState.PENDING)
        stores.db.add(request)
    return sum(request.gone for request in requests)


def set_batch(batch_id: int, state: BatchState, reason: str) -> LabelBatch:
    """Release a batch from quarantine, or reject it, for a reason that is kept. Raises BadInput where that cannot be.

    One that is rejected before it was sent is never sent.
    """
    with open_stores() as stores:
        batch = labels.get_batch(stores.db, batch_id=batch_id)
        if state is BatchState.OPEN and batch.state not in labels.UNUSABLE:
            raise BadInput(
                f"batch {batch_id} is {batch.state.value}; only one that is quarantined or rejected can be released"
            )
        before = f" (before: {batch.reason})" if batch.reason else ""
        batch.state, batch.reason = move(batch.state, state), reason + before
        batch.released = state is not BatchState.REJECTED
        run = stores.db.get_one(CampaignRun, batch.run_id)
        if state is BatchState.REJECTED and run.state is RunState.MINED:
            run.state = move(run.state, RunState.SENT)
        if state is BatchState.REJECTED and may_move(run.state, RunState.LABELLED):
            run.state = move(run.state, RunState.LABELLED)
        stores.db.add_all([batch, run])
        stores.db.flush()
        _settle(stores, batch)
    return batch


def tell(batch: LabelBatch, campaign: Campaign) -> None:
    """Emit a batch's state as an event, where there is a Prefect API; the same state of the same batch is the same event."""
    if not PREFECT_API_URL.value():
        return
    verb = "completed" if batch.state is BatchState.COMPLETE else batch.state.value
    name = f"dipnet.batch.{verb}"
    emit_event(
        name,
        resource={"prefect.resource.id": f"dipnet.batch.{batch.id}", "dipnet.campaign": campaign.name},
        payload={"run": batch.run_id, "reason": batch.reason},
        id=uuid.uuid5(uuid.NAMESPACE_URL, f"{name}/{campaign.name}/{batch.run_id}/{batch.created_at.isoformat()}"),
    )


def _resolutions(stores: Stores, project_id: int, stale: Sequence[LabelRequest]) -> dict[int, Resolution]:
    """Of stale requests; of their whole batches, where annotators' habits decide and every answer tells of them."""
    policies = {
        batch.id or 0: LabelPolicy.model_validate(batch.policy)
        for batch in labels.batches_of(stores.db, project_id=project_id)
    }
    answers = by_request(labels.answers_to(stores.db, request_ids=[one.id or 0 for one in stale]))
    wanted = list(stale)
    by_habits = {
        one.batch_id
        for one in stale
        if policies[one.batch_id].resolve == "dawid-skene" or _is_tied(answers.get(one.id or 0, []))
    }
    if by_habits:
        answered = labels.requests_with_answers(stores.db, project_id=project_id, stale=False)
        others = [one for one in answered if one.batch_id in by_habits and not one.stale]
        answers |= by_request(labels.answers_to(stores.db, request_ids=[one.id or 0 for one in others]))
        wanted += others
    believed: dict[int, dict[Classes, float]] = {}
    for name in by_habits:
        believed |= believe({one.id or 0: answers.get(one.id or 0, []) for one in wanted if one.batch_id == name})
    return {
        one.id or 0: _resolution(one, answers.get(one.id or 0, []), policies[one.batch_id], believed) for one in wanted
    }


def _is_tied(given: Sequence[Label]) -> bool:
    """Whether no class has more answers than every other."""
    most = Counter(named(label) for label in given if counts(label)).most_common(2)
    return len(most) == 2 and most[0][1] == most[1][1]


def by_request(answers: Iterable[Label]) -> dict[int, list[Label]]:
    """Answers that were not withdrawn by request: of each annotator the newest alone."""
    newest: dict[int, dict[str, Label]] = defaultdict(dict)
    for label in sorted(answers, key=lambda label: (label.answered_at, label.id or 0)):
        if label.state is RequestState.DELETED:
            continue
        # An annotator's skip does not undo the answer that they gave beside it.
        if label.state is RequestState.SKIPPED and label.annotator in newest[label.request_id or 0]:
            continue
        newest[label.request_id or 0][label.annotator] = label
    return {request_id: list(given.values()) for request_id, given in newest.items() if given}


def believe(answers: Mapping[int, Sequence[Label]]) -> dict[int, dict[Classes, float]]:
    """How likely each class is for each request, by Dawid and Skene, from all answers that count."""
    rows = [
        (name, label.annotator, named(label)) for name, given in answers.items() for label in given if counts(label)
    ]
    if not rows:
        return {}
    cast = ballot(rows)
    posterior = agreement.dawid_skene(cast.votes, tolerance=1e-6, iterations=1_000, smoothing=SMOOTHING).posterior
    return {
        name: dict(zip(cast.classes, posterior[row].tolist(), strict=True)) for row, name in enumerate(cast.requests)
    }


class Ballot(NamedTuple):
    """Votes, and the requests, annotators and classes that their codes stand for."""

    votes: agreement.Votes
    requests: list[int]
    annotators: list[str]
    classes: list[Classes]


def ballot(rows: Sequence[tuple[int, str, Classes]]) -> Ballot:
    """(request, annotator, classes) as votes, whose codes follow the order of the names."""
    requests, annotators, classes = (
        sorted({r for r, _, _ in rows}),
        sorted({a for _, a, _ in rows}),
        sorted({c for *_, c in rows}),
    )

    def coded(names: Sequence[object], place: int) -> NDArray[np.int64]:
        codes = {name: code for code, name in enumerate(names)}
        return np.asarray([codes[row[place]] for row in rows], dtype=np.int64)

    items, voters, said = coded(requests, 0), coded(annotators, 1), coded(classes, 2)
    votes = agreement.Votes(items, voters, said, len(requests), len(annotators), len(classes))
    return Ballot(votes, requests, annotators, classes)


def counts(label: Label) -> bool:
    """Whether an answer says something of its image: it is in the schema, and no skip."""
    return not label.rejected and label.state in (RequestState.LABELLED, RequestState.EMPTY)


def named(label: Label) -> Classes:
    """What an answer names."""
    return tuple(sorted(label.class_names or ([label.class_name] if label.class_name else [])))


def _resolution(
    request: LabelRequest, given: Sequence[Label], policy: LabelPolicy, believed: Mapping[int, Mapping[Classes, float]]
) -> Resolution:
    """A request's state and label; pending while it has too few answers, or answers that differ and may have one more."""
    rejected = sum(bool(label.rejected) for label in given)
    valid = [label for label in given if not label.rejected]
    said = [named(label) for label in valid if counts(label)]
    needed = policy.opinions
    shares = {classes: said.count(classes) / len(said) for classes in said}
    split = len(said) > 1 and max(shares.values()) <= 0.5
    if split and len(valid) >= needed and policy.most_opinions > needed:
        needed = min(policy.most_opinions, len(valid) + 1)
    pending = Resolution(RequestState.PENDING, (), 0.0, needed, needed + rejected)
    if len(valid) < needed:
        return pending._replace(state=RequestState.DELETED) if request.gone else pending
    if not said:
        return pending._replace(state=RequestState.SKIPPED)
    weights = believed.get(request.id or 0, shares)
    by_votes = max(shares, key=lambda classes: (shares[classes], weights.get(classes, 0.0), classes))
    by_habits = max(weights, key=lambda classes: (weights[classes], classes))
    winner = by_habits if policy.resolve == "dawid-skene" else by_votes
    state = RequestState.LABELLED if winner else RequestState.EMPTY
    return pending._replace(state=state, classes=winner, confidence=round(weights.get(winner, 0.0), 4))


def _apply(stores: Stores, project_id: int, found: Mapping[int, Resolution]) -> set[int]:
    """Write resolutions down, and move batches on; the batches that were concerned."""
    requests = labels.requests_by_id(stores.db, ids=list(found))
    candidates = labels.candidates_of(stores.db, requests=requests)
    for request in requests:
        one = found[request.id or 0]
        request.class_name = one.classes[0] if len(one.classes) == 1 else ""
        request.class_names, request.confidence = list(one.classes), one.confidence
        request.opinions, request.stale = one.opinions, False
        _move(request, candidates, one.state)
        stores.db.add(request)
    stores.db.flush()
    concerned = {request.batch_id for request in requests}
    for batch in labels.batches_of(stores.db, project_id=project_id):
        if batch.state is BatchState.OPEN or batch.id in concerned:
            _settle(stores, batch)
    return concerned


def _move(request: LabelRequest, candidates: Mapping[int, Candidate], state: RequestState) -> None:
    """The request's state, and its candidate's with it."""
    request.state = move(request.state, state)
    candidate = candidates.get(request.candidate_id or 0)
    if candidate is None:
        return
    if candidate.state not in campaigns.SENT:
        # It was answered, so it was sent, whatever a send that was killed could not write down and a person said since.
        candidate.state = CandidateState.SENT
    follows = {RequestState.LABELLED: CandidateState.LABELLED, RequestState.PENDING: CandidateState.SENT}
    candidate.state = move(candidate.state, follows.get(state, CandidateState.SKIPPED))


def _settle(stores: Stores, batch: LabelBatch) -> None:
    """Complete a batch that has enough answers; put one in quarantine whose golden items were answered badly."""
    run = stores.db.get_one(CampaignRun, batch.run_id)
    if batch.state is BatchState.REJECTED or run.state not in (RunState.SENT, RunState.LABELLED):
        return
    policy = LabelPolicy.model_validate(batch.policy)
    known = golden_answers(stores, labels.golden_requests(stores.db, batch_id=batch.id or 0))
    wrong = "" if batch.released else distrust(known, policy)
    if wrong:
        batch.state, batch.reason = move(batch.state, BatchState.QUARANTINED), wrong
    elif batch.state is BatchState.OPEN and _is_enough(stores, batch, policy):
        batch.state = move(batch.state, BatchState.COMPLETE)
        run.state = move(run.state, RunState.LABELLED)
    stores.db.add_all([batch, run])
    stores.db.flush()


def _is_enough(stores: Stores, batch: LabelBatch, policy: LabelPolicy) -> bool:
    """Whether so large a share of the asked items has its answers, and enough golden items to judge them by."""
    states = labels.count_states(stores.db, batch_id=batch.id or 0)
    asked, known = sum(states.values()), labels.golden_requests(stores.db, batch_id=batch.id or 0)
    settled = sum(request.state is not RequestState.PENDING for request in known)
    if settled < min(policy.golden_least, len(known)):
        return False
    return asked - states.get(RequestState.PENDING, 0) >= policy.enough * asked - 1e-9


def golden_answers(stores: Stores, requests: Sequence[LabelRequest]) -> dict[str, tuple[int, int]]:
    """Right answers and answers to golden items, by annotator. A skip is no answer."""
    expected = {request.id or 0: request.expected for request in requests if request.expected}
    found: dict[str, tuple[int, int]] = {}
    for request_id, given in by_request(labels.answers_to(stores.db, request_ids=list(expected))).items():
        for label in given:
            if label.rejected or label.state is RequestState.SKIPPED:
                continue
            right, of = found.get(label.annotator, (0, 0))
            found[label.annotator] = (right + ((expected[request_id],) == named(label)), of + 1)
    return found


def distrust(answers: Mapping[str, tuple[int, int]], policy: LabelPolicy) -> str:
    """Why a batch is not to be trusted, by its golden items; empty where it is, or too few say anything."""
    right, of = (sum(pair[place] for pair in answers.values()) for place in (0, 1))
    if of < policy.golden_least or right >= policy.golden_accuracy * of:
        return ""
    share = outlook.rate(right, of)
    return (
        f"{right} of {of} golden items were answered right ({share.share:.2f} [{share.low:.2f}, {share.high:.2f}]), "
        f"and {policy.golden_accuracy:.2f} is asked for"
    )
