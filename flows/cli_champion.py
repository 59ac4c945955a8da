"""`dipnet model …`: which models there are, what is known of them, and which one is champion."""

from __future__ import annotations

from typing import Annotated

import typer

from flows import console
from flows.cli_settings import setting_rows
from flows.console import Json
from models.retraining import ExternalOptions, FinetuneOptions, GatePolicy, HeadOptions, SplitPolicy

HELP = """Models: versions of classifiers, and the champion among them.

A model is named NAME (its newest version), NAME@2 (its second) or `champion`. What passes its gate becomes champion; the
next one is compared with it; `dipnet model undo` takes that back.
"""
model_app = typer.Typer(help=HELP, no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="NAME, NAME@VERSION or champion.")]
SETTINGS = (
    ("head", HeadOptions),
    ("finetune", FinetuneOptions),
    ("external", ExternalOptions),
    ("splits", SplitPolicy),
    ("gate", GatePolicy),
)


@model_app.command("list")
def model_list(as_json: Json = False) -> None:
    """Every model version, the newest first; ★ marks the champion."""
    from tasks import model_views

    console.show(model_views.model_rows(), as_json=as_json, title="models")


@model_app.command("show")
def model_show(model: Model, as_json: Json = False) -> None:
    """What a model was trained on and whose labels these were, how good it is on each scenario, what gates said of it."""
    from tasks import attribution, model_views

    found = model_views.model_record(model)
    found["campaigns"] = attribution.model_record(model)["dataset"].get("campaigns", [])
    if as_json:
        console.show(found, as_json=True)
        return
    for one in found["campaigns"]:
        one["uplift"] = [
            f"{row['metric']} {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]" for row in one["uplift"]
        ]
    tables = {name: found.pop(name) for name in ("campaigns", "evaluations", "gates", "promotions")}
    console.show(found, as_json=False)
    for name, rows in tables.items():
        console.show(model_views.brief(rows), as_json=False, title=name)


@model_app.command("champion")
def model_champion(as_json: Json = False) -> None:
    """The champion: the model that the next one is compared with."""
    from tasks import model_views

    console.show(model_views.champion_record(), as_json=as_json)


@model_app.command("history")
def model_history(as_json: Json = False) -> None:
    """Every promotion, the newest first, with its reason; those that were undone too."""
    from tasks import model_views

    console.show(model_views.history_rows(), as_json=as_json, title="promotions")


@model_app.command("promote")
def model_promote(
    model: Model,
    because: Annotated[str, typer.Option(help="Why, for those who look later.")] = "promoted by hand",
    as_json: Json = False,
) -> None:
    """Make a model champion, whatever gates say of it."""
    from tasks import promoting

    console.show(promoting.promote(model, because), as_json=as_json)


@model_app.command("undo")
def model_undo(as_json: Json = False) -> None:
    """Take the newest promotion back: the model before is champion again. Several in a row go further back.

    What was undone is not promoted again by a schedule; `dipnet model promote` can.
    """
    from tasks import promoting

    console.show(promoting.undo(), as_json=as_json)


@model_app.command("settings")
def model_settings(as_json: Json = False) -> None:
    """Everything that --set of `dipnet train` may change, with defaults: of the chosen trainer, the splits and the gate."""
    console.show(setting_rows(SETTINGS), as_json=as_json, title="settings of a training")
