"""The verdict on a change, and what follows from it: issues move, champions change."""

from __future__ import annotations

import hashlib
import json
import math

from models.campaign import Issue
from models.learning import Gate
from models.states import IssueState, Verdict
from models.values import Compared, Gated
from storage import campaigns, runs
from storage.stores import Stores, open_stores
from tasks.compute import gate
from tasks.steps import step


@step()
def judge(issue_name: str, on_slice: Compared, overall: Compared) -> Gated:
    """The verdict on a change for an issue; the issue moves with it. Twice changes nothing."""
    with open_stores() as stores:
        issue = campaigns.get_issue(stores.db, name=issue_name)
        parts = [issue.id, on_slice.comparison_id, overall.comparison_id]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        found = runs.find_gate(stores.db, key=key)
        if found is None:
            target = _interval(stores, on_slice.comparison_id, issue.class_name, "f1")
            everywhere = _interval(stores, overall.comparison_id, "", "accuracy")

            judged = gate.verdict(target, everywhere)

            found = Gate(
                key=key,
                issue_id=issue.id or 0,
                before_id=runs.get_model(stores.db, name=on_slice.before).id,
                after_id=runs.get_model(stores.db, name=on_slice.after).id,
                verdict=Verdict(judged.verdict),
                reasons=judged.reasons,
            )
            stores.db.add(found)
            _move(stores, issue, found.verdict)
    return Gated(issue=issue_name, verdict=found.verdict, reasons=found.reasons)


def _interval(stores: Stores, comparison_id: int, class_name: str, metric: str) -> tuple[float, float]:
    """A stored interval; from −∞ to ∞ when the class does not occur in the scenario."""
    for delta in runs.deltas_of(stores.db, comparison_id=comparison_id):
        if (delta.class_name, delta.metric) == (class_name, metric):
            return delta.low, delta.high
    return -math.inf, math.inf


def _move(stores: Stores, issue: Issue, verdict: Verdict) -> None:
    """A passed gate resolves the issue; any other sends it back to collecting."""
    campaigns.advance_issue(stores.db, issue=issue, target=IssueState.RETRAINING)
    target = IssueState.RESOLVED if verdict is Verdict.PASS else IssueState.COLLECTING
    campaigns.advance_issue(stores.db, issue=issue, target=target)
