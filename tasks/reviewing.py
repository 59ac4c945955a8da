"""What a person says of candidates before they are sent."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.campaign import CampaignRun, Candidate
from models.errors import BadInput
from models.plans import CampaignPlan
from models.states import CandidateState, RunState, may_move, move
from models.values import Reviewed, Sent
from storage import campaigns, corpora
from storage.stores import Stores, alone, open_stores
from tasks import previewing, routing
from tasks.outputs import require_place

SHORTEST = 6  # characters of a sample id
RANKS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
REST = {"": None, "accept": CandidateState.ACCEPTED, "discard": CandidateState.DISCARDED}


def review(campaign_name: str, sample_ids: Sequence[str], *, accept: bool) -> dict[str, Any]:
    """Accept or discard candidates; all of them or, when one cannot be, none. Raises BadInput, naming it."""
    target = CandidateState.ACCEPTED if accept else CandidateState.DISCARDED
    with _nobody_sends(campaign_name), open_stores() as stores:
        campaign = campaigns.get_campaign(stores.db, name=campaign_name)
        known = campaigns.all_candidates(stores.db, campaign_id=campaign.id or 0)
        for given in sample_ids:
            _decide(stores, _find(known, given, campaign_name), target, given)
    return {"campaign": campaign_name, target.value: len(sample_ids)}


def review_run(
    campaign_name: str, *, accept: Sequence[str], discard: Sequence[str], rest: str, sheet: Path | None
) -> Reviewed:
    """Accept and discard candidates of the campaign's unsent run, by rank or sample id; all that was said or nothing of it.

    Raises BadInput for what names no candidate, or one twice; NotFound for an unknown campaign.
    """
    if rest not in REST:
        raise BadInput(f"--rest {rest} is neither accept nor discard")
    if sheet is not None:
        require_place(sheet)
    with _nobody_sends(campaign_name), open_stores() as stores:
        run = _unsent(stores, campaign_name)
        found = campaigns.candidates_of(stores.db, run_id=run.id or 0)
        accepted = {one.id for given in accept for one in _named(found, given, campaign_name)}
        discarded = {one.id for given in discard for one in _named(found, given, campaign_name)}
        for candidate in found:
            if candidate.id in accepted & discarded:
                raise BadInput(f"candidate {candidate.rank + 1} is both accepted and discarded; say one of them")
            said = CandidateState.ACCEPTED if candidate.id in accepted else None
            said = CandidateState.DISCARDED if candidate.id in discarded else said
            if said is None and candidate.state is CandidateState.UNSORTED:
                said = REST[rest]
            if said is not None:
                _decide(stores, candidate, said, str(candidate.rank + 1))
        stores.db.flush()
        if sheet is not None:
            previewing.sheet_of_run(stores, found, sheet)
        return _reviewed(stores, campaign_name, run, found, str(sheet or ""))


def send(campaign_name: str) -> Sent:
    """Send what was accepted of the campaign's unsent run. Raises BadInput where nothing was."""
    with open_stores() as stores:
        run_id = _unsent(stores, campaign_name).id or 0
        plan = CampaignPlan.model_validate(campaigns.get_campaign(stores.db, name=campaign_name).plan)
    return routing.send_batch(routing.prepare_batch(run_id, plan))


@contextmanager
def _nobody_sends(campaign_name: str) -> Iterator[None]:
    """While candidates are sent, what is said of them would come too late and be lost."""
    with open_stores() as stores:
        campaign_id = campaigns.get_campaign(stores.db, name=campaign_name).id or 0
    with alone(routing.lock_of(campaign_id)):
        yield


def _unsent(stores: Stores, campaign_name: str) -> CampaignRun:
    campaign = campaigns.get_campaign(stores.db, name=campaign_name)
    for run in campaigns.runs_of(stores.db, campaign_id=campaign.id or 0):
        if run.state is RunState.MINED:
            return run
    raise BadInput(
        f"campaign '{campaign_name}' has no run that is mined and not sent; mine one with: "
        f"dipnet campaign run {campaign_name} --review …"
    )


def _decide(stores: Stores, candidate: Candidate, target: CandidateState, given: str) -> None:
    if not may_move(candidate.state, target):
        raise BadInput(f"candidate '{given}' is {candidate.state.value} already; what was sent is decided by its label")
    candidate.state = move(candidate.state, target)
    stores.db.add(candidate)


def _named(found: Sequence[Candidate], given: str, campaign_name: str) -> list[Candidate]:
    """Candidates by rank (3, 10-25; from 1 on), several with commas between, or one by the beginning of its sample id."""
    named: list[Candidate] = []
    for part in given.split(","):
        ranks = RANKS.fullmatch(part.strip())
        if ranks is None:
            named.append(_find(found, part.strip(), campaign_name))
            continue
        first, last = int(ranks[1]), int(ranks[2] or ranks[1])
        within = [one for one in found if first <= one.rank + 1 <= last]
        if len(within) != last - first + 1:
            raise BadInput(f"'{part}' is not within the ranks 1 to {len(found)} of this run")
        named += within
    return named


def _find(known: Sequence[Candidate], given: str, campaign_name: str) -> Candidate:
    found = [one for one in known if len(given) >= SHORTEST and one.sample_id.startswith(given)]
    if len(found) != 1:
        told = "names several" if found else "names none"
        raise BadInput(
            f"'{given}' {told} of the candidates of campaign '{campaign_name}'; see: dipnet campaign show {campaign_name}"
        )
    return found[0]


def _reviewed(stores: Stores, campaign_name: str, run: CampaignRun, found: Sequence[Candidate], sheet: str) -> Reviewed:
    samples = corpora.known_samples(stores.db, ids=[one.sample_id for one in found])
    states = Counter(one.state for one in found)
    return Reviewed(
        campaign=campaign_name,
        run_id=run.id or 0,
        accepted=states[CandidateState.ACCEPTED],
        discarded=states[CandidateState.DISCARDED],
        unsorted=states[CandidateState.UNSORTED],
        sheet=sheet,
        candidates=[
            {
                "rank": one.rank + 1,
                "sample": one.sample_id[:12],
                "state": one.state.value,
                "score": round(one.score, 4),
                "arm": one.arm.value,
                "predicted": one.predicted_class,
                "image": samples[one.sample_id].uri,
            }
            for one in found
        ],
    )
