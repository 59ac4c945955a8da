"""From answers to labels: poll a labeller's project, store what is new, and hold it against what the labeller counts.

Everything is done under the campaign's lock and keyed by the labeller's own ids, so that a sync that was killed, or two
at once, store the same rows as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

from models.base import utc_now
from models.campaign import Campaign, CampaignRun
from models.errors import Unavailable
from models.labeling import Label, LabelProject, LabelRequest
from models.states import BatchState, RequestState
from models.values import Answer, Census, Item, RequestDraft, Synced
from storage import campaigns, labels
from storage.labelers import Labeler
from storage.stores import Stores, alone, open_stores
from tasks import resolving
from tasks.routing import brief_of, drafts_of, labeler_of, lock_of
from tasks.steps import step

SWEEP_EVERY = timedelta(hours=24)  # by our clock: what a clock that was set back hid is seen then at the latest
LATE = timedelta(seconds=60)  # an answer may be written after a later one was seen
TRIES = 3  # annotators go on while we count
EXTRA = ("extra_items", "extra_answers", "extra_skips")  # in a project's census: what is there beside what is stored
RENEW_WITHIN = 1 / 3  # of the time that links are good for


class Pulled(NamedTuple):
    """What a poll brought."""

    new: Counter[int]  # answers, corrections and withdrawals by batch
    deleted: int  # items that a person took away


@step()
def projects_to_sync(campaign_names: list[str]) -> list[int]:
    """Projects where answers may have come in, of these campaigns or of all. Raises NotFound for an unknown campaign."""
    with open_stores() as stores:
        for name in campaign_names:
            campaigns.get_campaign(stores.db, name=name)
        return [project.id or 0 for project in labels.projects_to_poll(stores.db, campaigns=campaign_names)]


def open_projects() -> list[str]:
    """What the labeller calls the projects that wait for answers."""
    with open_stores() as stores:
        return [project.external_id for project in labels.open_projects(stores.db)]


@step()
def sync_project(project_id: int) -> list[Synced]:
    """Store what changed in a project since it was last polled; a row for each batch that waits or changed.

    Running it twice adds nothing. Raises NotFound, and Unavailable when the labeller does not answer.
    """
    with open_stores() as stores:
        project = labels.get_project(stores.db, project_id=project_id)
        labeler = labeler_of(stores, project.labeler)
    with alone(lock_of(project.campaign_id)):
        _renew_links(project_id, labeler)
        waited = _open_batches(project_id)
        pulled = _pull(project_id, labeler)
        changed, reopened = resolving.resolve(project_id, labeler)
        _renew_these(project_id, labeler, reopened)
        with open_stores() as stores:
            rows = [_synced(stores, batch_id, pulled) for batch_id in sorted(waited | changed)]
    return rows


@step()
def announce() -> int:
    """Emit an event for each batch that became complete or was quarantined; how many. Twice is once: its id is its own."""
    told = 0
    with open_stores() as stores:
        for batch, campaign in labels.unannounced(stores.db):
            if batch.state in (BatchState.COMPLETE, BatchState.QUARANTINED):
                resolving.tell(batch, campaign)
                told += 1
            batch.announced = batch.state
            stores.db.add(batch)
    return told


def _open_batches(project_id: int) -> set[int]:
    with open_stores() as stores:
        batches = labels.batches_of(stores.db, project_id=project_id)
        return {batch.id or 0 for batch in batches if batch.state is BatchState.OPEN}


def _renew_links(project_id: int, labeler: Labeler) -> None:
    """Give what still waits fresh links to its images before the old ones expire."""
    with open_stores() as stores:
        project = labels.get_project(stores.db, project_id=project_id)
        until, now = project.media_until, utc_now()
        if until is None or labeler.links_until is None or until - now > (labeler.links_until - now) * RENEW_WITHIN:
            return
        drafts: dict[str, RequestDraft] = {}
        for batch in labels.batches_of(stores.db, project_id=project_id):
            run = stores.db.get_one(CampaignRun, batch.run_id)
            # Of a complete batch too: late answers count, and a withdrawn one waits again.
            drafts |= {draft.key: draft for draft in drafts_of(stores, run, pending=True)}
        brief = brief_of(stores, project)
    labeler.open_project(brief, known=project.external_id)
    there = labeler.present(project.external_id)
    labeler.renew_links(project.external_id, {name: drafts[key] for key in drafts for name in there.get(key, [])})
    with open_stores() as stores:
        project = labels.get_project(stores.db, project_id=project_id)
        project.media_until = labeler.links_until
        stores.db.add(project)


def _renew_these(project_id: int, labeler: Labeler, keys: set[str]) -> None:
    """What waits again was passed by when links were renewed."""
    if not keys or labeler.links_until is None:
        return
    with open_stores() as stores:
        project = labels.get_project(stores.db, project_id=project_id)
        runs = [
            stores.db.get_one(CampaignRun, one.run_id) for one in labels.batches_of(stores.db, project_id=project_id)
        ]
        drafts = {
            draft.key: draft for run in runs for draft in drafts_of(stores, run, pending=True) if draft.key in keys
        }
        requests = labels.requests_by_key(stores.db, project_id=project_id, keys=sorted(drafts))
    labeler.renew_links(project.external_id, {one.external_id: drafts[key] for key, one in requests.items()})


def _pull(project_id: int, labeler: Labeler) -> Pulled:
    """Poll until what is stored is what the labeller counts; where it will not be, look at everything."""
    new: Counter[int] = Counter()
    with open_stores() as stores:
        project = labels.get_project(stores.db, project_id=project_id)
    stale = project.swept_at is not None and utc_now() - project.swept_at > SWEEP_EVERY
    if project.swept_at is None:
        # What a project's making, or a first send, left behind when it was cut off has arrived by now.
        labeler.tidy(project.external_id, [])
    census: Census | None = None
    for _ in range(0 if stale else TRIES):
        new.update(_poll(project_id, labeler, everything=False))
        census = labeler.census(project.external_id)
        if _agrees(project_id, census):
            return Pulled(new, 0)
    deleted = _sweep_items(project_id, labeler)
    new.update(_poll(project_id, labeler, everything=True))
    _note_extra(project_id, labeler.census(project.external_id))
    return Pulled(new, deleted)


def _note_extra(project_id: int, census: Census | None) -> None:
    """What is counted beyond what is stored, once all was looked at, is not ours: copies, and another dipnet's items."""
    if census is None:
        return
    with open_stores() as stores:
        project = labels.get_project(stores.db, project_id=project_id)
        known = labels.known(stores.db, project_id=project_id)
        extra = (census.ours - known.items, census.answers - known.answers, census.skipped_items - known.skipped_items)
        project.census = {**project.census, **dict(zip(EXTRA, extra, strict=True))}
        stores.db.add(project)


def _poll(project_id: int, labeler: Labeler, *, everything: bool) -> Counter[int]:
    """Store the items that changed since the watermark, or all that were ever answered; move the watermark at the end."""
    with open_stores() as stores:
        project = labels.get_project(stores.db, project_id=project_id)
        waiting = labels.waiting(stores.db, project_id=project_id)
        settled, mark = None, project.watermark
        if mark is not None and not everything:
            settled = labels.settled(stores.db, project_id=project_id, since=mark - LATE, until=mark)
    began = labeler.clock()
    newest, new, seen = mark, Counter[int](), set[str]()
    for items in labeler.changes(project.external_id, waiting=waiting, settled=settled):
        with open_stores() as stores:
            new.update(_store(stores, project, items))
        seen |= {item.key for item in items}
        newest = max([item.changed_at for item in items] + ([newest] if newest else []), default=None)
    if everything and labeler.census(project.external_id) is not None:
        new.update(_withdraw_unseen(project, seen, labeler))
    with open_stores() as stores:
        project = labels.get_project(stores.db, project_id=project_id)
        # What changes while we list may have been listed as it was before.
        project.watermark = min(newest, began) if newest and began else newest
        if settled is None:
            project.swept_at = utc_now()
        stores.db.add(project)
    return new


def _store(stores: Stores, project: LabelProject, items: Sequence[Item]) -> Counter[int]:
    """New versions of answers, how many by batch. Items that are not this project's requests are passed by."""
    requests = labels.requests_by_key(stores.db, project_id=project.id or 0, keys=[item.key for item in items])
    known = labels.answers_to(stores.db, request_ids=[request.id or 0 for request in requests.values()])
    by_item: dict[tuple[int, str], list[Label]] = {}
    for label in known:
        by_item.setdefault((label.request_id or 0, label.item_id), []).append(label)
    new: Counter[int] = Counter()
    for item in items:
        request = requests.get(item.key)
        if request is None:
            continue
        stored = {label.external_id: label for label in by_item.get((request.id or 0, item.external_id), [])}
        fresh = [answer for answer in item.answers if _differs(stored.get(answer.external_id), answer)]
        stores.db.add_all(_label(project, request, item, answer, stored.get(answer.external_id)) for answer in fresh)
        there = {answer.external_id for answer in item.answers}
        gone = [
            label for name, label in stored.items() if name not in there and label.state is not RequestState.DELETED
        ]
        stores.db.add_all(_withdrawn(label) for label in gone)
        request.changed_at = item.changed_at
        if item.answers:  # of two copies, the unanswered one is taken away
            request.external_id = item.external_id
        if fresh or gone:
            request.stale = True
            new[request.batch_id] += len(fresh) + len(gone)
        stores.db.add(request)
    return new


def _differs(stored: Label | None, answer: Answer) -> bool:
    """Whether an answer was not known as it stands now. Only equality counts: clocks may be set back."""
    return stored is None or stored.state is RequestState.DELETED or stored.answered_at != answer.answered_at


def _label(project: LabelProject, request: LabelRequest, item: Item, answer: Answer, before: Label | None) -> Label:
    """The next version of an answer."""
    return Label(
        sample_id=request.sample_id,
        request_id=request.id,
        state=answer.state,
        class_name=answer.class_names[0] if len(answer.class_names) == 1 else "",
        class_names=answer.class_names,
        rejected=_why_rejected(project, answer),
        source=project.labeler,
        external_id=answer.external_id,
        version=before.version + 1 if before else 0,
        item_id=item.external_id,
        annotator=answer.annotator,
        origin=answer.origin,
        lead_seconds=answer.lead_seconds,
        answered_at=answer.answered_at,
    )


def _why_rejected(project: LabelProject, answer: Answer) -> str:
    """What is wrong with an answer by the project's schema; empty when it counts."""
    unknown = [name for name in answer.class_names if name not in project.class_names]
    if answer.wrong or answer.state is not RequestState.LABELLED:
        return answer.wrong
    if unknown:
        return f"class '{unknown[0]}' was not offered"
    return "it names several classes" if len(answer.class_names) > 1 and not project.multiple else ""


def _withdrawn(label: Label) -> Label:
    """The last version of an answer that a person deleted."""
    kept = label.model_dump(exclude={"id", "state", "answered_at", "class_name", "class_names", "rejected"})
    kept["version"] += 1
    return Label(**kept, state=RequestState.DELETED, answered_at=utc_now())


def _agrees(project_id: int, census: Census | None) -> bool:
    """Whether what is stored is what the labeller counts; remember what it counts of others."""
    if census is None:
        return True
    with open_stores() as stores:
        project = labels.get_project(stores.db, project_id=project_id)
        known = labels.known(stores.db, project_id=project_id)
        told = project.census
        project.census = {**told, "ours": census.ours, "foreign": census.foreign + told.get("strangers", 0)}
        stores.db.add(project)
    found = (census.ours - known.items, census.answers - known.answers, census.skipped_items - known.skipped_items)
    return found == tuple(told.get(name, 0) for name in EXTRA)


def _sweep_items(project_id: int, labeler: Labeler) -> int:
    """See which of our items a person deleted or brought back, and tidy those that are there twice; how many are gone."""
    with open_stores() as stores:
        project = labels.get_project(stores.db, project_id=project_id)
        keys = [request.key for request in labels.sent_requests(stores.db, project_id=project_id)]
    census = labeler.census(project.external_id)
    if census is None:
        return 0
    doubled = labeler.tidy(project.external_id, keys)
    present, census = labeler.present(project.external_id), labeler.census(project.external_id) or census
    held = sum(len(ids) for ids in present.values())
    if held != census.ours:
        raise Unavailable(
            f"{labeler.name} counts {census.ours} of our items and lists {held}; nothing was changed: sync again later"
        )
    with open_stores() as stores:
        project = labels.get_project(stores.db, project_id=project_id)
        ours = set(keys)
        strangers = sum(len(ids) for key, ids in present.items() if key not in ours)
        told = {"ours": census.ours, "foreign": census.foreign + strangers, "strangers": strangers, "doubled": doubled}
        project.census = {**project.census, **told}
        stores.db.add(project)
        requests = labels.sent_requests(stores.db, project_id=project_id)
        _withdraw_lost_copies(stores, requests, present)
        return resolving.note_gone(stores, requests, set(present))


def _withdraw_lost_copies(
    stores: Stores, requests: Sequence[LabelRequest], present: Mapping[str, Sequence[str]]
) -> None:
    """Withdraw answers to a copy that is gone while another one of the same request is there."""
    copied = {one.id or 0: one for one in requests if one.key in present}
    for label in labels.answers_to(stores.db, request_ids=list(copied)):
        request = copied[label.request_id or 0]
        if label.state is not RequestState.DELETED and label.item_id not in present[request.key]:
            request.stale = True
            stores.db.add_all([_withdrawn(label), request])


def _withdraw_unseen(project: LabelProject, seen: set[str], labeler: Labeler) -> Counter[int]:
    """Withdraw the answers to items that have none at the labeller any more."""
    with open_stores() as stores:
        there = [one for one in labels.sent_requests(stores.db, project_id=project.id or 0) if not one.gone]
        unseen = [request.id or 0 for request in there if request.key not in seen]
        live = [
            label
            for label in labels.answers_to(stores.db, request_ids=unseen)
            if label.state is not RequestState.DELETED
        ]
        census = labeler.census(project.external_id)
        if live and census is not None and not seen and census.answers + census.skipped_items:
            raise Unavailable(f"{labeler.name} counts answers and lists none; nothing was changed: sync again later")
        stores.db.add_all(_withdrawn(label) for label in live)
        withdrawn = Counter(label.request_id or 0 for label in live)
        for request in there:
            request.stale = request.stale or request.id in withdrawn
            stores.db.add(request)
        return Counter({request.batch_id: withdrawn[request.id or 0] for request in there if request.id in withdrawn})


def _synced(stores: Stores, batch_id: int, pulled: Pulled) -> Synced:
    batch = labels.get_batch(stores.db, batch_id=batch_id)
    run = stores.db.get_one(CampaignRun, batch.run_id)
    project = labels.get_project(stores.db, project_id=batch.project_id or 0)
    return Synced(
        batch_id=batch_id,
        campaign=stores.db.get_one(Campaign, run.campaign_id).name,
        state=batch.state,
        new_labels=pulled.new[batch_id],
        rejected=labels.count_rejected(stores.db, batch_id=batch_id),
        states=labels.count_states(stores.db, batch_id=batch_id),
        golden=labels.count_requests(stores.db, batch_id=batch_id)[1],
        foreign=project.census.get("foreign", 0),
        complete=batch.state is BatchState.COMPLETE,
        reason=batch.reason,
    )
