"""From an issue's exemplars to candidates: plan the run, scan, exclude, choose, keep the reasons."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.campaign import Campaign, CampaignRun, Candidate
from models.corpus import EncoderSpec, Sample
from models.errors import BadInput
from models.learning import ModelVersion
from models.states import Arm, IssueState, RunState, Split, move
from models.values import CampaignPlan, Mined, SelectionPolicy
from storage import campaigns, corpora, labels, runs, vectors
from storage.stores import Stores, open_stores
from tasks import features, heads
from tasks.compute import classifier, scan, scoring, selection
from tasks.compute.scan import Ranked
from tasks.steps import step

BACKGROUND_ROWS = 20_000


class Exemplars(NamedTuple):
    """An issue's exemplars as unit vectors."""

    sample_ids: list[str]  # of the positive ones
    positive: NDArray[np.float32]  # (p, dim)
    negative: NDArray[np.float32]  # (q, dim)


class Barred(NamedTuple):
    """What must not be chosen: known samples by reason, and vectors that nothing may come close to."""

    reasons: dict[str, str]  # sample id → reason
    evaluation: NDArray[np.float32]  # (m, dim)


class Selected(NamedTuple):
    """Chosen elements, best first, with their scores, and what was left out by reason."""

    taken: vectors.Taken
    scores: NDArray[np.float32]  # (k,)
    stands_for: NDArray[np.int64]  # (k,)
    excluded: dict[str, int]


@step()
def plan_run(plan: CampaignPlan) -> int:
    """The run that these inputs make, new or found again; its id. Raises BadInput for a plan that cannot work."""
    with open_stores() as stores:
        issue = campaigns.get_issue(stores.db, name=plan.issue)
        exemplars = campaigns.exemplars_of(stores.db, issue_id=issue.id or 0)
        campaigns.require_positive(issue, exemplars)
        encoder = corpora.get_encoder(stores.db, name=plan.encoder or stores.settings.encoder)
        searched = [corpora.get_corpus(stores.db, name=name) for name in sorted(set(plan.corpora))]
        rows = corpora.embedded_shards(stores.db, corpora=searched, encoder=encoder)
        _check_budget(plan, sum(row.readable for row in rows))
        model = runs.get_model(stores.db, name=plan.model) if plan.model else None

        key = _run_key(plan, issue.version, encoder, [row.vectors_sha256 for row in rows], model)

        run = campaigns.find_run(stores.db, key=key)
        if run is None:
            campaign = campaigns.ensure_campaign(stores.db, name=plan.campaign, issue=issue)
            run = CampaignRun(
                campaign_id=campaign.id or 0,
                key=key,
                encoder_id=encoder.id or 0,
                issue_version=issue.version,
                corpora=[corpus.name for corpus in searched],
                policy=plan.policy.model_dump(),
                model_id=model.id if model else None,
            )
            stores.db.add(run)
            campaigns.advance_issue(stores.db, issue=issue, target=IssueState.COLLECTING)
    return run.id or 0


@step()
def mine_candidates(run_id: int) -> Mined:
    """Propose the corpus elements that the run's policy prefers. Running it twice adds nothing."""
    with open_stores() as stores:
        run = campaigns.get_run(stores.db, run_id=run_id)
        if run.state is RunState.PLANNED:
            _mine(stores, run)
        known = len(campaigns.candidates_of(stores.db, run_id=run_id))
    return Mined(run_id=run_id, scanned=run.scanned, candidates=known, excluded=run.excluded)


def _mine(stores: Stores, run: CampaignRun) -> None:
    """Load, choose, save, in the caller's transaction."""
    policy, encoder = SelectionPolicy.model_validate(run.policy), stores.db.get_one(EncoderSpec, run.encoder_id)
    searched = [corpora.get_corpus(stores.db, name=name) for name in run.corpora]
    rows = corpora.embedded_shards(stores.db, corpora=searched, encoder=encoder)
    shards = features.open_shards(stores, rows, encoder)
    exemplars, barred = _exemplars(stores, run, encoder), _barred(stores, run, encoder)

    probe = _probe(policy, exemplars, shards)
    selected = _select(policy, probe, shards, barred, dim=encoder.dim)
    if not len(selected.scores):
        raise BadInput(
            f"nothing is left to choose in {', '.join(run.corpora)}: {_told(selected.excluded)}; add a corpus"
        )

    _save(stores, run, selected, exemplars, version=probe.version if probe else "random-1")
    run.scanned, run.excluded = sum(len(shard) for shard in shards), selected.excluded
    run.state = move(run.state, RunState.MINED)
    stores.db.add(run)


def _check_budget(plan: CampaignPlan, pool: int) -> None:
    if plan.policy.budget > pool:
        raise BadInput(
            f"campaign '{plan.campaign}': a budget of {plan.policy.budget} is above the pool of {pool} readable images in "
            f"{', '.join(plan.corpora)}; lower --budget or add a corpus"
        )


def _run_key(
    plan: CampaignPlan, issue_version: int, encoder: EncoderSpec, shards: Sequence[str], model: ModelVersion | None
) -> str:
    """Hash of all that determines the outcome of a run."""
    inputs = {
        "campaign": plan.campaign,
        "issue": [plan.issue, issue_version],
        "policy": plan.policy.model_dump(),
        "encoder": encoder.key,
        "shards": list(shards),
        "model": model.weights_sha256 if model else "",
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _exemplars(stores: Stores, run: CampaignRun, encoder: EncoderSpec) -> Exemplars:
    campaign = stores.db.get_one(Campaign, run.campaign_id)
    pairs = campaigns.exemplars_of(stores.db, issue_id=campaign.issue_id)
    positive = [sample for exemplar, sample in pairs if exemplar.positive]
    negative = [sample for exemplar, sample in pairs if not exemplar.positive]
    return Exemplars(
        [sample.id for sample in positive],
        features.of_samples(stores, positive, encoder),
        features.of_samples(stores, negative, encoder),
    )


def _barred(stores: Stores, run: CampaignRun, encoder: EncoderSpec) -> Barred:
    """Evaluation data and labelled data by id and, for evaluation data, by likeness; and what the campaign has decided."""
    reasons = dict.fromkeys(
        campaigns.decided_samples(stores.db, campaign_id=run.campaign_id, but_run=run.id or 0),
        "decided in this campaign",
    )
    reasons |= dict.fromkeys(labels.labelled_samples(stores.db), "labelled already")
    kept_apart: list[Sample] = []
    for split in (Split.DEVELOPMENT, Split.HOLDOUT):
        held = corpora.list_corpora(stores.db, split=split)
        kept_apart += [sample for _, sample in labels.labels_of_corpora(stores.db, corpora=held)]
    unique = list({sample.id: sample for sample in kept_apart}.values())
    reasons |= dict.fromkeys((sample.id for sample in unique), "evaluation data")
    return Barred(reasons, features.known_vectors(stores, unique, encoder))


def _probe(
    policy: SelectionPolicy, exemplars: Exemplars, shards: Sequence[vectors.VectorShard]
) -> scoring.Probe | None:
    """What to scan with; None for the random strategy."""
    if policy.strategy == "random":
        return None
    if policy.strategy == "nearest":
        return scoring.nearest_exemplar(exemplars.positive)
    behind = scoring.background([shard.vectors for shard in shards], rows=BACKGROUND_ROWS, seed=policy.seed)
    return scoring.whitened_lda(exemplars.positive, exemplars.negative, behind, shrinkage=policy.shrinkage)


def _rank(
    policy: SelectionPolicy, probe: scoring.Probe | None, shards: Sequence[vectors.VectorShard], *, keep: int
) -> Ranked:
    """The best rows of all shards, or a random order of them with equal scores."""
    if probe is None:
        total = sum(len(shard) for shard in shards)
        rows = np.random.default_rng(policy.seed).permutation(total)[:keep]
        return Ranked(rows, np.zeros(len(rows), np.float32))
    ranked = scan.best(probe.vectors, (shard.vectors for shard in shards), keep=keep)
    return ranked._replace(scores=ranked.scores - np.float32(probe.offset))


def _select(
    policy: SelectionPolicy,
    probe: scoring.Probe | None,
    shards: Sequence[vectors.VectorShard],
    barred: Barred,
    *,
    dim: int,
) -> Selected:
    """Look deeper down the ranking until the budget is met or the pool ends."""
    total, keep = sum(len(shard) for shard in shards), max(1_000, 4 * policy.budget)
    while True:
        ranked = _rank(policy, probe, shards, keep=min(keep, total))
        selected = _choose(policy, ranked, vectors.take(shards, ranked.rows, dim=dim), barred)
        if len(selected.scores) == policy.budget or keep >= total:
            return selected
        keep *= 4


def _choose(policy: SelectionPolicy, ranked: Ranked, taken: vectors.Taken, barred: Barred) -> Selected:
    """Leave out what is barred or seen before, then near-duplicates; only what ranks above the last choice is counted."""
    reasons = [barred.reasons.get(sample_id, "") for sample_id in taken.sample_ids]
    leaks = selection.too_close(taken.vectors, barred.evaluation, cosine=policy.leak_cosine)
    seen: set[str] = set()
    for place, sample_id in enumerate(taken.sample_ids):
        if not reasons[place] and leaks[place]:
            reasons[place] = "near-duplicate of evaluation data"
        elif not reasons[place] and sample_id in seen:
            reasons[place] = "the same bytes again"
        seen.add(sample_id)
    free = np.flatnonzero([not reason for reason in reasons])
    chosen = selection.choose(
        taken.vectors[free], budget=policy.budget, near_duplicate_cosine=policy.near_duplicate_cosine
    )
    places = free[chosen.places]
    reach = int(places[-1]) if len(places) == policy.budget else len(reasons)
    excluded = Counter(reason for reason in reasons[:reach] if reason)
    if chosen.near_duplicates:
        excluded["near-duplicate of a candidate"] = chosen.near_duplicates
    return Selected(taken.at(places), ranked.scores[places], chosen.stands_for, dict(excluded))


def _save(stores: Stores, run: CampaignRun, selected: Selected, exemplars: Exemplars, *, version: str) -> None:
    """Candidates with the reasons for each, and the samples that they refer to."""
    taken = selected.taken
    corpora.ensure_samples(
        stores.db,
        samples=[
            Sample(id=sample_id, uri=uri, shard_id=shard_id)
            for sample_id, uri, shard_id in zip(taken.sample_ids, taken.uris, taken.shard_ids, strict=True)
        ],
    )
    cosines = taken.vectors @ exemplars.positive.T
    predicted = _predictions(stores, run, taken.vectors)
    stores.db.add_all(
        Candidate(
            run_id=run.id or 0,
            sample_id=sample_id,
            rank=rank,
            score=float(selected.scores[rank]),
            score_version=version,
            nearest_exemplar=exemplars.sample_ids[int(cosines[rank].argmax())],
            similarity=float(cosines[rank].max()),
            near_duplicates=int(selected.stands_for[rank]),
            arm=Arm.RANDOM if version == "random-1" else Arm.EXPLOIT,
            predicted_class=predicted[rank][0],
            predicted_probability=predicted[rank][1],
        )
        for rank, sample_id in enumerate(taken.sample_ids)
    )


def _predictions(stores: Stores, run: CampaignRun, features_: NDArray[np.float32]) -> list[tuple[str, float]]:
    """The run's model's class and probability for each vector; empty without a model."""
    if run.model_id is None:
        return [("", 0.0)] * len(features_)
    model = stores.db.get_one(ModelVersion, run.model_id)
    found = classifier.probabilities(heads.load(stores, model), features_)
    return [(model.class_names[int(row.argmax())], float(row.max())) for row in found]


def _told(excluded: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(excluded.items())) or "the pool is empty"
