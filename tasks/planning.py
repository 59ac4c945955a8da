"""Where a campaign stands, and the run that comes next: rounds that wait for labels, series, standing campaigns, stops."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from models.campaign import Campaign, CampaignRun, Issue
from models.corpus import EmbeddedShard, EncoderSpec
from models.errors import BadInput, DipnetError
from models.learning import ModelVersion
from models.plans import CampaignPlan
from models.states import CampaignState, IssueState, RunState, move
from models.values import Continued
from storage import campaigns, corpora, runs
from storage.stores import Stores, open_stores
from storage.vectors import VectorShard
from tasks import features, progress, suspects
from tasks.pool import Pool, open_pool
from tasks.steps import step


class Next(NamedTuple):
    """A round to come, the shards that it is about, and how many elements it may choose."""

    series: int
    round: int
    shards: list[EmbeddedShard]
    budget: int


class Inputs(NamedTuple):
    """What a plan names, looked up. A campaign that is new has no id yet."""

    issue: Issue
    encoder: EncoderSpec
    model: ModelVersion | None
    campaign: Campaign
    shards: list[EmbeddedShard]
    rounds: list[CampaignRun]  # of the campaign so far, oldest first
    superseded: list[CampaignRun]  # planned under another plan and never mined: their place is free
    plan_key: str
    watermark_key: str  # empty for a campaign that is not standing


class Draft(NamedTuple):
    """What running a plan would do. Nothing of it is in the database yet, unless the run was there before."""

    campaign: Campaign
    issue: Issue
    run: CampaignRun  # without an id when it is new
    superseded: list[CampaignRun]  # to forget
    ends: str  # why a stop rule ends the campaign now; empty: it goes on


@step()
def plan_run(plan: CampaignPlan) -> int:
    """The run that the campaign is at: a new one when it can go on, else its last; its id. Raises BadInput.

    What is unfinished comes first. A series spends the budget in rounds, each waiting for the labels of the one before.
    New shards begin another series: with a budget of its own in a standing campaign, with what is left in any other.
    """
    with open_stores() as stores:
        return plan_in(stores, plan).id or 0


@step()
def stands(plan: CampaignPlan) -> str:
    """Where the campaign stands, in a sentence."""
    with open_stores() as stores:
        return status(stores, plan)


@step()
def plans_to_continue(names: Sequence[str]) -> list[CampaignPlan | Continued]:
    """Plans of active campaigns, of these or of all, that have a round to come; or why one cannot be looked up.

    Raises NotFound for an unknown name.
    """
    with open_stores() as stores:
        chosen = [campaigns.get_campaign(stores.db, name=name) for name in names] or campaigns.list_campaigns(stores.db)
        active = [one for one in chosen if one.plan and one.state is CampaignState.ACTIVE]
        found = [_to_continue(stores, one) for one in active]
        return [one for one in found if one is not None]


@step()
def set_state(name: str, state: CampaignState, reason: str) -> dict[str, Any]:
    """Stop a campaign, or take it up again."""
    with open_stores() as stores:
        campaign = campaigns.get_campaign(stores.db, name=name)
        campaign.state = move(campaign.state, state)
        campaign.stopped_because = reason if state is CampaignState.STOPPED else ""
        stores.db.add(campaign)
        return {"campaign": name, "state": campaign.state.value, "because": campaign.stopped_because}


def accept_of(name: str, auto: bool | None) -> str:
    """What is sent of a campaign: as is said now; else as it was run before, so that nothing slips past a review."""
    if auto is not None:
        return "auto" if auto else "review"
    with open_stores() as stores:
        campaign = campaigns.find_campaign(stores.db, name=name)
        plan = campaign.plan if campaign else {}
    return str(plan.get("labelling", {}).get("accept", "auto"))


def plan_in(stores: Stores, plan: CampaignPlan) -> CampaignRun:
    """As plan_run, in the caller's transaction."""
    drafted = draft(stores, plan)
    campaign, run = drafted.campaign, drafted.run
    campaign.plan = plan.model_dump()
    if drafted.ends:
        campaign.state, campaign.stopped_because = move(campaign.state, CampaignState.STOPPED), drafted.ends
    stores.db.add(campaign)
    for one in drafted.superseded:
        stores.db.delete(one)
    stores.db.flush()
    if run.id is None:
        run.campaign_id = campaign.id or 0
        stores.db.add(run)
        campaigns.advance_issue(stores.db, issue=drafted.issue, target=IssueState.COLLECTING)
    return run


def draft(stores: Stores, plan: CampaignPlan) -> Draft:
    """The run that the campaign is at, and what else planning it would change. Writes nothing. Raises BadInput."""
    inputs = _look_up(stores, plan)
    rounds, campaign = inputs.rounds, inputs.campaign
    unfinished = _unfinished(plan, inputs)
    if unfinished is not None:
        campaigns.require_active(campaign)
        return Draft(campaign, inputs.issue, unfinished, inputs.superseded, "")
    if campaign.state is CampaignState.STOPPED:
        if not rounds:
            campaigns.require_active(campaign)
        return Draft(campaign, inputs.issue, rounds[-1], [], "")
    coming = _next(stores, plan, inputs)
    ends = progress.stop_reason(stores, campaign, plan.stop) if coming is not None and rounds else ""
    if coming is None or ends:
        return Draft(campaign, inputs.issue, rounds[-1], inputs.superseded, ends)
    if coming.round == 1:
        _check_pool(stores, plan, inputs, coming)
    run = _run(plan, inputs, coming)
    run.found = {} if rounds else suspects.on_opening(stores, plan, inputs.issue, inputs.encoder)
    return Draft(campaign, inputs.issue, run, inputs.superseded, "")


def withdraw(stores: Stores, run: CampaignRun) -> None:
    """Forget a run that was planned and is refused, so that a later plan finds nothing in its way.

    Commits, because the error that follows takes back all that is not.
    """
    stores.db.refresh(run)
    if run.state is RunState.PLANNED:
        stores.db.delete(run)
        stores.db.commit()


def pool_of(stores: Stores, run: CampaignRun) -> Pool:
    """What a run may choose from: the shards that it was planned on."""
    encoder = stores.db.get_one(EncoderSpec, run.encoder_id)
    planned = set(run.shards)
    kept = [row for row in _there(stores, run, encoder) if not planned or row.id in planned]
    return open_pool(stores, kept, encoder, condition=run.condition)


def corpora_of(stores: Stores, run: CampaignRun) -> list[VectorShard]:
    """All that there was of a run's corpora when it was planned: what is ordinary there, whatever the run's own pool is."""
    encoder = stores.db.get_one(EncoderSpec, run.encoder_id)
    return features.open_shards(stores, _there(stores, run, encoder), encoder)


def _there(stores: Stores, run: CampaignRun, encoder: EncoderSpec) -> list[EmbeddedShard]:
    return [row for row in shards_of(stores, run.corpora, encoder) if (row.id or 0) <= run.last_shard]


def status(stores: Stores, plan: CampaignPlan) -> str:
    """Where the campaign stands, in a sentence."""
    inputs = _look_up(stores, plan)
    if inputs.campaign.state is CampaignState.STOPPED:
        return f"stopped: {inputs.campaign.stopped_because}; take it up with: dipnet campaign resume {plan.campaign}"
    last = _unfinished(plan, inputs) or (inputs.rounds[-1] if inputs.rounds else None)
    if last is None or last.state is RunState.PLANNED:
        return "planned"
    place = f"round {last.round} of {plan.policy.rounds}" if plan.policy.rounds > 1 else "its round"
    if last.state is RunState.MINED and plan.route and not plan.sends_by_itself:
        return f"{place} waits for review: dipnet campaign review {plan.campaign}"
    if last.state is RunState.MINED:
        return f"{place} is mined, not sent"
    if last.state is RunState.SENT:
        return f"{place} waits for labels"
    if _goes_on(plan, inputs, last) and _left(stores, plan, inputs, last.series) > 0:
        return f"{place} is labelled; the next can be run"
    until = "; it stands until there are new shards" if plan.standing else ""
    if last.state is RunState.EMPTY:
        return f"{place} found nothing to choose ({told(last.excluded)}){until}"
    more = "; raise --budget for more" if last.plan_key != inputs.plan_key and not plan.standing else ""
    return f"its budget is spent and labelled{until}{more}"


def told(excluded: dict[str, int]) -> str:
    """What was left out, in words."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(excluded.items())) or "the pool is empty"


def _look_up(stores: Stores, plan: CampaignPlan) -> Inputs:
    issue = campaigns.get_issue(stores.db, name=plan.issue)
    if plan.policy.strategy != "text":  # words may stand alone
        campaigns.require_positive(issue, campaigns.exemplars_of(stores.db, issue_id=issue.id or 0))
    encoder = corpora.get_encoder(stores.db, name=plan.encoder or stores.settings.encoder)
    model = runs.get_model(stores.db, name=plan.model) if plan.model else None
    shards = shards_of(stores, plan.corpora, encoder)
    campaign = campaigns.find_or_new(stores.db, name=plan.campaign, issue=issue)
    plan_key, rounds = _plan_key(plan, issue, encoder, model), campaigns.rounds_of(stores.db, campaign=campaign)
    superseded = [run for run in rounds if run.state is RunState.PLANNED and run.plan_key != plan_key]
    return Inputs(
        issue,
        encoder,
        model,
        campaign,
        shards,
        rounds=[run for run in rounds if run not in superseded],
        superseded=superseded,
        plan_key=plan_key,
        watermark_key=_watermark_key(plan, issue, encoder, model) if plan.standing else "",
    )


def shards_of(stores: Stores, corpus_names: Sequence[str], encoder: EncoderSpec) -> list[EmbeddedShard]:
    """Every embedded shard of these corpora, in order. Raises NotFound, or Incompatible for a corpus without vectors."""
    searched = [corpora.get_corpus(stores.db, name=name) for name in sorted(set(corpus_names))]
    return list(corpora.embedded_shards(stores.db, corpora=searched, encoder=encoder))


def _to_continue(stores: Stores, campaign: Campaign) -> CampaignPlan | Continued | None:
    """The campaign's plan when it has more to do; one campaign's trouble is told, and is not another's."""
    try:
        plan = CampaignPlan.model_validate(campaign.plan)
        inputs = _look_up(stores, plan)
        more = _unfinished(plan, inputs) is not None or _has_more(stores, plan, inputs)
        return plan if more else None
    except ValidationError as problem:
        said = problem.errors()[0]["msg"]
        return Continued(campaign=campaign.name, status=f"failed: its plan is no longer valid ({said}); run it anew")
    except DipnetError as problem:
        return Continued(campaign=campaign.name, status=f"failed: {problem}")


def _has_more(stores: Stores, plan: CampaignPlan, inputs: Inputs) -> bool:
    """Whether a round follows without a person's doing: labels came in, or a standing campaign has new shards."""
    coming = _next(stores, plan, inputs)
    return coming is not None and (plan.standing or coming.round > 1 or bool(inputs.superseded))


def _unfinished(plan: CampaignPlan, inputs: Inputs) -> CampaignRun | None:
    """The oldest run that was killed on its way: mined by whatever plan and not sent, or planned by this one."""
    for run in inputs.rounds:
        if run.state is RunState.PLANNED or (run.state is RunState.MINED and plan.sends_by_itself):
            return run
    return None


def _next(stores: Stores, plan: CampaignPlan, inputs: Inputs) -> Next | None:
    """The round to come; None when the last one waits, or the budget is spent, or nothing is new."""
    last = inputs.rounds[-1] if inputs.rounds else None
    if last is not None and _goes_on(plan, inputs, last):
        shards = _again(inputs, last)
        left = _left(stores, plan, inputs, last.series)
        if last.state is not RunState.LABELLED or left <= 0 or not shards:
            return None
        return Next(last.series, last.round + 1, shards, -(-left // (plan.policy.rounds - last.round)))
    fresh = _unseen(stores, inputs)
    series = last.series + 1 if last is not None else 1
    left = _left(stores, plan, inputs, series)
    same = last is not None and (last.plan_key, last.shards_key) == (inputs.plan_key, _shards_key(fresh))
    if not fresh or same or left <= 0:
        return None
    return Next(series, 1, fresh, -(-left // plan.policy.rounds))


def _goes_on(plan: CampaignPlan, inputs: Inputs, last: CampaignRun) -> bool:
    """Whether another round of the last one's series is due, once its labels are in.

    A plan that was changed on the way takes the rounds that are left; a standing campaign that must score all again, or
    looks elsewhere, begins another series.
    """
    rounds_left = last.round < plan.policy.rounds and last.state is not RunState.EMPTY
    elsewhere = plan.standing and last.corpora != sorted(set(plan.corpora))
    return rounds_left and last.watermark_key == inputs.watermark_key and not elsewhere


def _again(inputs: Inputs, last: CampaignRun) -> list[EmbeddedShard]:
    """The shards of the last round or, for another plan that is not standing, all that there are now."""
    if inputs.watermark_key:
        return [row for row in inputs.shards if row.id in set(last.shards)]
    if last.plan_key == inputs.plan_key:
        return [row for row in inputs.shards if (row.id or 0) <= last.last_shard]
    return inputs.shards


def _left(stores: Stores, plan: CampaignPlan, inputs: Inputs, series: int) -> int:
    """What is left of the budget: of a standing campaign's series, of any other's runs together."""
    counted = [run.id or 0 for run in inputs.rounds if not plan.standing or run.series == series]
    return plan.policy.budget - campaigns.count_kept(stores.db, run_ids=counted)


def _unseen(stores: Stores, inputs: Inputs) -> list[EmbeddedShard]:
    """Shards to score: all, or for a standing campaign those that it has not scored under its watermark's key."""
    if not inputs.watermark_key:
        return inputs.shards
    campaign_id = inputs.campaign.id or 0
    seen = campaigns.watermarked(stores.db, campaign_id=campaign_id, watermark_key=inputs.watermark_key)
    return [row for row in inputs.shards if row.id not in seen]


def _check_pool(stores: Stores, plan: CampaignPlan, inputs: Inputs, coming: Next) -> None:
    """A standing campaign takes what new shards offer; any other must have a pool for its budget."""
    condition = plan.pool.condition
    size = int(open_pool(stores, coming.shards, inputs.encoder, condition=condition).sizes.sum())
    if plan.standing:
        return
    if condition and not size:
        raise BadInput(f"no image of the pool meets the filter {condition}; widen it, or leave it out")
    if plan.policy.budget > size:
        filtered = f" that meet {condition}" if condition else ""
        raise BadInput(
            f"campaign '{plan.campaign}': a budget of {plan.policy.budget} is above the pool of {size} readable images in "
            f"{', '.join(plan.corpora)}{filtered}; lower --budget or add a corpus"
        )


def _run(plan: CampaignPlan, inputs: Inputs, coming: Next) -> CampaignRun:
    """The run's row, in no session yet."""
    return CampaignRun(
        campaign_id=inputs.campaign.id or 0,
        key=_hash([inputs.plan_key, coming.series, coming.round]),
        plan_key=inputs.plan_key,
        series=coming.series,
        round=coming.round,
        budget=coming.budget,
        shards_key=_shards_key(coming.shards),
        shards=[row.id or 0 for row in coming.shards] if plan.standing else [],
        watermark_key=inputs.watermark_key,
        last_shard=max(row.id or 0 for row in coming.shards),
        encoder_id=inputs.encoder.id or 0,
        issue_version=inputs.issue.version,
        corpora=sorted(set(plan.corpora)),
        policy=plan.policy.model_dump(),
        condition=plan.pool.condition,
        model_id=inputs.model.id if inputs.model else None,
    )


def _plan_key(plan: CampaignPlan, issue: Issue, encoder: EncoderSpec, model: ModelVersion | None) -> str:
    """Hash of all that a person decided that bears on the outcome."""
    return _hash(
        {
            "campaign": plan.campaign,
            "issue": [plan.issue, issue.version],
            "policy": plan.policy.model_dump(),
            "pool": plan.pool.model_dump(),
            "corpora": sorted(set(plan.corpora)),
            "standing": plan.standing,
            "encoder": encoder.key,
            "model": model.weights_sha256 if model else "",
        }
    )


def _watermark_key(plan: CampaignPlan, issue: Issue, encoder: EncoderSpec, model: ModelVersion | None) -> str:
    """A change of these makes a standing campaign score everything again; a change of its budget does not."""
    looks_for = [issue.name, issue.version, plan.policy.strategy, plan.policy.text]
    return _hash([*looks_for, plan.pool.condition, encoder.key, model.weights_sha256 if model else ""])


def _shards_key(rows: Sequence[EmbeddedShard]) -> str:
    return _hash([row.vectors_sha256 for row in rows])


def _hash(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
