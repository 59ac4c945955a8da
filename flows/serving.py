"""`dipnet serve`: every flow as a deployment with a form in the Prefect UI."""

from datetime import timedelta
from pathlib import Path

from prefect import serve
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType
from rich.console import Console

from flows.campaign import continue_campaigns, run_campaign
from flows.control_plane import control_plane
from flows.corpus import embed_corpus, ingest_corpus
from flows.discovery import discover_failures
from flows.labeling import sync_labels
from flows.training import retrain_and_evaluate
from models.settings import load_settings

ON_DEMAND = (ingest_corpus, embed_corpus, discover_failures, run_campaign, retrain_and_evaluate)
SYNC_EVERY = timedelta(minutes=5)
CONTINUE_EVERY = timedelta(minutes=15)


def deployments() -> list[RunnerDeployment]:
    """All flows. Entry points are module paths: a file path would put flows/ itself on sys.path."""
    on_demand = [flow.to_deployment("dipnet", entrypoint_type=EntrypointType.MODULE_PATH) for flow in ON_DEMAND]
    regularly = [
        flow.to_deployment("dipnet", interval=every, entrypoint_type=EntrypointType.MODULE_PATH)
        for flow, every in ((sync_labels, SYNC_EVERY), (continue_campaigns, CONTINUE_EVERY))
    ]
    return [*on_demand, *regularly]  # type: ignore[list-item]


def serve_all(*, port: int) -> None:
    """Serve until interrupted. Raises BadSettings before anything starts when the settings are wrong."""
    settings = load_settings()
    folder = Path.cwd() if settings.root.startswith("s3://") else Path(settings.root)
    out = Console()
    out.print("starting the Prefect server; this takes half a minute …")
    with control_plane(folder / "prefect-server.log", port=port, ui=True) as url:
        page = f"{url.removesuffix('/api')}/deployments"
        out.print(f"[bold]{page}[/bold]  choose run-campaign, Run, and fill in the form; Ctrl-C ends")
        serve(*deployments())
