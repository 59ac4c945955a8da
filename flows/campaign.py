"""run-campaign: mine, select, route to be labelled, and end. Waiting for people is state in the database."""

from prefect import flow

from models.values import CampaignOutcome, CampaignPlan
from tasks import mining, reporting, routing


@flow(name="run-campaign")
def run_campaign(plan: CampaignPlan) -> CampaignOutcome:
    """Mine corpora for more of an issue and send the best within the budget to be labelled.

    Args:
        plan: The issue, where to search, how to choose, and the budget.
    """
    run_id = mining.plan_run(plan)
    mined = mining.mine_candidates(run_id)
    sent = routing.send_batch(routing.prepare_batch(run_id, plan)) if plan.route else None
    outcome = CampaignOutcome(campaign=plan.campaign, mined=mined, sent=sent)
    reporting.publish(f"campaign-{plan.campaign}", [outcome.mined])
    return outcome
