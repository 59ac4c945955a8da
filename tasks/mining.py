"""From a planned run to candidates: score the pool, choose a batch, keep the reasons; or show it before anything is kept."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.campaign import Campaign, CampaignRun, Candidate
from models.corpus import Sample
from models.elements import apart
from models.errors import BadInput
from models.learning import ModelVersion
from models.plans import SelectionPolicy
from models.states import RunState, move
from models.values import Mined
from storage import campaigns, corpora
from storage.stores import Stores, open_stores
from tasks import choosing, forecasting, heads, neighbours, planning, probing, progress, scanning
from tasks.steps import step


class Outcome(NamedTuple):
    """A mined run before it is told: what was looked for, where, and what was chosen."""

    run: CampaignRun
    aim: probing.Aim
    selected: choosing.Selected
    scanned: int
    found: dict[str, Any]


@step()
def mine_candidates(run_id: int) -> Mined:
    """Propose the corpus elements that the run's policy prefers. Running it twice adds nothing.

    Raises BadInput for what cannot be mined; the plan of it is withdrawn, so that another finds nothing in its way.
    """
    with open_stores() as stores:
        run = campaigns.get_run(stores.db, run_id=run_id)
        if run.state is RunState.PLANNED:
            try:
                outcome = choose(stores, stores.db.get_one(Campaign, run.campaign_id), run)
            except BadInput:
                planning.withdraw(stores, run)
                scanning.forget(stores, run)
                raise
            _keep(stores, outcome)
        mined = _mined(stores, run)
    scanning.forget(stores, run)  # not before the candidates are committed
    return mined


def _mined(stores: Stores, run: CampaignRun) -> Mined:
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


def told(outcome: Outcome) -> Mined:
    """What a run would hold."""
    return Mined(
        run_id=outcome.run.id or 0,
        series=outcome.run.series,
        round=outcome.run.round,
        scanned=outcome.scanned,
        candidates=len(outcome.selected.scores),
        excluded=outcome.selected.excluded,
        found=outcome.found,
    )


def choose(stores: Stores, campaign: Campaign, run: CampaignRun) -> Outcome:
    """What a planned run would hold. Writes nothing to the database, and needs neither row to be there.

    Raises BadInput when there is nothing to choose at all; later rounds, and campaigns that stand, may find nothing.
    """
    policy, pool = SelectionPolicy.model_validate(run.policy), planning.pool_of(stores, run)
    aim = probing.aim(stores, campaign, run, planning.corpora_of(stores, run))
    searched = neighbours.restrict(run, policy, pool, aim)
    case = choosing.Case(
        policy=policy,
        seed=policy.seed + 1_000 * (run.series - 1) + run.round - 1,
        pool=pool,
        barred=choosing.bar(stores, campaign, run, aim.shown.exemplars, across=policy.across_campaigns),
        scorer=aim.scorer,
        ranking=scanning.ranking(stores, run, aim.scorer, searched) if aim.scorer else None,
        classes_of=_classes_of(stores, run),
        contrast=aim.probes.contrast if aim.probes else None,
    )

    selected = choosing.choose(case, budget=run.budget)

    if not len(selected.scores) and run.round == 1 and not run.watermark_key:
        raise BadInput(
            f"nothing is left to choose in {', '.join(run.corpora)}: {planning.told(selected.excluded)}; add a corpus"
        )
    scanned, earlier = int(searched.sizes.sum()), progress.hits_of_the_best(stores, campaign)
    found = run.found | forecasting.told(aim, selected, earlier, pool=scanned)  # planning has looked at its exemplars
    return Outcome(run, aim, selected, scanned, found)


def _keep(stores: Stores, outcome: Outcome) -> None:
    """Candidates, what the run found, and that its shards are scored: all of it, or nothing."""
    run, aim, selected = outcome.run, outcome.aim, outcome.selected
    if len(selected.scores):
        save_candidates(stores, run, selected, aim.shown, version=aim.scorer.version if aim.scorer else "random-1")
    campaigns.add_watermarks(stores.db, run=run)
    run.scanned, run.excluded, run.found = outcome.scanned, selected.excluded, outcome.found
    run.scorer_key = probing.save(stores, run, aim.scorer) if aim.scorer else ""
    run.state = move(run.state, RunState.MINED if len(selected.scores) else RunState.EMPTY)
    stores.db.add(run)


def save_candidates(
    stores: Stores, run: CampaignRun, selected: choosing.Selected, shown: probing.Shown, *, version: str
) -> None:
    """Candidates with the reasons for each, and the samples that they refer to."""
    taken = selected.taken
    corpora.ensure_samples(
        stores.db,
        samples=[
            Sample(id=sample_id, uri=uri, shard_id=shard_id, image_id=apart(sample_id, image_id))
            for sample_id, uri, shard_id, image_id in zip(
                taken.sample_ids, taken.uris, taken.shard_ids, taken.image_ids, strict=True
            )
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
            nearest_exemplar=shown.sample_ids[int(cosines[rank].argmax())] if shown.sample_ids else "",
            similarity=float(cosines[rank].max(initial=-1.0)),
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
    found = heads.probabilities(heads.load(stores, model), vectors)
    return [(model.class_names[int(row.argmax())], float(row.max())) for row in found]
