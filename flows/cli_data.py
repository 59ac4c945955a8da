"""`dipnet dataset` and `dipnet scenario`: frozen data to train on, and frozen data to measure on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows import console
from flows.console import Json
from models.retraining import RetrainPlan, SplitPolicy

dataset_app = typer.Typer(
    help="Dataset versions: frozen lists of samples, labels and splits. `dipnet train` freezes one by itself.",
    no_args_is_help=True,
)
scenario_app = typer.Typer(
    help="Scenarios: frozen subsets of evaluation data that models are measured on.", no_args_is_help=True
)

Dataset = Annotated[int, typer.Argument(help="Number of a dataset version; see: dipnet dataset list")]
GroupBy = Annotated[
    str, typer.Option(help="What belongs together: near-duplicates, or a metadata column such as video; '': nothing.")
]
DEFAULTS = SplitPolicy()
SHOWN = 20  # rows of each kind of change; --json has all


@dataset_app.command("freeze")
def dataset_freeze(
    corpora: Annotated[list[str] | None, typer.Argument(help="Train corpora; default: all there are.")] = None,
    campaign: Annotated[
        list[str] | None, typer.Option(help="Campaign whose answers are added; repeat; *: all.")
    ] = None,
    development: Annotated[float, typer.Option(help="Share of the answers' groups held back as development.")] = 0.0,
    holdout: Annotated[float, typer.Option(help="Share of the answers' groups held back as holdout.")] = 0.0,
    group_by: GroupBy = DEFAULTS.group_by,
    near_duplicate: Annotated[
        float, typer.Option(help="Images at least this similar (cosine) are near-duplicates.")
    ] = DEFAULTS.near_duplicate_cosine,
    may_shrink: Annotated[
        bool, typer.Option("--may-shrink", help="Let evaluation samples go that an earlier version had.")
    ] = False,
    encoder: Annotated[
        str, typer.Option(help="Encoder whose vectors tell near-duplicates; default: DIPNET_ENCODER.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Freeze the labels as they are now: the same labels are the same version.

    Related images are never in two splits. What is related to evaluation data is left out of training and counted, and a
    version that would lack evaluation samples that an earlier one had is refused.
    """
    from tasks import data_views, datasets

    splits = SplitPolicy(
        development=development,
        holdout=holdout,
        group_by=group_by,
        near_duplicate_cosine=near_duplicate,
        may_shrink=may_shrink,
    )
    plan = RetrainPlan(corpora=corpora or [], campaigns=campaign or [], splits=splits, encoder=encoder)
    console.show(data_views.dataset_record(datasets.freeze_dataset(plan)), as_json=as_json)


@dataset_app.command("list")
def dataset_list(as_json: Json = False) -> None:
    """Every dataset version, oldest first, with what it adds to its parent."""
    from tasks import data_views

    console.show(data_views.dataset_rows(), as_json=as_json, title="dataset versions")


@dataset_app.command("show")
def dataset_show(dataset: Dataset, as_json: Json = False) -> None:
    """One dataset version: samples by split and class, and what was left out, by reason."""
    from tasks import data_views

    console.show(data_views.dataset_record(dataset), as_json=as_json)


@dataset_app.command("export")
def dataset_export(
    dataset: Dataset,
    folder: Annotated[Path, typer.Argument(help="A new or an empty folder.")],
    format: Annotated[
        Literal["parquet", "csv", "jsonl"], typer.Option(help="Of the file samples.FORMAT, a row an image.")
    ] = "parquet",
    images: Annotated[
        Literal["none", "copy", "link"], typer.Option(help="Whether images come along, copied or as links.")
    ] = "none",
    hide_labels: Annotated[
        bool, typer.Option("--hide-labels", help="Leave the class of holdout rows empty, so that nobody trains on it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a dataset version as a folder for any training: dataset.json, samples.FORMAT, and images where wanted."""
    from tasks import exporting

    with console.progress():
        found = exporting.export_dataset(dataset, folder, format=format, images=images, hide_labels=hide_labels)
    console.show(found, as_json=as_json)


@dataset_app.command("diff")
def dataset_diff(
    before: Dataset,
    after: Annotated[int, typer.Argument(help="Another one.")],
    as_json: Json = False,
) -> None:
    """What changed between two dataset versions: samples added, removed, relabelled, and moved to another split."""
    from tasks import data_views

    found = data_views.dataset_diff(before, after)
    if as_json:
        console.show(found, as_json=True)
        return
    console.show({name: len(rows) for name, rows in found.items()}, as_json=False)
    for name, rows in found.items():
        if rows:
            console.show(rows[:SHOWN], as_json=False, title=name + (f", first {SHOWN}" if len(rows) > SHOWN else ""))


@scenario_app.command("new")
def scenario_new(
    name: Annotated[str, typer.Argument(help="A name such as night-scenes.")],
    corpus: Annotated[list[str] | None, typer.Option(help="Corpus with split development or holdout; repeat.")] = None,
    where: Annotated[str, typer.Option(help="SQL over metadata columns that its images meet; default: all.")] = "",
    regression: Annotated[
        bool, typer.Option("--regression", help="A regression suite: every gate looks at it, and none may lose on it.")
    ] = False,
    group_by: GroupBy = DEFAULTS.group_by,
    as_json: Json = False,
) -> None:
    """Freeze a named subset of evaluation data. The same name with another definition is refused.

    Images that belong together are resampled together, so that intervals stay honest.
    """
    from tasks import data_views, scenarios

    scenarios.freeze_scenario(name, corpus or [], where, regression=regression, group_by=group_by)
    console.show(data_views.scenario_record(name), as_json=as_json)


@scenario_app.command("list")
def scenario_list(as_json: Json = False) -> None:
    """Every scenario in its newest version."""
    from tasks import data_views

    console.show(data_views.scenario_rows(), as_json=as_json, title="scenarios")


@scenario_app.command("show")
def scenario_show(
    name: Annotated[str, typer.Argument(help="NAME for the newest version, or NAME@VERSION.")], as_json: Json = False
) -> None:
    """One scenario: its definition, and its samples by class."""
    from tasks import data_views

    console.show(data_views.scenario_record(name), as_json=as_json)


@scenario_app.command("grow")
def scenario_grow(
    name: Annotated[str, typer.Argument(help="Name of a scenario.")],
    as_json: Json = False,
) -> None:
    """Make a scenario's next version, where more samples meet its definition by now.

    The version before stays. One that would lose samples is refused: results could no longer be compared.
    """
    from tasks import scenarios

    console.show(scenarios.grow_scenario(name), as_json=as_json)
