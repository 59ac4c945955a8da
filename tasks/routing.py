"""From candidates to label requests: rows first, then the labeller, so that nothing is sent that is not remembered."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from models.campaign import Campaign, CampaignRun, Candidate, Issue
from models.errors import BadInput
from models.labeling import LabelBatch, LabelRequest
from models.learning import ModelVersion
from models.plans import CampaignPlan, SelectionPolicy
from models.states import CandidateState, IssueState, RunState, move
from models.values import ProjectBrief, RequestDraft, Sent
from storage import campaigns, corpora, labels
from storage.labelers import Labeler
from storage.stores import Stores, open_stores
from tasks.steps import step


@step()
def prepare_batch(run_id: int, plan: CampaignPlan) -> int:
    """Write down what will be asked of a mined run's candidates. Running it twice adds nothing.

    What was labelled or, where campaigns heed one another, sent elsewhere since the run was mined is left out and counted.
    Raises BadInput for a run that is not mined.
    """
    with open_stores() as stores:
        run = campaigns.get_run(stores.db, run_id=run_id)
        campaigns.require_sendable(stores.db, run=run)
        batch = labels.find_batch(stores.db, run_id=run_id)
        if batch is None:
            if run.state is RunState.PLANNED:
                raise BadInput(f"run {run_id} has no candidates to send; mine it first with: dipnet campaign run")
            issue = campaigns.get_issue(stores.db, name=plan.issue)
            asked = _still_wanted(stores, run, campaigns.candidates_of(stores.db, run_id=run_id))
            batch = _add_batch(stores, run, _brief(stores, plan, issue), asked)
            campaigns.advance_issue(stores.db, issue=issue, target=IssueState.LABELLING)
    return batch.id or 0


@step()
def send_batch(batch_id: int) -> Sent:
    """Hand a batch's requests to its labeller. What is there already, by our key, is not sent again.

    It looks again at what is wanted, since the labeller may have been down for days; a batch without any is complete.
    """
    with open_stores() as stores:
        batch = stores.db.get_one(LabelBatch, batch_id)
        run = campaigns.get_run(stores.db, run_id=batch.run_id)
        campaigns.require_sendable(stores.db, run=run)
        labeler = labeler_of(stores, batch)
        if run.state is RunState.MINED:
            _send(stores, run, batch, labeler)
        sent = len(labels.requests_of(stores.db, batch_id=batch_id))
        url = labeler.url(batch.project) if batch.project else ""
    note = "" if sent else "nothing is left to ask: all was discarded, labelled or sent elsewhere"
    return Sent(run_id=run.id or 0, batch_id=batch_id, project=batch.project, sent=sent, url=url, note=note)


def _send(stores: Stores, run: CampaignRun, batch: LabelBatch, labeler: Labeler) -> None:
    """Send what is still wanted, forget the other requests, and close a batch of which nothing is left."""
    pairs = labels.requests_of(stores.db, batch_id=batch.id or 0)
    wanted = {one.id for one in _still_wanted(stores, run, [candidate for _, candidate in pairs])}
    for request, candidate in pairs:
        if candidate.id not in wanted:
            stores.db.delete(request)
    pairs = [pair for pair in pairs if pair[1].id in wanted]
    external = labeler.send(batch.project, _drafts(stores, run, pairs)) if pairs else {}
    for request, candidate in pairs:
        request.external_id = external[request.key]
        # What nobody looked at is accepted by being sent, and only then: it is no verdict to learn from.
        candidate.state = move(move(candidate.state, CandidateState.ACCEPTED), CandidateState.SENT)
    run.state = move(run.state, RunState.SENT)
    if not pairs:
        run.state, batch.complete = move(run.state, RunState.LABELLED), True
    stores.db.add_all([run, batch, *(row for pair in pairs for row in pair)])
    stores.db.flush()


def labeler_of(stores: Stores, batch: LabelBatch) -> Labeler:
    """The configured labeller. Raises BadInput when the batch was made for another one."""
    if stores.labeler.name != batch.labeler:
        raise BadInput(
            f"batch {batch.id} was made for the labeller '{batch.labeler}', not '{stores.labeler.name}'; "
            f"set DIPNET_LABELER={batch.labeler}"
        )
    return stores.labeler


def _brief(stores: Stores, plan: CampaignPlan, issue: Issue) -> ProjectBrief:
    """Title, choices and instructions of the campaign's project."""
    class_names = sorted(set(plan.class_names)) or labels.class_names(stores.db)
    if len(class_names) < 2:
        raise BadInput(
            f"campaign '{plan.campaign}': annotators need at least two classes to choose from; "
            "name them with --class, or add a labelled corpus"
        )
    about = issue.description or f"images where '{issue.class_name}' is taken for something else"
    return ProjectBrief(
        title=f"dipnet: {plan.campaign}",
        class_names=class_names,
        instructions=f"Issue '{issue.name}': {about}. Choose the class of what you see; skip what you cannot tell.",
    )


def _still_wanted(stores: Stores, run: CampaignRun, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates that nobody discarded, labelled or sent elsewhere since; the run counts those of the last two kinds."""
    labelled = labels.labelled_samples(stores.db)
    policy = SelectionPolicy.model_validate(run.policy)
    elsewhere = campaigns.sent_elsewhere(stores.db, campaign_id=run.campaign_id) if policy.across_campaigns else set()
    counted, wanted = Counter(run.excluded), []
    for candidate in candidates:
        if candidate.state is CandidateState.DISCARDED:
            continue
        if candidate.sample_id in labelled:
            counted["labelled since it was mined"] += 1
        elif candidate.sample_id in elsewhere:
            counted["sent by another campaign since it was mined"] += 1
        else:
            wanted.append(candidate)
    run.excluded = dict(counted)
    stores.db.add(run)
    return wanted


def _add_batch(stores: Stores, run: CampaignRun, brief: ProjectBrief, asked: Sequence[Candidate]) -> LabelBatch:
    """A batch with a request for each candidate; a request's key follows from run and sample. Nothing asked, no project."""
    project = stores.labeler.open_project(brief) if asked else ""
    batch = LabelBatch(run_id=run.id or 0, labeler=stores.labeler.name, project=project, class_names=brief.class_names)
    stores.db.add(batch)
    stores.db.flush()
    for candidate in asked:
        key = hashlib.sha256(f"{run.key}:{candidate.sample_id}".encode()).hexdigest()[:32]
        stores.db.add(LabelRequest(batch_id=batch.id or 0, candidate_id=candidate.id or 0, key=key))
    return batch


def _drafts(stores: Stores, run: CampaignRun, pairs: Sequence[tuple[LabelRequest, Candidate]]) -> list[RequestDraft]:
    samples = corpora.known_samples(stores.db, ids=[candidate.sample_id for _, candidate in pairs])
    model = stores.db.get_one(ModelVersion, run.model_id) if run.model_id else None
    return [
        RequestDraft(
            key=request.key,
            uri=samples[candidate.sample_id].uri,
            sample_id=candidate.sample_id,
            priority=candidate.rank,
            predicted_class=candidate.predicted_class,
            predicted_probability=candidate.predicted_probability,
            model_version=f"{model.name}-{model.weights_sha256[:8]}" if model else "",
        )
        for request, candidate in pairs
    ]


def campaign_of(stores: Stores, run: CampaignRun) -> Campaign:
    """The campaign that a run belongs to."""
    return stores.db.get_one(Campaign, run.campaign_id)
