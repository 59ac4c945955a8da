"""The verdict on a change, and what follows from it for the issue and its campaigns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from models.campaign import Issue
from models.errors import BadInput
from models.learning import Comparison, Gate, MetricDelta, ModelVersion, Scenario
from models.outcomes import Gated
from models.retraining import GatePolicy
from models.states import CampaignState, IssueState, ScenarioKind, Split, Verdict, may_move, move
from storage import campaigns, corpora, runs
from storage.stores import Stores, open_stores
from tasks.compute import gate
from tasks.scenarios import OVERALL, is_old
from tasks.steps import step

SOLVED = (IssueState.COLLECTING, IssueState.LABELLING, IssueState.RETRAINING, IssueState.RESOLVED)


@dataclass(frozen=True)
class Compared:
    """A stored comparison, what it was made on, and its differences by class and metric."""

    comparison: Comparison
    scenario: Scenario
    deltas: dict[tuple[str, str], MetricDelta]
    develops: bool  # it holds data that was looked at while issues were shaped, or it is not known what it holds


@step()
def judge(comparison_ids: Sequence[int], issue_name: str, policy: GatePolicy) -> Gated:
    """The verdict on a change, from all its stored comparisons, about an issue or ('') about the change as a whole.

    Nothing moves with it until it is settled. Twice changes nothing. Raises BadInput where the comparisons say nothing
    of the issue, or nothing of all holdout data.
    """
    with open_stores() as stores:
        issue = campaigns.get_issue(stores.db, name=issue_name) if issue_name else None
        sides = [_compared(stores, number) for number in sorted(set(comparison_ids))]
        before, after = _models(stores, sides)
        rules = policy.model_dump(exclude={"promote"})
        key = _key([before.id, after.id, issue_name, rules, [side.comparison.id for side in sides]])
        found = runs.find_gate(stores.db, key=key)
        if found is None:
            claims = list(_claims(sides, issue, policy))

            judged = gate.judge(claims, error_rate=policy.error_rate)

            found = Gate(
                key=key,
                issue_id=issue.id if issue else None,
                before_id=before.id,
                after_id=after.id,
                policy=rules,
                verdict=Verdict(judged.verdict),
                reasons=judged.reasons,
                findings=[asdict(finding) for finding in judged.findings],
                samples_needed=judged.samples_needed,
            )
            stores.db.add(found)
            stores.db.flush()
    return _gated(found, issue_name, before, after)


@step()
def settle(gates: Sequence[Gated]) -> bool:
    """Move issues and their campaigns with the verdicts on one model, each once, all or none. Returns whether any is new.

    Where a verdict is a failure, those that pass wait and move nothing: what breaks something else is not shipped, and
    a model that is not shipped resolves no issue.
    """
    broken = any(one.verdict is Verdict.FAIL for one in gates)
    new = False
    with open_stores() as stores:
        for found in (stores.db.get_one(Gate, one.gate_id) for one in gates):
            if not found.settled and not (broken and found.verdict is Verdict.PASS):
                _settle(stores, found)
                new = True
    return new


def _compared(stores: Stores, comparison_id: int) -> Compared:
    comparison = stores.db.get_one(Comparison, comparison_id)
    scenario = stores.db.get_one(Scenario, comparison.scenario_id)
    deltas = {(row.class_name, row.metric): row for row in runs.deltas_of(stores.db, comparison_id=comparison_id)}
    held = [corpora.get_corpus(stores.db, name=name) for name in scenario.corpora]
    develops = is_old(scenario) or any(corpus.split is Split.DEVELOPMENT for corpus in held)
    return Compared(comparison, scenario, deltas, develops)


def _models(stores: Stores, sides: Sequence[Compared]) -> tuple[ModelVersion, ModelVersion]:
    """The two models that all comparisons are about. Raises BadInput when they are about several pairs, or about none."""
    pairs = {(side.comparison.before_id, side.comparison.after_id) for side in sides}
    if len(pairs) != 1:
        raise BadInput("a gate judges one pair of models; give comparisons of the same two")
    before_id, after_id = pairs.pop()
    return stores.db.get_one(ModelVersion, before_id), stores.db.get_one(ModelVersion, after_id)


def _key(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _claims(sides: Sequence[Compared], issue: Issue | None, policy: GatePolicy) -> Iterator[gate.Claim]:
    """What must hold: the issue is better on its own slice, and nothing else that nobody looked at is worse."""
    overall = next((side for side in sides if side.scenario.name == OVERALL), None)
    if overall is None:
        raise BadInput(f"a gate needs scenario '{OVERALL}'; compare the models there too")
    target = _target(sides, issue) if issue else None
    if issue and target:
        yield _claim(target, "target", issue.class_name, "f1", 0.0)
    yield _claim(overall, "overall", "", "accuracy", policy.overall_margin)
    for class_name, metric in overall.deltas:
        # Whatever a model loses, the recall of some class loses, and that with less noise than its F1.
        if class_name and metric == "recall":
            yield _claim(overall, "class", class_name, "recall", policy.class_margin)
    looked_at = {overall.scenario.listing_sha256} | ({target.scenario.listing_sha256} if target else set())
    for side in sides:
        suite = side.scenario.kind is ScenarioKind.REGRESSION
        if (suite or not side.develops) and side.scenario.listing_sha256 not in looked_at:
            looked_at.add(side.scenario.listing_sha256)  # the same samples under two names are one claim
            yield _claim(side, "scenario", "", "accuracy", policy.scenario_margin)


def _target(sides: Sequence[Compared], issue: Issue) -> Compared:
    """The comparison on the issue's own scenario. Raises BadInput where there is none, or where its class is not in it."""
    own = (side for side in sides if side.scenario.issue_id == issue.id and not is_old(side.scenario))
    found = next(own, None)
    if found is None:
        raise BadInput(f"issue '{issue.name}' has no comparison on a scenario of its own; compare the models there too")
    if (issue.class_name, "f1") not in found.deltas:
        raise BadInput(
            f"no sample of scenario '{found.scenario.name}' is a {issue.class_name}, the class of issue '{issue.name}'; "
            "add holdout data that is"
        )
    return found


def _claim(side: Compared, role: gate.Role, class_name: str, metric: str, margin: float) -> gate.Claim:
    row = side.deltas[class_name, metric]
    name = {"overall": "", "scenario": side.scenario.name}.get(role, class_name)
    samples = side.comparison.samples or side.scenario.samples
    return gate.Claim(role, name, metric, row.after - row.before, row.low, row.high, margin, samples)


def _gated(found: Gate, issue_name: str, before: ModelVersion, after: ModelVersion) -> Gated:
    return Gated(
        issue=issue_name,
        verdict=found.verdict,
        reasons=found.reasons,
        gate_id=found.id or 0,
        before=before.reference,
        after=after.reference,
        samples_needed=found.samples_needed,
    )


def _settle(stores: Stores, found: Gate) -> None:
    """The issue moves with the verdict; where it is resolved, its campaigns have found what they were for."""
    found.settled = True
    stores.db.add(found)
    issue = stores.db.get_one(Issue, found.issue_id) if found.issue_id else None
    if issue is None or issue.state is IssueState.IGNORED:
        return
    if found.verdict is Verdict.PASS:
        after = stores.db.get_one(ModelVersion, found.after_id)
        _resolve(stores, issue)
        _stop_campaigns(stores, issue, f"{after.reference} resolves '{issue.name}' (gate {found.id})")
    elif issue.state is not IssueState.RESOLVED:
        campaigns.advance_issue(stores.db, issue=issue, target=IssueState.COLLECTING)
    elif found.verdict is Verdict.FAIL:
        campaigns.advance_issue(stores.db, issue=issue, target=IssueState.TRIAGE)


def _resolve(stores: Stores, issue: Issue) -> None:
    """From wherever it stands, by legal moves: a proof does not ask how far the labels were."""
    for state in SOLVED:
        if issue.state is not state and may_move(issue.state, state):
            issue.state = move(issue.state, state)
    stores.db.add(issue)
    stores.db.flush()


def _stop_campaigns(stores: Stores, issue: Issue, because: str) -> None:
    for campaign in campaigns.list_campaigns(stores.db):
        if campaign.issue_id == issue.id and campaign.state is CampaignState.ACTIVE:
            campaign.state, campaign.stopped_because = move(campaign.state, CampaignState.STOPPED), because
            stores.db.add(campaign)
