"""`dipnet labels …`: what was sent, what came back, what it is worth and what it cost."""

from __future__ import annotations

from typing import Annotated

import typer

from flows import console
from flows.console import Json
from models.errors import NotFound
from models.plans import SyncPlan
from models.states import BatchState
from models.values import BatchQuality

labels_app = typer.Typer(help="Labels: what was sent, what came back, and what it is worth.", no_args_is_help=True)

Batch = Annotated[int, typer.Argument(help="Number of a batch; `dipnet labels list` has them.")]
Because = Annotated[str, typer.Option(help="Why, for those who look later.")]


@labels_app.command("sync")
def labels_sync(
    campaigns: Annotated[list[str] | None, typer.Argument(help="Only these campaigns; default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch answers, corrections, skips and withdrawals. Running it twice adds nothing."""
    from flows.control_plane import call
    from flows.labeling import sync_labels

    with console.progress():
        found = call(sync_labels)(SyncPlan(campaigns=campaigns or []))
    console.show(found, as_json=as_json, title="batches that wait or changed")


@labels_app.command("list")
def labels_list(
    campaigns: Annotated[list[str] | None, typer.Argument(help="Only these campaigns; default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Every batch: how many of its images are pending, labelled, skipped, empty or deleted, and what it cost."""
    from tasks import quality

    console.show(quality.batch_rows(campaigns or []), as_json=as_json, title="batches")


@labels_app.command("show")
def labels_show(
    campaign: Annotated[str, typer.Argument(help="Name of a campaign that has sent something.")],
    batch: Annotated[int, typer.Option(help="Only this batch.")] = 0,
    as_json: Json = False,
) -> None:
    """What a campaign's answers are worth: golden items, agreement, annotators, the model's guesses; and their cost."""
    from tasks import quality

    found = [one for one in quality.of_campaign(campaign) if batch in (0, one.batch_id)]
    if not found:
        raise NotFound(f"campaign '{campaign}' has no batch {batch}; see: dipnet labels list {campaign}")
    if as_json:
        console.show(found, as_json=True)
        return
    for one in found:
        _show(one)


def _show(found: BatchQuality) -> None:
    console.show(
        found.model_dump(exclude={"annotators", "classes"}),
        as_json=False,
        title=f"batch {found.batch_id} of {found.campaign}",
    )
    console.show(found.annotators, as_json=False, title="annotators")
    console.show(found.classes, as_json=False, title="classes")


@labels_app.command("rejected")
def labels_rejected(batch: Batch, as_json: Json = False) -> None:
    """Answers that do not count, because they are not in the schema: who gave them, to what, and why."""
    from tasks import quality

    console.show(quality.rejected_rows(batch), as_json=as_json, title=f"rejected answers of batch {batch}")


@labels_app.command("release")
def labels_release(batch: Batch, because: Because = "released by hand", as_json: Json = False) -> None:
    """Let a quarantined batch be used after all, whatever its golden items say."""
    from tasks import quality

    console.show(quality.set_state(batch, BatchState.OPEN, because), as_json=as_json)


@labels_app.command("reject")
def labels_reject(batch: Batch, because: Because = "rejected by hand", as_json: Json = False) -> None:
    """Close a batch for good: its labels are kept, and never used."""
    from tasks import quality

    console.show(quality.set_state(batch, BatchState.REJECTED, because), as_json=as_json)
