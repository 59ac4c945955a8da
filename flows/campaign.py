"""run-campaign and continue-campaigns: mine, select, route to be labelled, end. Waiting for people is state in the database."""

from prefect import flow
from prefect.context import FlowRunContext

from models.errors import DipnetError
from models.plans import CampaignPlan, ContinuePlan
from models.values import CampaignOutcome, Continued
from tasks import mining, planning, publishing, routing


@flow(name="run-campaign")
def run_campaign(plan: CampaignPlan) -> CampaignOutcome:
    """Mine corpora for more of an issue and send the best within the budget to be labelled.

    Run again, it goes on where it is: what was killed is finished, the next round begins once the labels of the last one
    are in, and a standing campaign looks at what is new. Otherwise nothing happens.

    Args:
        plan: The issue, where to search, how to choose, and the budget.
    """
    run_id = planning.plan_run(plan)
    mined = mining.mine_candidates(run_id)
    sends = plan.sends_by_itself and mined.candidates
    sent = routing.send_batch(routing.prepare_batch(run_id, plan)) if sends else None
    outcome = CampaignOutcome(campaign=plan.campaign, status=planning.stands(plan), mined=mined, sent=sent)
    publishing.publish(f"campaign-{plan.campaign}", [outcome.mined])
    return outcome


@flow(name="continue-campaigns")
def continue_campaigns(plan: ContinuePlan = ContinuePlan()) -> list[Continued]:  # noqa: B008  frozen, so that the form has defaults
    """Run every active campaign that has a round to come: its labels are in, or new shards are there.

    Args:
        plan: Which campaigns; all active ones by default.
    """
    run = run_campaign if FlowRunContext.get() else run_campaign.fn
    outcomes = []
    for one in planning.plans_to_continue(plan.campaigns):
        if isinstance(one, Continued):
            outcomes.append(one)
            continue
        try:
            outcomes.append(Continued(campaign=one.campaign, status=run(one).status))
        except DipnetError as problem:  # one campaign's trouble is not another's
            outcomes.append(Continued(campaign=one.campaign, status=f"failed: {problem}"))
    publishing.publish("continued", outcomes)
    return outcomes
