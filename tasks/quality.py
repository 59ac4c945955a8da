"""What a batch's answers are worth: agreement, golden items, the model against annotators; and what they cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from models.campaign import Campaign, CampaignRun
from models.errors import BadInput
from models.labeling import Label, LabelBatch, LabelProject, LabelRequest
from models.plans import CampaignPlan, StopRule
from models.states import BatchState, RequestState
from models.values import AnnotatorQuality, BatchQuality, ClassQuality, Share
from storage import campaigns, labels
from storage.stores import Stores, open_stores
from tasks import costs, resolving
from tasks.compute import agreement, outlook
from tasks.resolving import counts, named

RESAMPLES, SEED = 2_000, 0
Row = dict[str, Any]


def batch_rows(campaign_names: Sequence[str]) -> list[Row]:
    """A row a batch, of these campaigns or of all: how far it is, and what it cost."""
    with open_stores() as stores:
        for name in campaign_names:
            campaigns.get_campaign(stores.db, name=name)
        return [_row(stores, batch) for batch in labels.batches_of(stores.db, campaigns=campaign_names)]


def of_batch(batch_id: int) -> BatchQuality:
    """Everything that is known of a batch's quality and cost. Raises NotFound."""
    with open_stores() as stores:
        return _quality(stores, labels.get_batch(stores.db, batch_id=batch_id))


def of_campaign(name: str) -> list[BatchQuality]:
    """The same for every batch of a campaign that was sent. Raises NotFound, and BadInput where there is none."""
    with open_stores() as stores:
        campaigns.get_campaign(stores.db, name=name)
        sent = [one for one in labels.batches_of(stores.db, campaigns=[name]) if one.project_id is not None]
        if not sent:
            raise BadInput(f"campaign '{name}' has sent nothing yet; see: dipnet campaign list")
        return [_quality(stores, batch) for batch in sent]


def rejected_rows(batch_id: int) -> list[Row]:
    """A row an answer of a batch that does not count: who gave it, to what, and why it was rejected."""
    with open_stores() as stores:
        requests = {
            one.id: one
            for one in labels.requests_of(stores.db, batch_id=labels.get_batch(stores.db, batch_id=batch_id).id or 0)
        }
        answers = labels.answers_to(stores.db, request_ids=[name for name in requests if name])
        return [
            {
                "item": requests[label.request_id].external_id,
                "sample": label.sample_id[:12],
                "annotator": label.annotator,
                "said": ", ".join(label.class_names),
                "rejected": label.rejected,
                "answered_at": label.answered_at.isoformat(timespec="seconds"),
            }
            for label in answers
            if label.rejected
        ]


def set_state(batch_id: int, state: BatchState, reason: str) -> Row:
    """Release a batch or reject it; its row. Raises BadInput when that cannot be."""
    resolving.set_batch(batch_id, state, reason)
    with open_stores() as stores:
        return _row(stores, labels.get_batch(stores.db, batch_id=batch_id))


def _quality(stores: Stores, batch: LabelBatch) -> BatchQuality:
    run, project = stores.db.get_one(CampaignRun, batch.run_id), _project(stores, batch)
    campaign = stores.db.get_one(Campaign, run.campaign_id)
    requests = labels.requests_of(stores.db, batch_id=batch.id or 0)
    versions = labels.answers_to(stores.db, request_ids=[request.id or 0 for request in requests])
    given = resolving.by_request(versions)
    ballot = _ballot(given)
    agreed = _agreement(ballot)
    spent = costs.of_answers(versions)
    golden = resolving.golden_answers(stores, requests)
    judged = _judged(requests)
    return BatchQuality(
        batch_id=batch.id or 0,
        campaign=campaign.name,
        state=batch.state.value,
        reason=batch.reason,
        requests={
            state.value: count for state, count in labels.count_states(stores.db, batch_id=batch.id or 0).items()
        },
        answers=sum(counts(label) for one in given.values() for label in one),
        rejected=sum(bool(label.rejected) for label in versions),
        withdrawn=sum(label.state is RequestState.DELETED for label in versions),
        contested=_contested(given),
        differently=_differently(ballot),
        **agreed,
        golden=_share(sum(right for right, _ in golden.values()), sum(of for _, of in golden.values())),
        as_predicted=_as_predicted(requests),
        kappa=_finite(judged.kappa) if judged else None,
        minutes=round(spent.seconds / 60, 2),
        cost=round(spent.seconds / 3600 * _rate(campaign), 2),
        foreign=project.census.get("foreign", 0) if project else 0,
        doubled=project.census.get("doubled", 0) if project else 0,
        annotators=_annotators(versions, given, requests, golden, ballot),
        classes=_classes(requests, ballot),
    )


def _row(stores: Stores, batch: LabelBatch) -> Row:
    run, project = stores.db.get_one(CampaignRun, batch.run_id), _project(stores, batch)
    campaign = stores.db.get_one(Campaign, run.campaign_id)
    requests = labels.requests_of(stores.db, batch_id=batch.id or 0)
    versions = labels.answers_to(stores.db, request_ids=[request.id or 0 for request in requests])
    states = Counter(request.state for request in requests if request.candidate_id is not None)
    spent = costs.of_answers(versions)
    golden = resolving.golden_answers(stores, requests)
    right, of = sum(right for right, _ in golden.values()), sum(of for _, of in golden.values())
    return {
        "batch": batch.id,
        "campaign": campaign.name,
        "run": batch.run_id,
        "labeler": batch.labeler,
        "state": batch.state.value,
        "sent": sum(bool(request.external_id) for request in requests if request.candidate_id is not None),
        **{state.value: states[state] for state in RequestState},
        "rejected": sum(bool(label.rejected) for label in versions),
        "golden": f"{right}/{of}" if any(request.expected for request in requests) else "",
        "foreign": project.census.get("foreign", 0) if project else 0,
        "minutes": round(spent.seconds / 60, 2),
        "cost": round(spent.seconds / 3600 * _rate(campaign), 2),
        "because": batch.reason,
    }


def _project(stores: Stores, batch: LabelBatch) -> LabelProject | None:
    return labels.get_project(stores.db, project_id=batch.project_id) if batch.project_id is not None else None


def _rate(campaign: Campaign) -> float:
    """What an hour of labelling costs, by the campaign's plan."""
    rule = CampaignPlan.model_validate(campaign.plan).stop if campaign.plan else StopRule()
    return rule.rate_per_hour


def _ballot(given: Mapping[int, Sequence[Label]]) -> resolving.Ballot | None:
    """The answers that count, as votes; None without any."""
    rows = [(name, label.annotator, named(label)) for name, one in given.items() for label in one if counts(label)]
    return resolving.ballot(rows) if rows else None


def _agreement(ballot: resolving.Ballot | None) -> dict[str, float | None]:
    """Krippendorff's alpha of a batch with its interval."""
    if ballot is None:
        return {"alpha": None}
    low, high = agreement.alpha_interval(ballot.votes, resamples=RESAMPLES, seed=SEED)
    alpha = agreement.krippendorff_alpha(ballot.votes)
    return {"alpha": _finite(alpha), "alpha_low": _finite(low), "alpha_high": _finite(high)}


def _contested(given: Mapping[int, Sequence[Label]]) -> int:
    return sum(len({named(label) for label in one if counts(label)}) > 1 for one in given.values())


def _differently(ballot: resolving.Ballot | None) -> int:
    """Images whose majority is another class than the one that Dawid and Skene find most likely; a tie has no majority."""
    if ballot is None:
        return 0
    most = agreement.majority(ballot.votes)
    likely = agreement.dawid_skene(ballot.votes, tolerance=1e-6, iterations=1_000, smoothing=resolving.SMOOTHING)
    return int(((most.winner != likely.posterior.argmax(axis=1)) & ~most.tied & (most.votes > 0)).sum())


def _judged(requests: Sequence[LabelRequest]) -> agreement.Judged | None:
    """Pre-annotations against resolved labels of one class; None where no image has both."""
    both = [
        (one.class_name, one.predicted_class) for one in _labelled(requests) if one.predicted_class and one.class_name
    ]
    if not both:
        return None
    names = sorted({name for pair in both for name in pair})
    codes = {name: code for code, name in enumerate(names)}
    said, predicted = (np.asarray([codes[pair[place]] for pair in both], dtype=np.int64) for place in (0, 1))
    return agreement.judged(said, predicted, classes=len(names))


def _labelled(requests: Iterable[LabelRequest]) -> list[LabelRequest]:
    """Requests with a resolved label, golden items left out: their labels were known."""
    return [one for one in requests if one.state is RequestState.LABELLED and one.candidate_id is not None]


def _as_predicted(requests: Sequence[LabelRequest]) -> Share | None:
    told = [one for one in _labelled(requests) if one.predicted_class]
    return _share(sum(one.names(one.predicted_class) for one in told), len(told))


def _annotators(
    versions: Sequence[Label],
    given: Mapping[int, Sequence[Label]],
    requests: Sequence[LabelRequest],
    golden: Mapping[str, tuple[int, int]],
    ballot: resolving.Ballot | None,
) -> list[AnnotatorQuality]:
    predicted = {request.id or 0: request.predicted_class for request in requests}
    theirs = [label for one in given.values() for label in one]
    return [
        _annotator(
            name,
            [label for label in versions if label.annotator == name],
            [label for label in theirs if label.annotator == name],
            golden=golden.get(name, (0, 0)),
            alpha=_alpha_of(ballot, name),
            predicted=predicted,
        )
        for name in sorted({label.annotator for label in versions})
    ]


def _annotator(
    name: str,
    versions: Sequence[Label],
    given: Sequence[Label],
    *,
    golden: tuple[int, int],
    alpha: float | None,
    predicted: Mapping[int, str],
) -> AnnotatorQuality:
    """One annotator's row. `versions` are all their answers, `given` those that stand."""
    told = [label for label in given if counts(label) and predicted.get(label.request_id or 0)]
    spent = costs.of_answers(versions)
    times = [label.lead_seconds for label in versions if label.lead_seconds > 0]
    return AnnotatorQuality(
        annotator=name,
        answers=sum(counts(label) for label in given),
        skips=sum(label.state is RequestState.SKIPPED for label in given),
        rejected=sum(bool(label.rejected) for label in versions),
        golden=_share(*golden),
        alpha=alpha,
        as_predicted=_share(sum(predicted[label.request_id or 0] in named(label) for label in told), len(told)),
        minutes=round(spent.seconds / 60, 2),
        median_seconds=round(median(times), 2) if times else None,
    )


def _alpha_of(ballot: resolving.Ballot | None, annotator: str) -> float | None:
    if ballot is None or annotator not in ballot.annotators:
        return None
    return _finite(agreement.alpha_of_annotator(ballot.votes, ballot.annotators.index(annotator)))


def _classes(requests: Sequence[LabelRequest], ballot: resolving.Ballot | None) -> list[ClassQuality]:
    labelled = _labelled(requests)
    names = sorted({name for request in labelled for name in request.class_names})
    return [_class(name, [one for one in labelled if one.names(name)], ballot) for name in names]


def _class(name: str, labelled: Sequence[LabelRequest], ballot: resolving.Ballot | None) -> ClassQuality:
    told = [one for one in labelled if one.predicted_class]
    return ClassQuality(
        class_name=name,
        labelled=len(labelled),
        alpha=_alpha_naming(ballot, name),
        predicted=_share(sum(one.predicted_class == name for one in told), len(told)),
    )


def _alpha_naming(ballot: resolving.Ballot | None, name: str) -> float | None:
    """Alpha of naming a class against not naming it; several classes may be named at once."""
    if ballot is None:
        return None
    naming = np.asarray([name in classes for classes in ballot.classes], dtype=np.int64)
    votes = ballot.votes._replace(answers=naming[ballot.votes.answers], classes=2)
    return _finite(agreement.krippendorff_alpha(votes))


def _share(right: int, of: int) -> Share | None:
    if not of:
        return None
    found = outlook.rate(right, of)
    return Share(right=right, of=of, share=round(found.share, 4), low=round(found.low, 4), high=round(found.high, 4))


def _finite(value: float) -> float | None:
    """The value, or None where it is not defined: JSON has no NaN."""
    return round(value, 4) if math.isfinite(value) else None
