"""From candidates to label requests: rows first, then the labeller, so that nothing is sent that is not remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from models.campaign import Campaign, CampaignRun, Candidate, Issue
from models.errors import BadInput
from models.labeling import LabelBatch, LabelRequest
from models.learning import ModelVersion
from models.plans import CampaignPlan
from models.states import CandidateState, IssueState, RunState, move
from models.values import ProjectBrief, RequestDraft, Sent
from storage import campaigns, corpora, labels
from storage.labelers import Labeler
from storage.stores import Stores, open_stores
from tasks.steps import step


@step()
def prepare_batch(run_id: int, plan: CampaignPlan) -> int:
    """Accept a mined run's candidates and write down what will be asked. Running it twice adds nothing."""
    with open_stores() as stores:
        run = campaigns.get_run(stores.db, run_id=run_id)
        campaigns.require_sendable(stores.db, run=run)
        batch = labels.find_batch(stores.db, run_id=run_id)
        if batch is None:
            issue = campaigns.get_issue(stores.db, name=plan.issue)
            brief = _brief(stores, plan, issue)
            batch = LabelBatch(
                run_id=run_id,
                labeler=stores.labeler.name,
                project=stores.labeler.open_project(brief),
                class_names=brief.class_names,
            )
            stores.db.add(batch)
            stores.db.flush()
            _add_requests(stores, run, batch)
            campaigns.advance_issue(stores.db, issue=issue, target=IssueState.LABELLING)
    return batch.id or 0


@step()
def send_batch(batch_id: int) -> Sent:
    """Hand a batch's requests to its labeller. What is there already, by our key, is not sent again."""
    with open_stores() as stores:
        batch = stores.db.get_one(LabelBatch, batch_id)
        run = campaigns.get_run(stores.db, run_id=batch.run_id)
        campaigns.require_sendable(stores.db, run=run)
        labeler = labeler_of(stores, batch)
        pairs = labels.requests_of(stores.db, batch_id=batch_id)

        if run.state is RunState.MINED:
            external = labeler.send(batch.project, _drafts(stores, run, pairs))
            for request, candidate in pairs:
                request.external_id = external[request.key]
                candidate.state = move(candidate.state, CandidateState.SENT)
            run.state = move(run.state, RunState.SENT)
            stores.db.add_all([run, *(row for pair in pairs for row in pair)])
        url = labeler.url(batch.project)
    return Sent(run_id=run.id or 0, batch_id=batch_id, project=batch.project, sent=len(pairs), url=url)


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


def _add_requests(stores: Stores, run: CampaignRun, batch: LabelBatch) -> None:
    """A request for every candidate that nobody discarded; the key follows from run and sample."""
    for candidate in campaigns.candidates_of(stores.db, run_id=run.id or 0):
        if candidate.state is CandidateState.DISCARDED:
            continue
        candidate.state = move(candidate.state, CandidateState.ACCEPTED)
        key = hashlib.sha256(f"{run.key}:{candidate.sample_id}".encode()).hexdigest()[:32]
        stores.db.add_all([candidate, LabelRequest(batch_id=batch.id or 0, candidate_id=candidate.id or 0, key=key)])


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
