"""What a person sees of a retraining in the Prefect UI: metrics, deltas, findings, the verdict, and where the report is."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext

from models.outcomes import Gated, Retrained
from storage.stores import open_stores
from tasks import model_views, publishing, reporting
from tasks.steps import step

ROWS = 500  # of a table: a browser shows no more with pleasure


@step()
def present(outcome: Retrained) -> Retrained:
    """In a flow run, the artifacts; then the report, last, since it says that all is done. Returns the outcome with its place."""
    told = outcome.model_copy(update={"report": _place(outcome.model)})
    if FlowRunContext.get():
        _publish(told)
    reporting.write_model_report(outcome.model)
    return told


@step()
def report_of(reference: str) -> str:
    """Where a model's report is; empty where there is none, or none that is complete."""
    with open_stores() as stores:
        done = stores.objects.exists(f"reports/{reference}/report.json")
    return _place(reference) if done else ""


def _place(reference: str) -> str:
    with open_stores() as stores:
        return stores.objects.uri(f"reports/{reference}/report.html")


def _publish(outcome: Retrained) -> None:
    name = publishing.key_of(f"model-{outcome.model.partition('@')[0]}")
    _table(f"{name}-metrics", model_views.metric_rows(outcome.model), f"Metrics of {outcome.model}")
    deltas = [
        {"scenario": compared.scenario, **row}
        for compared in outcome.comparisons
        for row in model_views.delta_rows(compared.comparison_id)
    ]
    _table(
        f"{name}-deltas", deltas, f"{outcome.compared_with} → {outcome.model}: every difference, with 95 % intervals"
    )
    findings = [
        {"about": gated.issue or "all", **row}
        for gated in outcome.gates
        for row in model_views.finding_rows(gated.gate_id)
    ]
    _table(f"{name}-findings", findings, "What the gate looked at")
    verdict = markdown_of(outcome)
    create_markdown_artifact(key=f"{name}-verdict", markdown=verdict, description=f"Verdict on {outcome.model}")


def markdown_of(outcome: Retrained) -> str:
    """The verdict and its reasons, for people."""
    against = f", compared with {outcome.compared_with}" if outcome.compared_with else ""
    lines = [f"# {outcome.model}{against}", ""]
    for gated in outcome.gates:
        lines += _verdict(gated)
    if not outcome.gates:
        lines += ["There is no verdict: it was compared with nothing.", ""]
    lines += [f"- issue '{issue}' was left out: {reason}" for issue, reason in outcome.left_out.items()]
    lines += [f"Champion: **{outcome.champion or 'none'}** ({outcome.promotion})"]
    lines += ["", f"Report: {outcome.report}"] if outcome.report else []
    return "\n".join(lines) + "\n"


def _verdict(gated: Gated) -> list[str]:
    about = f"Issue '{gated.issue}'" if gated.issue else "The change as a whole"
    needed = f"About {gated.samples_needed} samples of the issue's scenario would decide it."
    lines = [f"## {about}: {gated.verdict.value}", "", *(f"- {reason}" for reason in gated.reasons), ""]
    return lines + ([needed, ""] if gated.samples_needed else [])


def _table(key: str, rows: list[dict[str, object]], description: str) -> None:
    if rows:
        cells = [{name: publishing.cell_of(value) for name, value in row.items()} for row in rows[:ROWS]]
        create_table_artifact(key=key, table=cells, description=description)
