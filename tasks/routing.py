"""From candidates to label requests: rows first, then the labeller, so that nothing is sent that is not remembered."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from models.campaign import Campaign, CampaignRun, Candidate, Issue
from models.errors import BadInput, Incompatible
from models.labeling import LabelBatch, LabelProject, LabelRequest
from models.learning import ModelVersion
from models.plans import CampaignPlan, LabelPolicy, SelectionPolicy
from models.states import BatchState, CandidateState, IssueState, RunState, move
from models.values import Example, ProjectBrief, RequestDraft, Sent
from storage import campaigns, corpora, labels
from storage.labelers import Labeler
from storage.labelstudio_format import SHOWN_EXEMPLARS
from storage.stores import Stores, alone, open_stores
from tasks import golden
from tasks.steps import step

NOTHING = "nothing is left to ask: all was discarded, labelled or sent elsewhere"


@step()
def prepare_batch(run_id: int, plan: CampaignPlan) -> int:
    """Write down what will be asked of a mined run's candidates. Running it twice adds nothing.

    What was labelled or, where campaigns heed one another, sent elsewhere since the run was mined is left out and counted.
    Raises BadInput for a run that is not mined, and for one that waits for an engineer's review.
    """
    with open_stores() as stores:
        run = campaigns.get_run(stores.db, run_id=run_id)
        campaigns.require_sendable(stores.db, run=run)
        campaign_id = run.campaign_id
    with alone(lock_of(campaign_id)):
        with open_stores() as stores:
            batch = labels.find_batch(stores.db, run_id=run_id)
            if batch is not None:
                return batch.id or 0
            run = campaigns.get_run(stores.db, run_id=run_id)
            if run.state is RunState.PLANNED:
                raise BadInput(f"run {run_id} has no candidates to send; mine it first with: dipnet campaign run")
            asked, _ = _asked(stores, run, plan.labelling)
            project = _project(stores, run, plan) if asked else None
        if project is not None:
            project = _open(project)
        with open_stores() as stores:
            run = campaigns.get_run(stores.db, run_id=run_id)
            batch = _add_batch(stores, run, plan, project)
            issue = campaigns.get_issue(stores.db, name=plan.issue)
            campaigns.advance_issue(stores.db, issue=issue, target=IssueState.LABELLING)
    return batch.id or 0


@step()
def send_batch(batch_id: int) -> Sent:
    """Hand a batch's requests to its labeller. What is there already, by our key, is not sent again.

    It looks again at what is wanted, since the labeller may have been down for days; a batch without any is complete.
    No transaction is open while the labeller works.
    """
    with open_stores() as stores:
        batch = labels.get_batch(stores.db, batch_id=batch_id)
        run = campaigns.get_run(stores.db, run_id=batch.run_id)
        campaigns.require_sendable(stores.db, run=run)
        labeler = labeler_of(stores, batch.labeler)
    with alone(lock_of(run.campaign_id)):
        with open_stores() as stores:
            project, unwanted = _project_of(stores, batch), _unwanted(stores, batch_id)
        # What a killed try has sent already stays ours, wanted or not: somebody may be answering it.
        held = set(labeler.present(project.external_id)) if project is not None and unwanted else set()
        with open_stores() as stores:
            drafts = _what_to_send(stores, batch_id, drop=unwanted - held)
        if drafts and project is not None:
            external = labeler.send(project.external_id, drafts)
            with open_stores() as stores:
                _note_sent(stores, batch_id, external, labeler)
    with open_stores() as stores:
        return _sent(stores, batch_id, labeler)


def lock_of(campaign_id: int) -> str:
    """The name of the lock that whoever prepares, sends or takes back a campaign's requests holds."""
    return f"labelling-of-campaign-{campaign_id}"


def labeler_of(stores: Stores, name: str) -> Labeler:
    """The configured labeller. Raises BadInput when something was made for another one."""
    if stores.labeler.name != name:
        raise BadInput(
            f"this was made for the labeller '{name}', not '{stores.labeler.name}'; set DIPNET_LABELER={name}"
        )
    return stores.labeler


def brief_of(stores: Stores, project: LabelProject) -> ProjectBrief:
    """What the labeller is to know of a project: its title, choices, instructions and exemplars as they are now."""
    campaign = stores.db.get_one(Campaign, project.campaign_id)
    issue = stores.db.get_one(Issue, campaign.issue_id)
    about = issue.description or f"images where '{issue.class_name}' is taken for something else"
    choose = "every class" if project.multiple else "the class"
    shown = [
        Example(sample_id=sample.id, uri=sample.uri, positive=exemplar.positive)
        for exemplar, sample in campaigns.exemplars_of(stores.db, issue_id=issue.id or 0)
    ]
    kinds = [[one for one in shown if one.positive is positive][:SHOWN_EXEMPLARS] for positive in (True, False)]
    return ProjectBrief(
        id=project.id or 0,
        title=f"dipnet: {campaign.name}",
        class_names=project.class_names,
        instructions=f"Issue '{issue.name}': {about}. Choose {choose} of what you see; skip what you cannot tell.",
        multiple=project.multiple,
        opinions=project.opinions,
        examples=[*kinds[0], *kinds[1]],
    )


def drafts_of(stores: Stores, run: CampaignRun, requests: Sequence[LabelRequest]) -> list[RequestDraft]:
    """Requests as a labeller gets them. Nothing in them tells a golden item from another one."""
    samples = corpora.known_samples(stores.db, ids=[request.sample_id for request in requests])
    model = stores.db.get_one(ModelVersion, run.model_id) if run.model_id else None
    return [
        RequestDraft(
            key=request.key,
            uri=samples[request.sample_id].uri,
            sample_id=request.sample_id,
            priority=request.position,
            predicted_class=request.predicted_class,
            predicted_probability=request.predicted_probability,
            model_version=f"{model.name}-{model.weights_sha256[:8]}" if model else "",
        )
        for request in requests
    ]


def _project(stores: Stores, run: CampaignRun, plan: CampaignPlan) -> LabelProject:
    """The campaign's project at the configured labeller, with the plan's classes. Raises Incompatible for another schema."""
    class_names = sorted(set(plan.class_names)) or labels.class_names(stores.db)
    if len(class_names) < 2:
        raise BadInput(
            f"campaign '{plan.campaign}': annotators need at least two classes to choose from; "
            "name them with --class, or add a labelled corpus"
        )
    name, multiple = stores.labeler.name, plan.labelling.choice == "multiple"
    project = labels.find_project(stores.db, campaign_id=run.campaign_id, labeler=name)
    if project is None:
        opinions = plan.labelling.opinions
        project = LabelProject(campaign_id=run.campaign_id, labeler=name, multiple=multiple, opinions=opinions)
    if (project.multiple, project.opinions) != (multiple, plan.labelling.opinions):
        kind = "multiple" if project.multiple else "single"
        raise Incompatible(
            f"campaign '{plan.campaign}' is labelled with choice={kind} and opinions={project.opinions}; keep both, "
            "or give the campaign another name"
        )
    project.class_names = [*project.class_names, *(one for one in class_names if one not in project.class_names)]
    stores.db.add(project)
    stores.db.flush()
    return project


def _open(project: LabelProject) -> LabelProject:
    """The project, open at the labeller and known to be."""
    with open_stores() as stores:
        labeler, brief = stores.labeler, brief_of(stores, project)
    external_id = labeler.open_project(brief, known=project.external_id)
    with open_stores() as stores:
        project = labels.get_project(stores.db, project_id=project.id or 0)
        moments = [moment for moment in (project.media_until, labeler.links_until) if moment]
        # What an earlier batch still asks has the earlier links.
        project.external_id, project.media_until = external_id, min(moments, default=None)
        stores.db.add(project)
    return project


def _asked(stores: Stores, run: CampaignRun, policy: LabelPolicy) -> tuple[list[Candidate], dict[str, int]]:
    """Candidates to ask about, and how many are not wanted. Raises BadInput where an engineer is to accept some first."""
    wanted, unwanted = _still_wanted(stores, run, campaigns.candidates_of(stores.db, run_id=run.id or 0))
    if policy.accept == "auto":
        return wanted, unwanted
    accepted = [candidate for candidate in wanted if candidate.state is CandidateState.ACCEPTED]
    if wanted and not accepted:
        name = stores.db.get_one(Campaign, run.campaign_id).name
        raise BadInput(
            f"campaign '{name}' sends what was accepted, and nothing is yet; look with: dipnet campaign review {name}"
        )
    return accepted, unwanted


def _still_wanted(
    stores: Stores, run: CampaignRun, candidates: Sequence[Candidate]
) -> tuple[list[Candidate], dict[str, int]]:
    """Candidates that nobody discarded, labelled or sent elsewhere since; how many are of the last two kinds."""
    labelled = labels.labelled_samples(stores.db)
    policy = SelectionPolicy.model_validate(run.policy)
    elsewhere = campaigns.sent_elsewhere(stores.db, campaign_id=run.campaign_id) if policy.across_campaigns else set()
    unwanted, wanted = Counter[str](), []
    for candidate in candidates:
        if candidate.state is CandidateState.DISCARDED:
            continue
        if candidate.sample_id in labelled:
            unwanted["labelled since it was mined"] += 1
        elif candidate.sample_id in elsewhere:
            unwanted["sent by another campaign since it was mined"] += 1
        else:
            wanted.append(candidate)
    return wanted, dict(unwanted)


def _count(stores: Stores, run: CampaignRun, unwanted: dict[str, int]) -> None:
    """The run remembers what is not asked any more. Whoever calls this drops these candidates in the same transaction."""
    if unwanted:
        run.excluded = dict(Counter(run.excluded) + Counter(unwanted))
        stores.db.add(run)


def _add_batch(stores: Stores, run: CampaignRun, plan: CampaignPlan, project: LabelProject | None) -> LabelBatch:
    """A batch with a request for each candidate and for each golden item, in the order in which they are to be seen."""
    batch = LabelBatch(
        run_id=run.id or 0,
        project_id=project.id if project else None,
        labeler=stores.labeler.name,
        policy=plan.labelling.model_dump(),
    )
    stores.db.add(batch)
    stores.db.flush()
    asked, unwanted = _asked(stores, run, plan.labelling)
    _count(stores, run, unwanted)
    if project is None:
        return batch
    requests = [
        LabelRequest(
            batch_id=batch.id or 0,
            candidate_id=candidate.id,
            sample_id=candidate.sample_id,
            key=key_of(run, candidate.sample_id),
            predicted_class=candidate.predicted_class,
            predicted_probability=candidate.predicted_probability,
            opinions=plan.labelling.opinions,
        )
        for candidate in asked
    ]
    known = golden.items(stores, run, batch, project.class_names, asked=len(requests))
    for position, request in enumerate(golden.mixed(requests, known, seed=run.key)):
        request.position = position
        stores.db.add(request)
    stores.db.flush()
    return batch


def key_of(run: CampaignRun, sample_id: str) -> str:
    """A request's key follows from run and sample, so that a second try finds what the first one sent."""
    return hashlib.sha256(f"{run.key}:{sample_id}".encode()).hexdigest()[:32]


def _project_of(stores: Stores, batch: LabelBatch) -> LabelProject | None:
    return labels.get_project(stores.db, project_id=batch.project_id) if batch.project_id is not None else None


def _unwanted(stores: Stores, batch_id: int) -> set[str]:
    """Keys of an unsent batch's requests that are not wanted any more."""
    batch = labels.get_batch(stores.db, batch_id=batch_id)
    run = campaigns.get_run(stores.db, run_id=batch.run_id)
    requests = labels.requests_of(stores.db, batch_id=batch_id) if run.state is RunState.MINED else []
    candidates = labels.candidates_of(stores.db, requests=requests)
    still = {one.id for one in _still_wanted(stores, run, list(candidates.values()))[0]}
    unwanted = {one.key for one in requests if one.candidate_id is not None and one.candidate_id not in still}
    asked = [one for one in requests if one.candidate_id is not None and one.key not in unwanted]
    return unwanted if asked else {one.key for one in requests}  # golden items alone measure nothing that is wanted


def _what_to_send(stores: Stores, batch_id: int, *, drop: set[str]) -> list[RequestDraft]:
    """Drafts of an unsent batch; dropped requests are forgotten and counted, a batch without any other is closed."""
    batch = labels.get_batch(stores.db, batch_id=batch_id)
    run = campaigns.get_run(stores.db, run_id=batch.run_id)
    if run.state is not RunState.MINED:
        return []
    campaigns.require_sendable(stores.db, run=run)
    requests = labels.requests_of(stores.db, batch_id=batch_id)
    dropped = [request for request in requests if request.key in drop]
    kept = [request for request in requests if request.key not in drop]
    candidates = labels.candidates_of(stores.db, requests=dropped)
    _count(stores, run, _still_wanted(stores, run, list(candidates.values()))[1])
    for request in dropped:
        stores.db.delete(request)
    if not kept:
        run.state = move(move(run.state, RunState.SENT), RunState.LABELLED)
        batch.state = batch.announced = move(batch.state, BatchState.COMPLETE)
        stores.db.add_all([run, batch])
    stores.db.flush()
    return drafts_of(stores, run, kept)


def _note_sent(stores: Stores, batch_id: int, external: dict[str, str], labeler: Labeler) -> None:
    """Remember what the labeller calls each request."""
    batch = labels.get_batch(stores.db, batch_id=batch_id)
    run = campaigns.get_run(stores.db, run_id=batch.run_id)
    requests = labels.requests_of(stores.db, batch_id=batch_id)
    candidates = labels.candidates_of(stores.db, requests=requests)
    for request in requests:
        request.external_id = external[request.key]
        candidate = candidates.get(request.candidate_id or 0)
        if candidate is not None:
            # What nobody looked at is accepted by being sent, and only then: it is no verdict to learn from.
            candidate.state = move(move(candidate.state, CandidateState.ACCEPTED), CandidateState.SENT)
            stores.db.add(candidate)
        stores.db.add(request)
    run.state = move(run.state, RunState.SENT)
    project = _project_of(stores, batch)
    if project is not None and project.media_until and labeler.links_until:
        project.media_until = min(project.media_until, labeler.links_until)
        stores.db.add(project)
    stores.db.add(run)


def _sent(stores: Stores, batch_id: int, labeler: Labeler) -> Sent:
    batch = labels.get_batch(stores.db, batch_id=batch_id)
    requests, project = labels.requests_of(stores.db, batch_id=batch_id), _project_of(stores, batch)
    known = sum(request.candidate_id is None for request in requests)
    return Sent(
        run_id=batch.run_id,
        batch_id=batch_id,
        project=project.external_id if project else "",
        sent=len(requests) - known,
        golden=known,
        url=labeler.url(project.external_id) if project else "",
        note="" if requests else NOTHING,
    )
