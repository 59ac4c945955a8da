"""From candidates to label requests: rows first, then the labeller, so that nothing is sent that is not remembered."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from models.campaign import Campaign, CampaignRun, Issue
from models.errors import BadInput, Incompatible
from models.labeling import LabelBatch, LabelProject, LabelRequest
from models.learning import ModelVersion
from models.plans import CampaignPlan, LabelPolicy, SelectionPolicy
from models.states import BatchState, CandidateState, IssueState, RunState, move
from models.values import Example, ProjectBrief, RequestDraft, Sent
from storage import campaigns, labels
from storage.campaigns import Choice
from storage.labelers import Labeler
from storage.labelstudio_format import SHOWN_EXEMPLARS
from storage.stores import Stores, alone, open_stores
from tasks import golden
from tasks.steps import step

NOTHING = "nothing is left to ask: all was discarded, labelled or sent elsewhere"


class Wanted(NamedTuple):
    """What of a run is to be asked, and how many of its candidates are not wanted any more, by reason."""

    candidates: list[Choice]
    unwanted: dict[str, int]


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
            run = campaigns.get_run(stores.db, run_id=run_id)
            if batch is not None:
                _extend(stores, run, batch, plan.labelling)
                return batch.id or 0
            if run.state is RunState.PLANNED:
                raise BadInput(f"run {run_id} has no candidates to send; mine it first with: dipnet campaign run")
            wanted = _asked(stores, run, plan.labelling)
            project = _project(stores, run, plan) if wanted.candidates else None
        if project is not None:
            project = _open(project)
        with open_stores() as stores:
            run = campaigns.get_run(stores.db, run_id=run_id)
            batch = _add_batch(stores, run, plan.labelling, project, wanted)
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


def drafts_of(stores: Stores, run: CampaignRun, *, pending: bool = False) -> list[RequestDraft]:
    """A run's requests as a labeller gets them; with `pending`, those that wait alone. Golden items look like the others."""
    model = stores.db.get_one(ModelVersion, run.model_id) if run.model_id else None
    version = f"{model.name}-{model.weights_sha256[:8]}" if model else ""
    return [
        RequestDraft(**row._asdict(), model_version=version)
        for row in labels.drafts_of(stores.db, run_id=run.id or 0, pending=pending)
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
    grown = [*project.class_names, *(one for one in class_names if one not in project.class_names)]
    if project.id is not None and grown != project.class_names:
        _hear_again(stores, project, grown)
    project.class_names = grown
    stores.db.add(project)
    stores.db.flush()
    return project


def _hear_again(stores: Stores, project: LabelProject, offered: Sequence[str]) -> None:
    """Answers that named a class before it was offered count from now on."""
    for label, request in labels.rejected_labels(stores.db, project_id=project.id or 0):
        known = bool(label.class_names) and set(label.class_names) <= set(offered)
        if known and (project.multiple or len(label.class_names) == 1):
            label.rejected, request.stale = "", True
            stores.db.add_all([label, request])


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


def _asked(stores: Stores, run: CampaignRun, policy: LabelPolicy) -> Wanted:
    """Candidates to ask about. Raises BadInput where an engineer is to accept some first."""
    found = _still_wanted(stores, run, campaigns.choices_of(stores.db, run_id=run.id or 0))
    if policy.accept == "auto":
        return found
    accepted = [candidate for candidate in found.candidates if candidate.state is CandidateState.ACCEPTED]
    if found.candidates and not accepted:
        name = stores.db.get_one(Campaign, run.campaign_id).name
        raise BadInput(
            f"campaign '{name}' sends what was accepted, and nothing is yet; look with: dipnet campaign review {name}"
        )
    return Wanted(accepted, found.unwanted)


def _still_wanted(stores: Stores, run: CampaignRun, candidates: Sequence[Choice]) -> Wanted:
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
    return Wanted(wanted, dict(unwanted))


def _count(stores: Stores, run: CampaignRun, unwanted: dict[str, int]) -> None:
    """The run remembers what is not asked any more. Whoever calls this drops these candidates in the same transaction."""
    if unwanted:
        run.excluded = dict(Counter(run.excluded) + Counter(unwanted))
        stores.db.add(run)


def _add_batch(
    stores: Stores, run: CampaignRun, policy: LabelPolicy, project: LabelProject | None, wanted: Wanted
) -> LabelBatch:
    """A batch with a request for each candidate and for each golden item, in the order in which they are to be seen."""
    batch = LabelBatch(
        run_id=run.id or 0,
        project_id=project.id if project else None,
        labeler=stores.labeler.name,
        policy=policy.model_dump(),
    )
    stores.db.add(batch)
    stores.db.flush()
    _count(stores, run, wanted.unwanted)
    if project is None:
        return batch
    known = golden.items(stores, run, policy, project.class_names, asked=len(wanted.candidates))
    _add_requests(stores, batch, golden.mixed(_asking(run, wanted.candidates), known, seed=run.key), first=0)
    return batch


def _extend(stores: Stores, run: CampaignRun, batch: LabelBatch, policy: LabelPolicy) -> None:
    """Ask in an unsent batch about what an engineer has accepted since it was prepared."""
    if run.state is not RunState.MINED or batch.state is not BatchState.OPEN or batch.project_id is None:
        return
    there = labels.keys_of(stores.db, batch_id=batch.id or 0)
    late = [row for row in _asking(run, _asked(stores, run, policy).candidates) if row["key"] not in there]
    _add_requests(stores, batch, late, first=len(there))


def _asking(run: CampaignRun, candidates: Sequence[Choice]) -> list[golden.Row]:
    """What requests about candidates say."""
    return [
        {
            "candidate_id": one.id,
            "sample_id": one.sample_id,
            "key": key_of(run, one.sample_id),
            "predicted_class": one.predicted_class,
            "predicted_probability": one.predicted_probability,
        }
        for one in candidates
    ]


def _add_requests(stores: Stores, batch: LabelBatch, rows: Sequence[golden.Row], *, first: int) -> None:
    """Requests in their order, the first of them at that place of the batch."""
    opinions = LabelPolicy.model_validate(batch.policy).opinions
    blank = LabelRequest(batch_id=batch.id or 0, sample_id="", key="", opinions=opinions).model_dump(exclude={"id"})
    filled = [blank | row | {"position": first + place} for place, row in enumerate(rows)]
    if filled:
        labels.add_requests(stores.db, rows=filled)


def key_of(run: CampaignRun, sample_id: str) -> str:
    """A request's key follows from run and sample, so that a second try finds what the first one sent."""
    return hashlib.sha256(f"{run.key}:{sample_id}".encode()).hexdigest()[:32]


def _project_of(stores: Stores, batch: LabelBatch) -> LabelProject | None:
    return labels.get_project(stores.db, project_id=batch.project_id) if batch.project_id is not None else None


def _unwanted(stores: Stores, batch_id: int) -> set[str]:
    """Keys of an unsent batch's requests that are not wanted any more."""
    batch = labels.get_batch(stores.db, batch_id=batch_id)
    run = campaigns.get_run(stores.db, run_id=batch.run_id)
    if run.state is not RunState.MINED:
        return set()
    keys = labels.keys_of(stores.db, batch_id=batch_id)
    still = {
        one.id for one in _still_wanted(stores, run, campaigns.choices_of(stores.db, run_id=batch.run_id)).candidates
    }
    unwanted = {key for key, candidate_id in keys.items() if candidate_id is not None and candidate_id not in still}
    asked = any(candidate_id is not None and key not in unwanted for key, candidate_id in keys.items())
    return unwanted if asked else set(keys)  # golden items alone measure nothing that is wanted


def _what_to_send(stores: Stores, batch_id: int, *, drop: set[str]) -> list[RequestDraft]:
    """Drafts of an unsent batch; dropped requests are forgotten and counted, a batch without any other is closed."""
    batch = labels.get_batch(stores.db, batch_id=batch_id)
    run = campaigns.get_run(stores.db, run_id=batch.run_id)
    if run.state is not RunState.MINED:
        return []
    campaigns.require_sendable(stores.db, run=run)
    if drop:
        dropped = {labels.keys_of(stores.db, batch_id=batch_id)[key] for key in drop}
        gone = [one for one in campaigns.choices_of(stores.db, run_id=batch.run_id) if one.id in dropped]
        _count(stores, run, _still_wanted(stores, run, gone).unwanted)
        labels.drop_requests(stores.db, keys=sorted(drop))
    drafts = drafts_of(stores, run)
    if not drafts:
        run.state = move(move(run.state, RunState.SENT), RunState.LABELLED)
        batch.state = batch.announced = move(batch.state, BatchState.COMPLETE)
        stores.db.add_all([run, batch])
    stores.db.flush()
    return drafts


def _note_sent(stores: Stores, batch_id: int, external: dict[str, str], labeler: Labeler) -> None:
    """Remember what the labeller calls each request.

    What nobody looked at is accepted by being sent, and only then: it is no verdict to learn from.
    """
    batch = labels.get_batch(stores.db, batch_id=batch_id)
    run = campaigns.get_run(stores.db, run_id=batch.run_id)
    labels.note_sent(stores.db, batch_id=batch_id, external=external)
    run.state = move(run.state, RunState.SENT)
    project = _project_of(stores, batch)
    if project is not None and project.media_until and labeler.links_until:
        project.media_until = min(project.media_until, labeler.links_until)
        stores.db.add(project)
    stores.db.add(run)


def _sent(stores: Stores, batch_id: int, labeler: Labeler) -> Sent:
    batch = labels.get_batch(stores.db, batch_id=batch_id)
    asked, known = labels.count_requests(stores.db, batch_id=batch_id)
    project = _project_of(stores, batch)
    return Sent(
        run_id=batch.run_id,
        batch_id=batch_id,
        project=project.external_id if project else "",
        sent=asked,
        golden=known,
        url=labeler.url(project.external_id) if project else "",
        note="" if asked else NOTHING,
    )
