"""From answers to labels: poll a labeller, store what is new, say whether the batch is complete."""

from __future__ import annotations

from models.labeling import LabelBatch
from models.states import RequestState, RunState, move
from models.values import Answer, Synced
from storage import campaigns, labels
from storage.stores import open_stores
from tasks.routing import campaign_of, labeler_of
from tasks.steps import step


@step()
def batches_to_sync(campaign_names: list[str]) -> list[int]:
    """Batches that wait for answers, of these campaigns or of all. Raises NotFound for an unknown campaign."""
    with open_stores() as stores:
        for name in campaign_names:
            campaigns.get_campaign(stores.db, name=name)
        return [batch.id or 0 for batch, _ in labels.open_batches(stores.db, campaigns=campaign_names)]


@step()
def open_projects() -> list[str]:
    """Projects of the batches that wait for answers."""
    with open_stores() as stores:
        return [batch.project for batch, _ in labels.open_batches(stores.db, campaigns=[])]


@step()
def sync_batch(batch_id: int) -> Synced:
    """Fetch answers since the watermark and store them. Running it twice adds nothing."""
    with open_stores() as stores:
        batch = stores.db.get_one(LabelBatch, batch_id)
        pairs = {
            request.key: (request, candidate) for request, candidate in labels.requests_of(stores.db, batch_id=batch_id)
        }
        waiting = {key: c.sample_id for key, (request, c) in pairs.items() if request.state is RequestState.PENDING}
        run, labeler = campaigns.get_run(stores.db, run_id=batch.run_id), labeler_of(stores, batch)
        new, rejected = 0, 0
        for answer in labeler.answers(batch.project, waiting=waiting, since=batch.watermark):
            if answer.key not in pairs or not _fits(answer, batch):
                rejected += answer.key in pairs
                continue
            request, candidate = pairs[answer.key]
            new += labels.record(stores.db, request=request, candidate=candidate, answer=answer, source=labeler.name)
            batch.watermark = max(answer.answered_at, batch.watermark or answer.answered_at)
        states = labels.count_states(stores.db, batch_id=batch_id)
        batch.complete = RequestState.PENDING not in states
        if batch.complete:
            run.state = move(run.state, RunState.LABELLED)
        stores.db.add_all([batch, run])
        campaign = campaign_of(stores, run).name
    return Synced(
        batch_id=batch_id, campaign=campaign, new_labels=new, rejected=rejected, states=states, complete=batch.complete
    )


def _fits(answer: Answer, batch: LabelBatch) -> bool:
    """Whether an answer is one that was offered; annotations sent to Label Studio by API are not checked there."""
    return answer.state is not RequestState.LABELLED or answer.class_name in batch.class_names
