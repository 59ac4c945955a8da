"""From a planned run to candidates: score the pool, choose a batch, keep the reasons; or show it before anything is kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.campaign import Campaign, CampaignRun, Candidate
from models.corpus import EncoderSpec, Sample
from models.errors import BadInput
from models.learning import ModelVersion
from models.plans import SelectionPolicy
from models.states import RunState, move
from models.values import Mined
from storage import campaigns, corpora
from storage.stores import Stores, open_stores
from tasks import choosing, forecasting, heads, neighbours, probing, progress, scanning
from tasks.compute import classifier
from tasks.planning import pool_of
from tasks.pool import Pool
from tasks.steps import step


class Outcome(NamedTuple):
    """A mined run before it is told: what was looked for, where, and what was chosen."""

    run: CampaignRun
    aim: probing.Aim
    pool: Pool
    selected: choosing.Selected


@step()
def mine_candidates(run_id: int) -> Mined:
    """Propose the corpus elements that the run's policy prefers. Running it twice adds nothing."""
    with open_stores() as stores:
        run = campaigns.get_run(stores.db, run_id=run_id)
        if run.state is RunState.PLANNED:
            mine(stores, run)
        return mined(stores, run)


def mined(stores: Stores, run: CampaignRun) -> Mined:
    """What a run holds."""
    return Mined(
        run_id=run.id or 0,
        series=run.series,
        round=run.round,
        scanned=run.scanned,
        candidates=len(campaigns.candidates_of(stores.db, run_id=run.id or 0)),
        excluded=run.excluded,
        found=run.found,
    )


def mine(stores: Stores, run: CampaignRun) -> Outcome:
    """Load, choose, save, in the caller's transaction."""
    policy, encoder = SelectionPolicy.model_validate(run.policy), stores.db.get_one(EncoderSpec, run.encoder_id)
    pool = pool_of(stores, run)
    aim = probing.aim(stores, run, policy, pool)
    searched = neighbours.restrict(run, policy, pool, aim)
    case = choosing.Case(
        policy=policy,
        seed=policy.seed + 1_000 * (run.series - 1) + run.round - 1,
        pool=pool,
        barred=choosing.bar(stores, run, encoder, aim.shown.exemplars, across=policy.across_campaigns),
        scorer=aim.scorer,
        ranking=scanning.ranking(stores, run, aim.scorer, searched) if aim.scorer else None,
        classes_of=_classes_of(stores, run),
    )

    selected = choosing.choose(case, budget=policy.round_budget(run.round))

    if not len(selected.scores):
        raise BadInput(
            f"nothing is left to choose in {', '.join(run.corpora)}: {_told(selected.excluded)}; add a corpus"
        )
    save_candidates(stores, run, selected, aim.shown, version=aim.scorer.version if aim.scorer else "random-1")
    run.scanned, run.excluded = int(searched.sizes.sum()), selected.excluded
    run.scorer_key = probing.save(stores, run, aim.scorer) if aim.scorer else ""
    earlier = progress.hits_of_the_best(stores, stores.db.get_one(Campaign, run.campaign_id))
    run.found = forecasting.told(aim, selected, earlier, pool=run.scanned)
    run.state = move(run.state, RunState.MINED)
    stores.db.add(run)
    return Outcome(run, aim, pool, selected)


def save_candidates(
    stores: Stores, run: CampaignRun, selected: choosing.Selected, shown: probing.Shown, *, version: str
) -> None:
    """Candidates with the reasons for each, and the samples that they refer to."""
    taken = selected.taken
    corpora.ensure_samples(
        stores.db,
        samples=[
            Sample(id=sample_id, uri=uri, shard_id=shard_id)
            for sample_id, uri, shard_id in zip(taken.sample_ids, taken.uris, taken.shard_ids, strict=True)
        ],
    )
    cosines = taken.vectors @ shown.exemplars.positive.T
    predicted = _predictions(stores, run, taken.vectors)
    stores.db.add_all(
        Candidate(
            run_id=run.id or 0,
            sample_id=sample_id,
            rank=rank,
            score=float(selected.scores[rank]),
            score_version=version,
            nearest_exemplar=shown.sample_ids[int(cosines[rank].argmax())],
            similarity=float(cosines[rank].max()),
            prototype=int(selected.prototypes[rank]),
            near_duplicates=int(selected.stands_for[rank]),
            arm=selected.arms[rank],
            predicted_class=predicted[rank][0],
            predicted_probability=predicted[rank][1],
        )
        for rank, sample_id in enumerate(taken.sample_ids)
    )


def _classes_of(stores: Stores, run: CampaignRun) -> choosing.ClassesOf | None:
    """What the run's model takes vectors for; None without a model."""
    if run.model_id is None:
        return None
    return lambda vectors: [name for name, _ in _predictions(stores, run, vectors)]


def _predictions(stores: Stores, run: CampaignRun, vectors: NDArray[np.float32]) -> list[tuple[str, float]]:
    """The run's model's class and probability for each vector; empty without a model."""
    if run.model_id is None:
        return [("", 0.0)] * len(vectors)
    model = stores.db.get_one(ModelVersion, run.model_id)
    found = classifier.probabilities(heads.load(stores, model), vectors)
    return [(model.class_names[int(row.argmax())], float(row.max())) for row in found]


def _told(excluded: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(excluded.items())) or "the pool is empty"
