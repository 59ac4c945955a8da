"""`dipnet predictions`: what a model that lives elsewhere says, checked and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows import console
from flows.console import Json
from models.retraining import PredictionsPlan

predictions_app = typer.Typer(help="Predictions of models that live elsewhere.", no_args_is_help=True)


@predictions_app.callback()
def predictions() -> None:
    """Predictions of models that live elsewhere."""


@predictions_app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="Parquet, CSV or JSONL: a row a sample.")],
    model: Annotated[str, typer.Option(help="Name of the model; other content makes its next version.")],
    scenario: Annotated[list[str], typer.Option(help="A scenario that the file answers for; repeat.")],
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Divide probabilities that do not add up to 1 by their sum.")
    ] = False,
    allow_extra: Annotated[
        bool, typer.Option("--allow-extra", help="Leave out rows about samples that no scenario asks for.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take a model's predictions from a file, so that it can be evaluated and compared like any other.

    A row names its sample in column `sample_id` (SHA-256 of the image's bytes), `uri`, or `key` (the file below its
    corpus's prefix, TAR/MEMBER in a tar, FILE#xywh=x,y,width,height for a box), and answers in `class_name`, in
    probabilities `p:CLASS` (or columns named as the classes), or both.

    Nothing is taken when a sample is missing, unknown or contradicted, or a probability is none: everything that is wrong
    is told by kind, with the first rows, and the exit code is 2. Importing a file twice changes nothing.
    """
    from tasks import importing

    plan = PredictionsPlan(
        file=str(file), model=model, scenarios=scenario, normalise=normalise, allow_extra=allow_extra
    )
    try:
        with console.progress():
            found = importing.import_predictions(plan)
    except importing.Refused as refused:
        if as_json:
            told = {"error": str(refused), "exit_code": refused.exit_code}
            console.show({**refused.report.model_dump(mode="json"), **told}, as_json=True)
            raise typer.Exit(refused.exit_code) from None
        console.print_table([problem.model_dump() for problem in refused.report.problems], title="not taken")
        raise
    if not as_json and found.problems:
        console.print_table([problem.model_dump() for problem in found.problems], title="taken all the same")
    record = found.model_dump(mode="json")
    console.show(record if as_json else {name: record[name] for name in record if name != "problems"}, as_json=as_json)
