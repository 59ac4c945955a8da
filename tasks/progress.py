"""How a campaign does: what each round found and cost, what the next hit will cost, what the random arm says is missed."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from models.campaign import Campaign, CampaignRun, Issue
from models.corpus import EncoderSpec
from models.plans import CampaignPlan, StopRule
from models.states import Arm, RequestState
from models.values import Progress, Round
from storage import campaigns, corpora, labels
from storage.stores import Stores, open_stores
from tasks import costs
from tasks.compute import outlook, prevalence
from tasks.steps import step

ELIGIBLE = "random_arm_of"  # in a run's `found`: how many rows its random arm was drawn from


class Answered(NamedTuple):
    """The labels of one run: hits are those of the issue's class."""

    run: CampaignRun
    labels: int
    hits: int
    seconds: float  # as told by lead times
    timed: int  # answers that have a lead time
    answers: int  # of all annotators, to golden items too
    drawn: int  # labels of the random arm
    drawn_hits: int
    best: int  # labels of the exploit arm
    best_hits: int
    hits_in: Counter[int | None]  # hits by the shard that their image was first found in


@step()
def progress(campaign_name: str) -> Progress:
    """Hits per label by round with intervals, the cost so far, the cost of the next hit, and what was missed."""
    with open_stores() as stores:
        campaign = campaigns.get_campaign(stores.db, name=campaign_name)
        rule = CampaignPlan.model_validate(campaign.plan).stop if campaign.plan else StopRule()
        rounds = _answered(stores, campaign)
        minutes = _minutes_per_label(rounds, rule)
        told = [_round(one, minutes, rule) for one in rounds]
        pools = _pools(stores, rounds)
        return Progress(
            campaign=campaign_name,
            state=campaign.state.value,
            labels=sum(one.labels for one in rounds),
            hits=sum(one.hits for one in rounds),
            minutes=sum(one.minutes for one in told),
            cost=sum(one.cost for one in told),
            rounds=told,
            next_hit=_told(_next_hit(rounds, _minutes_per_resolved(rounds, rule), rule)),
            prevalence=_told(prevalence.prevalence(pools)),
            missed=_told(prevalence.missed(pools)),
            stop=campaign.stopped_because or stop_reason(stores, campaign, rule),
        )


def stop_reason(stores: Stores, campaign: Campaign, rule: StopRule) -> str:
    """Why the campaign should end now; '' when it should not."""
    rounds = _answered(stores, campaign)
    return outlook.stop_reason(
        _last_rate(rounds),
        _next_hit(rounds, _minutes_per_resolved(rounds, rule), rule),
        labels=sum(one.labels for one in rounds),
        min_yield=rule.min_yield,
        max_cost=rule.max_cost_per_hit,
        max_labels=rule.max_labels,
    )


def hits_of_the_best(stores: Stores, campaign: Campaign) -> list[tuple[int, int]]:
    """Hits and labels of the exploit arm, a pair a run that has labels, oldest first."""
    return [(one.best_hits, one.best) for one in _answered(stores, campaign) if one.best]


def _answered(stores: Stores, campaign: Campaign) -> list[Answered]:
    """A row a run of the campaign, oldest first."""
    class_name = stores.db.get_one(Issue, campaign.issue_id).class_name
    return [_of_run(stores, run, class_name) for run in campaigns.runs_of(stores.db, campaign_id=campaign.id or 0)]


def _of_run(stores: Stores, run: CampaignRun, class_name: str) -> Answered:
    batch = labels.find_batch(stores.db, run_id=run.id or 0)
    resolved = labels.resolved_of_batches(stores.db, batches=[batch]) if batch else []
    shards = {sample.id: sample.shard_id for _, sample in resolved}
    labelled = {sample.id: request for request, sample in resolved if request.state is RequestState.LABELLED}
    hits = {name for name, request in labelled.items() if request.names(class_name)}
    arms = {c.sample_id: c.arm for c in campaigns.candidates_of(stores.db, run_id=run.id or 0)}
    drawn, best = ({name for name in labelled if arms.get(name) is arm} for arm in (Arm.RANDOM, Arm.EXPLOIT))
    spent = costs.of_batch(stores, batch) if batch else costs.NOTHING
    return Answered(
        run,
        labels=len(labelled),
        hits=len(hits),
        seconds=spent.seconds,
        timed=spent.timed,
        answers=spent.answers,
        drawn=len(drawn),
        drawn_hits=len(drawn & hits),
        best=len(best),
        best_hits=len(best & hits),
        hits_in=Counter(shard_id for name, shard_id in shards.items() if name in hits),
    )


def _pools(stores: Stores, rounds: list[Answered]) -> list[list[prevalence.Drawn]]:
    """The random arms of each series, newest first. A series whose shards a newer one has looked at again is left out.

    So the pools are disjoint: a standing campaign's series add up, and a campaign that begins again on a grown corpus
    counts once. Collected runs have no random arm.
    """
    pools: list[list[prevalence.Drawn]] = []
    counted: set[int] = set()
    for series in reversed(_by_series([one for one in rounds if ELIGIBLE in one.run.found])):
        shards = _shards(stores, series[0].run)
        if any(one.drawn for one in series) and not shards & counted:
            counted |= shards
            pools.append([_drawn(one, series, rounds, shards) for one in series])
    return pools


def _by_series(rounds: list[Answered]) -> list[list[Answered]]:
    series: dict[tuple[str, int], list[Answered]] = {}
    for one in rounds:
        series.setdefault((one.run.plan_key, one.run.series), []).append(one)
    return list(series.values())


def _shards(stores: Stores, run: CampaignRun) -> set[int]:
    """Shards that a run's series could choose from."""
    encoder = stores.db.get_one(EncoderSpec, run.encoder_id)
    searched = [corpora.get_corpus(stores.db, name=name) for name in run.corpora]
    rows = corpora.embedded_shards(stores.db, corpora=searched, encoder=encoder)
    return {row.shard_id for row in rows if (row.id in run.shards if run.shards else (row.id or 0) <= run.last_shard)}


def _drawn(one: Answered, series: list[Answered], rounds: list[Answered], shards: set[int]) -> prevalence.Drawn:
    """A round's random arm, and the hits of its pool that the campaign found since, collected ones included."""
    own = {other.run.id for other in series}
    since = [other for other in rounds if (other.run.id or 0) >= (one.run.id or 0)]
    found = sum(
        count
        for other in since
        for shard_id, count in other.hits_in.items()
        if other.run.id in own or shard_id in shards
    )
    of = one.run.found[ELIGIBLE]
    return prevalence.Drawn(one.drawn_hits, one.drawn, of["rows"], of["error"], found)


def _round(one: Answered, minutes: float, rule: StopRule) -> Round:
    share = outlook.rate(one.hits, one.labels)
    spent = one.seconds / 60 + (one.answers - one.timed) * minutes
    return Round(
        run_id=one.run.id or 0,
        series=one.run.series,
        round=one.run.round,
        state=one.run.state.value,
        labels=one.labels,
        hits=one.hits,
        low=round(share.low, 4),
        high=round(share.high, 4),
        minutes=round(spent, 2),
        cost=round(spent / 60 * rule.rate_per_hour, 2),
    )


def _last_rate(rounds: list[Answered]) -> outlook.Rate:
    """Of the newest round that has labels; what was collected elsewhere says nothing of the next one."""
    told = [one for one in rounds if one.labels and one.run.key != one.run.plan_key]
    return outlook.rate(told[-1].hits, told[-1].labels) if told else outlook.rate(0, 0)


def _next_hit(rounds: list[Answered], minutes: float, rule: StopRule) -> outlook.Cost:
    return outlook.next_hit(_last_rate(rounds), minutes_per_label=minutes, rate_per_hour=rule.rate_per_hour)


def _minutes_per_label(rounds: list[Answered], rule: StopRule) -> float:
    """By lead times where there are any, else what the rule says."""
    timed = sum(one.timed for one in rounds)
    return sum(one.seconds for one in rounds) / 60 / timed if timed else rule.minutes_per_label


def _minutes_per_resolved(rounds: list[Answered], rule: StopRule) -> float:
    """What an image takes: several opinions, skips and golden items cost their time too."""
    resolved, answers = sum(one.labels for one in rounds), sum(one.answers for one in rounds)
    return _minutes_per_label(rounds, rule) * (max(1.0, answers / resolved) if resolved else 1.0)


def _told(found: outlook.Rate | outlook.Cost) -> dict[str, float]:
    """By name, without what is unknown: JSON has no NaN."""
    return {name: round(value, 4) for name, value in found._asdict().items() if math.isfinite(value)}
