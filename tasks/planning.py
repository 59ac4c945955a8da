"""Where a campaign stands, and the run that comes next: rounds that wait for labels, series, standing campaigns, stops."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from models.campaign import Campaign, CampaignRun, Issue, ScoredShard
from models.corpus import EmbeddedShard, EncoderSpec
from models.errors import BadInput
from models.learning import ModelVersion
from models.plans import CampaignPlan
from models.states import CampaignState, IssueState, RunState, move
from storage import campaigns, corpora, runs
from storage.stores import Stores, open_stores
from tasks import progress
from tasks.pool import Pool, open_pool
from tasks.steps import step


class Next(NamedTuple):
    """A round to come, and the shards that it is about."""

    series: int
    round: int
    shards: list[EmbeddedShard]


class Inputs(NamedTuple):
    """What a plan names, looked up."""

    issue: Issue
    encoder: EncoderSpec
    model: ModelVersion | None
    campaign: Campaign
    shards: list[EmbeddedShard]


@step()
def plan_run(plan: CampaignPlan) -> int:
    """The run that the campaign is at: a new one when it can go on, else its last; its id. Raises BadInput.

    A series spends the budget in rounds, each waiting for the labels of the one before. New shards begin another series.
    """
    with open_stores() as stores:
        return plan_in(stores, plan).id or 0


@step()
def stands(plan: CampaignPlan) -> str:
    """Where the campaign stands, in a sentence."""
    with open_stores() as stores:
        return status(stores, plan)


@step()
def plans_to_continue(names: Sequence[str]) -> list[CampaignPlan]:
    """Plans of active campaigns, of these or of all, that have a round to come. Raises NotFound for an unknown name."""
    with open_stores() as stores:
        chosen = [campaigns.get_campaign(stores.db, name=name) for name in names] or campaigns.list_campaigns(stores.db)
        plans = [
            CampaignPlan.model_validate(one.plan) for one in chosen if one.plan and one.state is CampaignState.ACTIVE
        ]
        return [plan for plan in plans if _has_more(stores, plan)]


@step()
def set_state(name: str, state: CampaignState, reason: str) -> dict[str, Any]:
    """Stop a campaign, or take it up again."""
    with open_stores() as stores:
        campaign = campaigns.get_campaign(stores.db, name=name)
        campaign.state = move(campaign.state, state)
        campaign.stopped_because = reason if state is CampaignState.STOPPED else ""
        stores.db.add(campaign)
        return {"campaign": name, "state": campaign.state.value, "because": campaign.stopped_because}


def plan_in(stores: Stores, plan: CampaignPlan) -> CampaignRun:
    """As plan_run, in the caller's transaction."""
    inputs = _look_up(stores, plan)
    campaign, plan_key = inputs.campaign, _plan_key(plan, inputs)
    campaign.plan = plan.model_dump()
    stores.db.add(campaign)
    last = campaigns.last_run(stores.db, plan_key=plan_key)
    coming = _next(stores, plan, inputs, last)
    if coming is None:
        if last is None:
            raise BadInput(_nothing_to_do(plan, campaign))
        return last
    if coming.round == 1:
        _check_budget(stores, plan, inputs, coming)
    return _add(stores, plan, inputs, plan_key, coming)


def pool_of(stores: Stores, run: CampaignRun) -> Pool:
    """What a run may choose from: the shards that were there when its series was planned."""
    encoder = stores.db.get_one(EncoderSpec, run.encoder_id)
    series = campaigns.series_shards(stores.db, run=run)
    rows = shards_of(stores, run.corpora, encoder)
    kept = [row for row in rows if (row.id in series if series else (row.id or 0) <= run.last_shard)]
    return open_pool(stores, kept, encoder, condition=run.condition)


def status(stores: Stores, plan: CampaignPlan) -> str:
    """Where the campaign stands, in a sentence."""
    inputs = _look_up(stores, plan)
    last = campaigns.last_run(stores.db, plan_key=_plan_key(plan, inputs))
    if inputs.campaign.state is CampaignState.STOPPED:
        return f"stopped: {inputs.campaign.stopped_because}; take it up with: dipnet campaign resume {plan.campaign}"
    if last is None or last.state is RunState.PLANNED:
        return "planned"
    place = f"round {last.round} of {plan.policy.rounds}" if plan.policy.rounds > 1 else "its round"
    if last.state is RunState.MINED:
        return f"{place} is mined, not sent"
    if last.state is RunState.SENT:
        return f"{place} waits for labels"
    if last.round < plan.policy.rounds:
        return f"{place} is labelled; the next can be run"
    return "its budget is spent and labelled" + ("; it stands until there are new shards" if plan.standing else "")


def _look_up(stores: Stores, plan: CampaignPlan) -> Inputs:
    issue = campaigns.get_issue(stores.db, name=plan.issue)
    campaigns.require_positive(issue, campaigns.exemplars_of(stores.db, issue_id=issue.id or 0))
    encoder = corpora.get_encoder(stores.db, name=plan.encoder or stores.settings.encoder)
    model = runs.get_model(stores.db, name=plan.model) if plan.model else None
    shards = shards_of(stores, plan.corpora, encoder)
    campaign = campaigns.ensure_campaign(stores.db, name=plan.campaign, issue=issue)
    return Inputs(issue, encoder, model, campaign, shards)


def shards_of(stores: Stores, corpus_names: Sequence[str], encoder: EncoderSpec) -> list[EmbeddedShard]:
    """Every embedded shard of these corpora, in order. Raises NotFound, or Incompatible for a corpus without vectors."""
    searched = [corpora.get_corpus(stores.db, name=name) for name in sorted(set(corpus_names))]
    return list(corpora.embedded_shards(stores.db, corpora=searched, encoder=encoder))


def _has_more(stores: Stores, plan: CampaignPlan) -> bool:
    inputs = _look_up(stores, plan)
    last = campaigns.last_run(stores.db, plan_key=_plan_key(plan, inputs))
    if last is not None and last.state in (RunState.PLANNED, RunState.MINED):
        return True  # it was killed on its way
    if last is not None and last.round < plan.policy.rounds:
        return last.state is RunState.LABELLED
    return plan.standing and bool(_unseen(stores, plan, inputs))


def _next(stores: Stores, plan: CampaignPlan, inputs: Inputs, last: CampaignRun | None) -> Next | None:
    """The round to come; None when the last one waits, or all is done, or the campaign has stopped."""
    if inputs.campaign.state is CampaignState.STOPPED:
        return None
    if last is not None and last.round < plan.policy.rounds:
        if last.state is not RunState.LABELLED or _stops(stores, plan, inputs.campaign):
            return None
        return Next(last.series, last.round + 1, [])
    if last is not None and last.state is RunState.PLANNED:
        return None
    fresh = _unseen(stores, plan, inputs)
    if last is None:
        return Next(1, 1, fresh) if fresh else None
    if not fresh or last.shards_key == _shards_key(fresh) or _stops(stores, plan, inputs.campaign):
        return None
    return Next(last.series + 1, 1, fresh)


def _stops(stores: Stores, plan: CampaignPlan, campaign: Campaign) -> bool:
    """Whether the campaign's stop rule ends it now; then it is stopped."""
    reason = progress.stop_reason(stores, campaign, plan.stop)
    if reason:
        campaign.state = move(campaign.state, CampaignState.STOPPED)
        campaign.stopped_because = reason
        stores.db.add(campaign)
    return bool(reason)


def _unseen(stores: Stores, plan: CampaignPlan, inputs: Inputs) -> list[EmbeddedShard]:
    """Shards to score: all, or for a standing campaign those that it has not scored under this issue and model."""
    if not plan.standing:
        return inputs.shards
    key = _watermark_key(inputs)
    seen = campaigns.watermarked(stores.db, campaign_id=inputs.campaign.id or 0, watermark_key=key)
    return [row for row in inputs.shards if row.id not in seen]


def _check_budget(stores: Stores, plan: CampaignPlan, inputs: Inputs, coming: Next) -> None:
    """A standing campaign takes what new shards offer; any other must have a pool for its budget."""
    pool = open_pool(stores, coming.shards, inputs.encoder, condition=plan.pool.condition)
    size = int(pool.sizes.sum())
    if plan.policy.budget > size and not plan.standing:
        filtered = f" that meet {plan.pool.condition}" if plan.pool.condition else ""
        raise BadInput(
            f"campaign '{plan.campaign}': a budget of {plan.policy.budget} is above the pool of {size} readable images in "
            f"{', '.join(plan.corpora)}{filtered}; lower --budget or add a corpus"
        )


def _add(stores: Stores, plan: CampaignPlan, inputs: Inputs, plan_key: str, coming: Next) -> CampaignRun:
    """The run's row and, at the start of a standing campaign's series, its watermarks."""
    before = campaigns.last_run(stores.db, plan_key=plan_key)
    later = before is not None and coming.round > 1
    run = CampaignRun(
        campaign_id=inputs.campaign.id or 0,
        key=_hash([plan_key, coming.series, coming.round]),
        plan_key=plan_key,
        series=coming.series,
        round=coming.round,
        shards_key=before.shards_key if before and later else _shards_key(coming.shards),
        last_shard=before.last_shard if before and later else max(row.id or 0 for row in coming.shards),
        encoder_id=inputs.encoder.id or 0,
        issue_version=inputs.issue.version,
        corpora=sorted(set(plan.corpora)),
        policy=plan.policy.model_dump(),
        condition=plan.pool.condition,
        model_id=inputs.model.id if inputs.model else None,
    )
    stores.db.add(run)
    stores.db.flush()
    if plan.standing:
        key, ids = _watermark_key(inputs), {"campaign_id": inputs.campaign.id or 0, "run_id": run.id or 0}
        stores.db.add_all(ScoredShard(embedded_shard_id=row.id or 0, watermark_key=key, **ids) for row in coming.shards)
    campaigns.advance_issue(stores.db, issue=inputs.issue, target=IssueState.COLLECTING)
    return run


def _nothing_to_do(plan: CampaignPlan, campaign: Campaign) -> str:
    if campaign.state is CampaignState.STOPPED:
        return (
            f"campaign '{plan.campaign}' has stopped ({campaign.stopped_because}); take it up again with: "
            f"dipnet campaign resume {plan.campaign}"
        )
    return f"campaign '{plan.campaign}' has scored every shard of {', '.join(plan.corpora)}; add images and embed them"


def _plan_key(plan: CampaignPlan, inputs: Inputs) -> str:
    """Hash of all that a person decided that bears on the outcome."""
    return _hash(
        {
            "campaign": plan.campaign,
            "issue": [plan.issue, inputs.issue.version],
            "policy": plan.policy.model_dump(),
            "pool": plan.pool.model_dump(),
            "corpora": sorted(set(plan.corpora)),
            "standing": plan.standing,
            "encoder": inputs.encoder.key,
            "model": inputs.model.weights_sha256 if inputs.model else "",
        }
    )


def _watermark_key(inputs: Inputs) -> str:
    """A change of these makes a standing campaign score everything again; a change of its budget does not."""
    model = inputs.model.weights_sha256 if inputs.model else ""
    return _hash([inputs.issue.name, inputs.issue.version, inputs.encoder.key, model])


def _shards_key(rows: Sequence[EmbeddedShard]) -> str:
    return _hash([row.vectors_sha256 for row in rows])


def _hash(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
