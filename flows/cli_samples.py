"""`dipnet sample …` and `dipnet issue check`: one image through the whole chain, and exemplars that may be mislabelled."""

from __future__ import annotations

from typing import Annotated

import typer

from flows import console
from flows.console import Json

sample_app = typer.Typer(help="Samples: one image, and all that is known of it.", no_args_is_help=True)

TABLES = ("exemplar_of", "labels", "candidate_in", "requests", "datasets", "scenarios", "predictions")
LONG = ("candidate_in", "requests")  # too many columns for a table


@sample_app.command("show")
def sample_show(
    sample: Annotated[str, typer.Argument(help="Sample id (the SHA-256 of the image), or its first six or more.")],
    as_json: Json = False,
) -> None:
    """Why an image is where it is: exemplar, candidate, label requests, dataset versions, scenarios, predictions.

    The chain of evidence read backwards, from one image: which campaign chose it and for which exemplar's sake, who
    answered what, which models learnt from it, and what each model takes it for.
    """
    from tasks import tracing

    with console.progress():
        found = tracing.sample_record(sample)
    if as_json:
        console.show(found, as_json=True)
        return
    console.show({name: value for name, value in found.items() if name not in TABLES}, as_json=False)
    for name in TABLES:
        for row in found[name] if name in LONG else ():
            console.show(row, as_json=False, title=name.replace("_", " "))
        if name not in LONG or not found[name]:
            console.show(found[name], as_json=False, title=name.replace("_", " "))


def issue_check(
    name: Annotated[str, typer.Argument(help="Name of an issue.")],
    encoder: Annotated[str, typer.Option(help="Encoder whose vectors are judged by; default: DIPNET_ENCODER.")] = "",
    as_json: Json = False,
) -> None:
    """Exemplars whose label looks wrong, before a campaign searches for more of the same.

    Labelled data with vectors is predicted out of sample, and what confident learning (cleanlab) does not believe is
    listed with the class that it looks like. Look at each image; correct its label, or take it out of the exemplars.
    """
    from tasks import suspects

    found = suspects.check_issue(name, encoder)
    if as_json:
        console.show(found, as_json=True)
        return
    console.show({key: value for key, value in found.items() if key != "suspects"}, as_json=False)
    console.show(found["suspects"], as_json=False, title="suspects")
