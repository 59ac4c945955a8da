"""Scoring at the source: active campaigns leave as a small file, and what a collection process kept comes back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.campaign import Campaign, CampaignRun
from models.corpus import EncoderSpec
from models.errors import BadInput
from models.plans import CampaignPlan, SelectionPolicy
from models.states import Arm, CampaignState, RunState, move
from models.values import Collected, Sent
from storage import campaigns
from storage.stores import Stores, open_stores
from tasks import choosing, mining, planning, probing, routing
from tasks.compute import portable
from tasks.outputs import require_place
from tasks.pool import Pool
from tasks.steps import step

TOLERANCE = 1e-3  # of a score: vectors made on another machine round otherwise


@step()
def export(path: Path, names: Sequence[str]) -> list[str]:
    """Write the newest probes and thresholds of active campaigns, of these or of all. Returns the names of those written."""
    require_place(path)
    with open_stores() as stores:
        chosen = [campaigns.get_campaign(stores.db, name=name) for name in names] or [
            campaign for campaign in campaigns.list_campaigns(stores.db) if campaign.state is CampaignState.ACTIVE
        ]
        pairs = [(campaign, _probed_run(stores, campaign)) for campaign in chosen]
        exported = [_exported(stores, campaign, run) for campaign, run in pairs if run is not None]
    if not exported:
        told = ", ".join(names) or "no campaign is active"
        raise BadInput(
            f"nothing to export ({told}): a campaign has probes once it is mined; see: dipnet campaign run --help"
        )
    portable.write_campaigns(path, exported)
    return [one.campaign for one in exported]


@step()
def collect(path: Path, *, apply: bool) -> Collected:
    """Take what a collection process kept as candidates; without `apply`, say what would be taken. Twice adds nothing.

    The images must lie in the campaign's corpora, embedded: a URI from outside is looked up there and never opened.
    Raises BadInput for a file that is not ours, or of a run that is not here.
    """
    try:
        kept = portable.read_kept(path)
    except ValueError as problem:
        raise BadInput(f"{problem}; give the file that the scorer's write_kept wrote") from None
    with open_stores() as stores:
        collected, run_id = _collect(stores, kept, hashlib.sha256(path.read_bytes()).hexdigest())
        if not apply:
            stores.db.rollback()
    return collected.model_copy(update={"run_id": run_id if apply else 0})


def _collect(stores: Stores, kept: portable.Kept, digest: str) -> tuple[Collected, int]:
    origin = campaigns.find_run(stores.db, key=kept.run)
    if origin is None:
        raise BadInput(f"the file was kept for a run of campaign '{kept.campaign}' that is not here; export it again")
    found = campaigns.last_run(stores.db, plan_key=_plan_key(origin, digest))
    run = found or _run(stores, origin, digest)
    pool = planning.pool_of(stores, run)
    known, places = _rows_of(pool, kept.uris)
    inside = pool.allows(known)
    rows, scores = known[inside], kept.scores[places][inside]
    case = _case(stores, run, origin, pool)

    same = _scored_alike(case, pool, rows, scores)
    selected = choosing.choose_among(case, rows[same], budget=case.policy.budget)

    collected = Collected(
        campaign=kept.campaign,
        seen=kept.seen,
        kept=len(kept.uris),
        unknown=len(kept.uris) - len(known),
        filtered=int((~inside).sum()),
        scored_otherwise=int((~same).sum()),
        new=len(selected.scores),
        duplicate=int(same.sum()) - len(selected.scores),
        excluded=selected.excluded,
    )
    if run.state is RunState.PLANNED and len(selected.scores):
        _save(stores, run, origin, selected, seen=kept.seen)
    return collected, run.id or 0


def _case(stores: Stores, run: CampaignRun, origin: CampaignRun, pool: Pool) -> choosing.Case:
    """The origin's probes, and all that is barred by now."""
    campaign = stores.db.get_one(Campaign, run.campaign_id)
    return choosing.Case(
        policy=SelectionPolicy.model_validate(run.policy),
        seed=0,
        pool=pool,
        barred=choosing.bar(stores, campaign, run, probing.shown_of(stores, run).exemplars, across=True),
        scorer=probing.load(stores, origin),
        ranking=None,
        classes_of=None,
    )


def _save(stores: Stores, run: CampaignRun, origin: CampaignRun, selected: choosing.Selected, *, seen: int) -> None:
    """The run with its candidates. One of which nothing is new is never added: it could not be sent or completed."""
    run.scanned, run.excluded, run.scorer_key = seen, selected.excluded, origin.scorer_key
    run.state = move(run.state, RunState.MINED)
    stores.db.add(run)
    stores.db.flush()
    version = probing.load(stores, origin).version
    mining.save_candidates(stores, run, selected, probing.shown_of(stores, run), version=version)


def _probed_run(stores: Stores, campaign: Campaign) -> CampaignRun | None:
    """A campaign's newest run that has probes."""
    found = [run for run in campaigns.runs_of(stores.db, campaign_id=campaign.id or 0) if run.scorer_key]
    return found[-1] if found else None


def _exported(stores: Stores, campaign: Campaign, run: CampaignRun) -> portable.Exported:
    """The threshold is the policy's or, where that says nothing, the score of the last that was chosen for its score."""
    policy = SelectionPolicy.model_validate(run.policy)
    best = [c.score for c in campaigns.candidates_of(stores.db, run_id=run.id or 0) if c.arm is Arm.EXPLOIT]
    encoder = stores.db.get_one(EncoderSpec, run.encoder_id)
    least = policy.min_score or min(best, default=0.5)
    return portable.Exported(campaign.name, run.key, encoder.key, least, probing.load(stores, run))


def _rows_of(pool: Pool, uris: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the pool with these URIs, and the place of each among the URIs; the first row of a URI counts."""
    wanted = {uri: place for place, uri in reversed(list(enumerate(uris)))}
    column, rows, places, first = pa.array(list(wanted), pa.string()), [], [], 0
    for shard in pool.shards:
        found = shard.ids.column("uri")
        hits = np.flatnonzero(pc.is_in(found, value_set=column).to_numpy(zero_copy_only=False))
        for inside in hits.tolist():
            place = wanted.pop(found[inside].as_py(), None)
            if place is not None:
                rows.append(first + inside)
                places.append(place)
        first += len(shard)
    return np.asarray(rows, dtype=np.int64), np.asarray(places, dtype=np.int64)


def _scored_alike(
    case: choosing.Case, pool: Pool, rows: NDArray[np.int64], scores: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether our vectors score as the collector's did; those of another encoder do not."""
    if case.scorer is None:
        raise BadInput("this run was drawn by chance and has no probes; export another campaign")
    ours = portable.score(case.scorer, pool.take(rows).vectors).scores
    result: NDArray[np.bool_] = np.abs(ours - scores) <= TOLERANCE
    return result


def _plan_key(origin: CampaignRun, digest: str) -> str:
    return hashlib.sha256(f"collected:{origin.key}:{digest}".encode()).hexdigest()


def _run(stores: Stores, origin: CampaignRun, digest: str) -> CampaignRun:
    """A run beside the campaign's rounds, for what one file collected: all shards there are now, under the same filter."""
    campaign = stores.db.get_one(Campaign, origin.campaign_id)
    encoder = stores.db.get_one(EncoderSpec, origin.encoder_id)
    shards = planning.shards_of(stores, CampaignPlan.model_validate(campaign.plan).corpora, encoder)
    return CampaignRun(
        campaign_id=origin.campaign_id,
        key=_plan_key(origin, digest),
        plan_key=_plan_key(origin, digest),
        series=1,
        round=1,
        shards_key=digest,
        last_shard=max(row.id or 0 for row in shards),
        encoder_id=origin.encoder_id,
        issue_version=origin.issue_version,
        corpora=origin.corpora,
        policy=origin.policy,
        condition=origin.condition,
        model_id=origin.model_id,
        state=RunState.PLANNED,
    )


def send(run_id: int) -> Sent:
    """Send a collected run's candidates to be labelled, as its campaign would; a run without any is left as it is."""
    with open_stores() as stores:
        found = campaigns.candidates_of(stores.db, run_id=run_id)
        if not found:
            return Sent(run_id=run_id, batch_id=0, project="", sent=0, note="nothing is new: there is nothing to send")
        campaign = stores.db.get_one(Campaign, campaigns.get_run(stores.db, run_id=run_id).campaign_id)
        plan = CampaignPlan.model_validate(campaign.plan)
    return routing.send_batch(routing.prepare_batch(run_id, plan))
