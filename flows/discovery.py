"""discover-failures: find where a model fails, and propose that as an issue."""

from prefect import flow

from models.plans import DiscoverPlan
from models.values import Proposed
from tasks import discovering, evaluating, publishing


@flow(name="discover-failures")
def discover_failures(plan: DiscoverPlan) -> Proposed:
    """Evaluate a model on development data and open an issue from the clearest cluster of its failures.

    Args:
        plan: Which model, on which development scenario.
    """
    evaluating.evaluate(plan.model, plan.scenario)
    proposed = discovering.propose_issue(plan)
    publishing.publish("discovered", [proposed])
    return proposed
