"""sync-labels: every few minutes, poll the labeller for answers."""

from prefect import flow

from models.errors import DipnetError
from models.plans import SyncPlan
from models.values import Synced
from tasks import labeling, publishing


@flow(name="sync-labels")
def sync_labels(plan: SyncPlan = SyncPlan()) -> list[Synced]:  # noqa: B008  frozen, so that the form has defaults
    """Fetch new answers for every batch; one that becomes complete emits dipnet.batch.completed.

    A project that cannot be synced fails the flow, once all the others are synced.

    Args:
        plan: Which campaigns; all by default.
    """
    outcomes: list[Synced] = []
    troubles: list[DipnetError] = []
    for project_id in labeling.projects_to_sync(plan.campaigns):
        try:
            outcomes += labeling.sync_project(project_id)
        except DipnetError as problem:  # one project's trouble is not another's
            troubles.append(type(problem)(f"label project {project_id}: {problem}"))
    labeling.announce()
    publishing.publish("synced", outcomes)
    if troubles:
        told = "; ".join(str(problem) for problem in troubles)
        raise type(troubles[0])(f"{told} (the other {len(outcomes)} batches are synced)")
    return outcomes
