"""sync-labels: every few minutes, poll the labeller for answers."""

from prefect import flow
from prefect.context import FlowRunContext
from prefect.events import emit_event

from models.plans import SyncPlan
from models.values import Synced
from tasks import labeling, reporting


@flow(name="sync-labels")
def sync_labels(plan: SyncPlan = SyncPlan()) -> list[Synced]:  # noqa: B008  frozen, so that the form has defaults
    """Fetch new answers for every open batch; a batch that becomes complete emits dipnet.batch.completed.

    Args:
        plan: Which campaigns; all by default.
    """
    outcomes = [labeling.sync_batch(batch_id) for batch_id in labeling.batches_to_sync(plan.campaigns)]
    if FlowRunContext.get():
        for synced in outcomes:
            if synced.complete:
                emit_event(
                    "dipnet.batch.completed",
                    resource={
                        "prefect.resource.id": f"dipnet.batch.{synced.batch_id}",
                        "dipnet.campaign": synced.campaign,
                    },
                )
    reporting.publish("synced", outcomes)
    return outcomes
