"""sync-labels: every few minutes, poll the labeller for answers."""

from collections.abc import Sequence

from prefect import flow
from prefect.context import FlowRunContext
from prefect.events import emit_event

from models.errors import DipnetError
from models.plans import SyncPlan
from models.values import Synced
from tasks import labeling, reporting


@flow(name="sync-labels")
def sync_labels(plan: SyncPlan = SyncPlan()) -> list[Synced]:  # noqa: B008  frozen, so that the form has defaults
    """Fetch new answers for every open batch; a batch that becomes complete emits dipnet.batch.completed.

    A batch that cannot be synced fails the flow, once all the others are synced.

    Args:
        plan: Which campaigns; all by default.
    """
    outcomes: list[Synced] = []
    troubles: list[DipnetError] = []
    for batch_id in labeling.batches_to_sync(plan.campaigns):
        try:
            outcomes.append(labeling.sync_batch(batch_id))
        except DipnetError as problem:  # one batch's trouble is not another's
            troubles.append(type(problem)(f"batch {batch_id}: {problem}"))
    if FlowRunContext.get():
        _tell_completed(outcomes)
    reporting.publish("synced", outcomes)
    if troubles:
        told = "; ".join(str(problem) for problem in troubles)
        raise type(troubles[0])(f"{told} (the other {len(outcomes)} open batches are synced)")
    return outcomes


def _tell_completed(outcomes: Sequence[Synced]) -> None:
    """An event for each batch that became complete."""
    for synced in outcomes:
        if synced.complete:
            emit_event(
                "dipnet.batch.completed",
                resource={
                    "prefect.resource.id": f"dipnet.batch.{synced.batch_id}",
                    "dipnet.campaign": synced.campaign,
                },
            )
