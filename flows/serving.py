"""`dipnet serve`: every flow as a deployment with a form in the Prefect UI."""

from datetime import timedelta
from pathlib import Path

from prefect import serve
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.schedules import Cron, Schedule
from prefect.types.entrypoint import EntrypointType
from rich.console import Console

from flows.campaign import continue_campaigns, run_campaign
from flows.control_plane import control_plane
from flows.corpus import embed_corpus, ingest_corpus
from flows.discovery import discover_failures
from flows.labeling import sync_labels
from flows.training import retrain_and_evaluate
from models.errors import BadSettings
from models.retraining import RetrainPlan
from models.settings import load_settings

ON_DEMAND = (ingest_corpus, embed_corpus, discover_failures, run_campaign)
SYNC_EVERY = timedelta(minutes=5)
CONTINUE_EVERY = timedelta(minutes=15)
NIGHTLY = RetrainPlan(model="nightly", campaigns=["*"], issue="*")
AT_THREE = "0 3 * * *"
GATHER = timedelta(minutes=10)  # batches that become complete within it are learnt from together


def deployments(retrain_cron: str = "") -> list[RunnerDeployment]:
    """All flows. Entry points are module paths: a file path would put flows/ itself on sys.path."""
    on_demand = [flow.to_deployment("dipnet", entrypoint_type=EntrypointType.MODULE_PATH) for flow in ON_DEMAND]
    regularly = [
        flow.to_deployment("dipnet", interval=every, entrypoint_type=EntrypointType.MODULE_PATH)
        for flow, every in ((sync_labels, SYNC_EVERY), (continue_campaigns, CONTINUE_EVERY))
    ]
    return [*on_demand, *regularly, _retraining(retrain_cron)]  # type: ignore[list-item]


def _retraining(cron: str) -> RunnerDeployment:
    """At night and when labels are in: every campaign's labels, judged for each issue that they are about."""
    return retrain_and_evaluate.to_deployment(  # type: ignore[return-value]
        "dipnet",
        schedules=[nightly(cron)],
        triggers=[on_labels()],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def nightly(cron: str) -> Schedule:
    """The schedule that a cron line means, in UTC. Raises BadSettings.

    An empty line makes one that is off: without any, Prefect keeps the one that was deployed before.
    """
    try:
        return Cron(cron or AT_THREE, timezone="UTC", active=bool(cron), parameters=parameters(), slug="nightly")
    except ValueError:
        raise BadSettings(
            f"DIPNET_RETRAIN_CRON '{cron}' is no time (minute hour day month weekday, such as {AT_THREE}); mend it, or "
            "leave it empty"
        ) from None


def on_labels() -> DeploymentEventTrigger:
    """When a batch is complete. The first of several starts one run, as late as the last of them is in."""
    return DeploymentEventTrigger(
        name="retrain when labels are in",
        expect={"dipnet.batch.completed"},
        match={"prefect.resource.id": "dipnet.batch.*"},
        within=GATHER,
        schedule_after=GATHER,
        parameters=parameters(),
    )


def parameters() -> dict[str, object]:
    """Of the runs that nobody starts."""
    return {"plan": NIGHTLY.model_dump(mode="json", exclude_unset=True)}


def serve_all(*, port: int) -> None:
    """Serve until interrupted. Raises BadSettings before anything starts when the settings are wrong."""
    settings = load_settings()
    served = deployments(settings.retrain_cron)
    folder = Path.cwd() if settings.root.startswith("s3://") else Path(settings.root)
    out = Console()
    out.print("starting the Prefect server; this takes half a minute …")
    with control_plane(folder / "prefect-server.log", port=port, ui=True) as url:
        page = f"{url.removesuffix('/api')}/deployments"
        out.print(f"[bold]{page}[/bold]  choose run-campaign, Run, and fill in the form; Ctrl-C ends")
        serve(*served)
