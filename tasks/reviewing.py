"""What a person says of candidates before they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.campaign import Candidate
from models.errors import BadInput
from models.states import CandidateState, may_move, move
from storage import campaigns
from storage.stores import open_stores

SHORTEST = 6  # characters of a sample id


def review(campaign_name: str, sample_ids: Sequence[str], *, accept: bool) -> dict[str, Any]:
    """Accept or discard candidates; all of them or, when one cannot be, none. Raises BadInput, naming it."""
    target = CandidateState.ACCEPTED if accept else CandidateState.DISCARDED
    with open_stores() as stores:
        campaign = campaigns.get_campaign(stores.db, name=campaign_name)
        known = campaigns.all_candidates(stores.db, campaign_id=campaign.id or 0)
        for given in sample_ids:
            candidate = _find(known, given, campaign_name)
            if not may_move(candidate.state, target):
                raise BadInput(
                    f"candidate '{given}' is {candidate.state.value} already; what was sent is decided by its label"
                )
            candidate.state = move(candidate.state, target)
            stores.db.add(candidate)
    return {"campaign": campaign_name, target.value: len(sample_ids)}


def _find(known: Sequence[Candidate], given: str, campaign_name: str) -> Candidate:
    found = [one for one in known if len(given) >= SHORTEST and one.sample_id.startswith(given)]
    if len(found) != 1:
        told = "names several" if found else "names none"
        raise BadInput(
            f"'{given}' {told} of the candidates of campaign '{campaign_name}'; see: dipnet campaign show {campaign_name}"
        )
    return found[0]
