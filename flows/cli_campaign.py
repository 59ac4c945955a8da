"""`dipnet campaign …`: from an issue to a batch, round by round."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows import console
from flows.cli_settings import fields_of, setting_rows
from flows.console import Json
from models.errors import BadInput
from models.plans import CampaignPlan, ContinuePlan, LabelPolicy, Plan, PoolFilter, SelectionPolicy, StopRule
from models.retraining import HeadOptions, TrainerPlan, UpliftPlan
from models.states import CampaignState
from models.values import Mined

campaign_app = typer.Typer(help="Campaigns: find more of an issue and have it labelled.", no_args_is_help=True)

Campaign = Annotated[str, typer.Argument(help="Name of a campaign.")]
SETTINGS: tuple[type[Plan], ...] = (SelectionPolicy, StopRule, LabelPolicy)
WHICH = "ranks (3, 10-25) or the first characters of sample ids"
Samples = Annotated[list[str], typer.Argument(help="Sample ids, or the first six or more characters of them.")]


@campaign_app.command("run")
def campaign_run(
    name: Annotated[str, typer.Argument(help="A new name, or that of a campaign to go on with.")],
    issue: Annotated[str, typer.Option(help="An issue with exemplars.")],
    corpus: Annotated[list[str], typer.Option(help="A corpus to search; repeat for several.")],
    budget: Annotated[
        int, typer.Option(help="Label requests to send, over all rounds; standing: each time there is something new.")
    ] = 200,
    rounds: Annotated[int, typer.Option(help="Rounds to spend it in; each waits for the labels before.")] = 1,
    strategy: Annotated[str, typer.Option(help="probe, nearest, text or random.")] = "probe",
    text: Annotated[str, typer.Option(help="What to look for in words; makes the strategy text.")] = "",
    min_score: Annotated[float, typer.Option(help="Least score, 0 to 1; 0.5 is half-way to an exemplar.")] = 0.0,
    where: Annotated[str, typer.Option(help="SQL over metadata columns, such as: camera = 'roof'.")] = "",
    time_column: Annotated[str, typer.Option(help="Metadata column with the time of an image.")] = "",
    since: Annotated[str, typer.Option(help="Only images from this time on, such as 2026-11-01.")] = "",
    until: Annotated[str, typer.Option(help="Only images before this time.")] = "",
    standing: Annotated[bool, typer.Option("--standing", help="Whenever run again, look at new shards only.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of chance.")] = 0,
    model: Annotated[str, typer.Option(help="Model version whose predictions go along.")] = "",
    class_name: Annotated[list[str] | None, typer.Option("--class", help="A class to choose from; repeat.")] = None,
    encoder: Annotated[str, typer.Option(help="Encoder whose vectors are searched; default: DIPNET_ENCODER.")] = "",
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; `dipnet campaign settings` lists them."),
    ] = None,
    route: Annotated[bool, typer.Option("--route/--no-route", help="Send the choice, or stop after mining.")] = True,
    auto_accept: Annotated[
        bool | None,
        typer.Option(
            "--auto-accept/--review",
            help="Send what nobody discarded (default), or wait for `dipnet campaign review`; a campaign keeps to it.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be chosen; keep and send nothing.")
    ] = False,
    sheet: Annotated[Path | None, typer.Option(help="With --dry-run: write a contact sheet there (PNG).")] = None,
    as_json: Json = False,
) -> None:
    """Mine corpora for more of an issue, choose within a budget, and send the choice to be labelled.

    Run it again and it goes on where it is: the next round, once labels are in; new shards, when it is standing.
    """
    if sheet is not None and not dry_run:
        raise BadInput("--sheet needs --dry-run; nothing was sent")
    given: dict[str, Any] = {"budget": budget, "rounds": rounds, "min_score": min_score, "seed": seed, "text": text}
    given |= {"strategy": "text" if text and strategy == "probe" else strategy}
    policy, stop, labelling = fields_of(more or [], SETTINGS, listing="dipnet campaign settings")
    from tasks.planning import accept_of

    labelling.setdefault("accept", accept_of(name, auto_accept))
    plan = CampaignPlan(
        campaign=name,
        issue=issue,
        corpora=corpus,
        policy=SelectionPolicy.model_validate(given | policy),
        pool=PoolFilter(where=where, time_column=time_column, since=since, until=until),
        stop=StopRule.model_validate(stop),
        labelling=LabelPolicy.model_validate(labelling),
        standing=standing,
        encoder=encoder,
        model=model,
        class_names=class_name or [],
        route=route,
    )
    if dry_run:
        _preview(plan, sheet, as_json=as_json)
        return
    from flows.campaign import run_campaign
    from flows.control_plane import call

    with console.progress():
        found = call(run_campaign)(plan)
    sent = found.sent.model_dump() if found.sent else {}
    console.warn(_doubts(found.mined))
    console.show({"campaign": name, "status": found.status, **found.mined.model_dump(), **sent}, as_json=as_json)


def _preview(plan: CampaignPlan, sheet: Path | None, *, as_json: bool) -> None:
    from tasks import previewing

    with console.progress():
        found = previewing.preview(plan, sheet)
    mined = found.mined.model_dump(exclude={"run_id"}) if found.mined else {}
    shown = {"campaign": found.campaign, "status": found.status, **mined, "sheet": found.sheet}
    console.warn(_doubts(found.mined) if found.mined else "")
    console.show(shown, as_json=as_json)


def _doubts(mined: Mined) -> str:
    """What is to be said of the exemplars' labels, in a campaign's first run; '' when all look right."""
    found = mined.found.get("suspects", {})
    return str(found.get("says", "")) if found.get("suspects") or not found.get("judged", 0) else ""


@campaign_app.command("settings")
def campaign_settings(as_json: Json = False) -> None:
    """Everything that --set may change, with defaults."""
    rows = setting_rows([("campaign", owner) for owner in SETTINGS])
    rows = [{name: row[name] for name in ("name", "default", "what")} for row in rows]
    console.show(rows, as_json=as_json, title="settings of a campaign")


@campaign_app.command("review")
def campaign_review(
    name: Campaign,
    accept: Annotated[list[str] | None, typer.Option(help=f"Show the issue: {WHICH}; repeat.")] = None,
    discard: Annotated[list[str] | None, typer.Option(help=f"Do not: {WHICH}; repeat.")] = None,
    rest: Annotated[str, typer.Option(help="What becomes of all the others: accept, discard, or nothing yet.")] = "",
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet with the ranks there (PNG).")] = None,
    send: Annotated[bool, typer.Option("--send", help="Send what is accepted to be labelled.")] = False,
    as_json: Json = False,
) -> None:
    """Look through a mined run's candidates before they are sent: accept some, discard others, send what is accepted.

    `dipnet campaign run --review` mines and then waits for this.
    """
    from tasks import reviewing

    found = reviewing.review_run(name, accept=accept or [], discard=discard or [], rest=rest, sheet=sheet)
    sent = reviewing.send(name).model_dump() if send else {}
    if as_json:
        console.show({**found.model_dump(), **sent}, as_json=True)
        return
    console.show(found.candidates, as_json=False, title=f"run {found.run_id} of {name}")
    console.show({**found.model_dump(exclude={"candidates"}), **sent}, as_json=False)


@campaign_app.command("continue")
def campaign_continue(
    campaigns: Annotated[list[str] | None, typer.Argument(help="Only these; default: all active ones.")] = None,
    as_json: Json = False,
) -> None:
    """Run every active campaign that has a round to come: its labels are in, or new shards are there."""
    from flows.campaign import continue_campaigns
    from flows.control_plane import call

    with console.progress():
        found = call(continue_campaigns)(ContinuePlan(campaigns=campaigns or []))
    console.show(found, as_json=as_json, title="campaigns that went on")


@campaign_app.command("list")
def campaign_list(as_json: Json = False) -> None:
    """Every campaign run: what was scanned, chosen, sent and answered."""
    from tasks import views

    console.show(views.campaign_rows(), as_json=as_json, title="campaign runs")


@campaign_app.command("show")
def campaign_show(
    name: Campaign,
    bought: Annotated[bool, typer.Option("--bought", help="Only what it bought and cost, without candidates.")] = False,
    as_json: Json = False,
) -> None:
    """What a campaign bought and what it cost; then its candidates, and why each is there.

    Labels asked and answered, hits, minutes and money; which dataset versions hold its labels and why others were left
    out; models that learnt from them, their differences with intervals, gates, and the uplift over a control campaign.

    --json prints the candidates alone, as it always did; --bought --json prints what it bought.
    """
    from flows import campaign_view
    from tasks import attribution, views

    if as_json:
        console.show(attribution.campaign_record(name) if bought else views.candidate_rows(name), as_json=True)
        return
    campaign_view.show(attribution.campaign_record(name))
    if not bought:
        console.show(views.candidate_rows(name), as_json=False, title=f"candidates of {name}")
        console.show(views.exclusion_rows(name), as_json=False, title="left out")


@campaign_app.command("uplift")
def campaign_uplift(
    name: Campaign,
    control: Annotated[str, typer.Option(help="Campaign of --strategy random over the same corpora.")],
    seeds: Annotated[int, typer.Option(min=2, max=100, help="Training seeds of each arm.")] = 5,
    scenario: Annotated[str, typer.Option(help="Scenario to measure on; default: the issue's own.")] = "",
    metric: Annotated[
        str, typer.Option(help="f1, recall or precision of the issue's class; accuracy; macro_f1.")
    ] = "f1",
    trainer: Annotated[str, typer.Option(help="logistic or mlp, on frozen embeddings.")] = "logistic",
    corpus: Annotated[
        list[str] | None, typer.Option(help="Labelled train corpus to start from; repeat; default: all.")
    ] = None,
    encoder: Annotated[str, typer.Option(help="Encoder whose vectors are the features; default: DIPNET_ENCODER.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="First seed.")] = 0,
    as_json: Json = False,
) -> None:
    """What a campaign's labels gave beyond as many labels drawn by chance: was it the campaign that did it?

    Both arms are learnt from with as many labels, several times over, and measured on the same images; the interval
    covers other images and other training seeds. Above 0: the campaign beats chance. No model version is made of it.
    """
    from flows import campaign_view
    from tasks import uplift

    plan = UpliftPlan(
        campaign=name, control=control, corpora=corpus or [], scenario=scenario, metric=metric,
        trainer=TrainerPlan(head=HeadOptions(kind=trainer)),
        seeds=seeds, encoder=encoder, seed=seed,
    )  # fmt: skip
    with console.progress():
        found = uplift.measure(plan)
    if as_json:
        console.show(found, as_json=True)
        return
    for warning in found.warnings:
        console.warn(warning)
    console.show([campaign_view.uplift(found.model_dump())], as_json=False, title=f"uplift of {name}")
    rows = [{"seed": one, **values} for one, values in zip(found.seeds, found.by_seed, strict=True)]
    console.show(rows, as_json=False, title="by training seed")
    left_out = [
        {"of": of, "reason": why, "labels": n} for of, some in found.excluded.items() for why, n in some.items()
    ]
    if left_out:
        console.show(left_out, as_json=False, title="not learnt from")


@campaign_app.command("progress")
def campaign_progress(name: Campaign, as_json: Json = False) -> None:
    """Hits per label by round, what they cost, what the next one will, and whether to stop."""
    from tasks import progress

    found = progress.progress(name)
    if as_json:
        console.show(found, as_json=True)
        return
    console.show(found.rounds, as_json=False, title=f"rounds of {name}")
    console.show(found.model_dump(exclude={"rounds"}), as_json=False)


@campaign_app.command("accept")
def campaign_accept(name: Campaign, samples: Samples, as_json: Json = False) -> None:
    """Say that candidates of a mined run show the issue. It steers the runs to come."""
    from tasks import reviewing

    console.show(reviewing.review(name, samples, accept=True), as_json=as_json)


@campaign_app.command("discard")
def campaign_discard(name: Campaign, samples: Samples, as_json: Json = False) -> None:
    """Say that candidates do not show the issue: they are not sent, never return, and steer the runs to come."""
    from tasks import reviewing

    console.show(reviewing.review(name, samples, accept=False), as_json=as_json)


@campaign_app.command("stop")
def campaign_stop(
    name: Campaign,
    because: Annotated[str, typer.Option(help="Why, for those who look later.")] = "stopped by hand",
    as_json: Json = False,
) -> None:
    """End a campaign; what it found stays."""
    from tasks import planning

    console.show(planning.set_state(name, CampaignState.STOPPED, because), as_json=as_json)


@campaign_app.command("resume")
def campaign_resume(name: Campaign, as_json: Json = False) -> None:
    """Take a stopped campaign up again."""
    from tasks import planning

    console.show(planning.set_state(name, CampaignState.ACTIVE, ""), as_json=as_json)


@campaign_app.command("export")
def campaign_export(
    file: Annotated[Path, typer.Argument(help="File to write (npz).")],
    campaigns: Annotated[list[str] | None, typer.Argument(help="Only these; default: all active ones.")] = None,
    as_json: Json = False,
) -> None:
    """Write probes and thresholds as a small file, to score frames where they are collected.

    There, tasks/compute/portable.py needs numpy alone: read_campaigns, sift, write_kept.
    """
    from tasks import collecting

    console.show({"file": str(file), "campaigns": collecting.export(file, campaigns or [])}, as_json=as_json)


@campaign_app.command("collect")
def campaign_collect(
    file: Annotated[Path, typer.Argument(help="File that the scorer's write_kept wrote.")],
    apply: Annotated[bool, typer.Option("--apply", help="Keep the candidates; without it, only say.")] = False,
    send: Annotated[
        bool, typer.Option("--send", help="With --apply: send them to be labelled too, beside the campaign's budget.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take what a collection process kept as candidates. The images must lie in the campaign's corpora, embedded."""
    from tasks import collecting

    if send and not apply:
        raise BadInput("--send needs --apply; without it nothing is kept")
    found = collecting.collect(file, apply=apply)
    sent = collecting.send(found.run_id).model_dump() if send else {}
    console.show({**found.model_dump(), **sent}, as_json=as_json)
