"""How the `dipnet` command speaks: tables for people, JSON for scripts, progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

Row = Mapping[str, Any]
# Options that most commands have.
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Encoder = Annotated[
    str,
    typer.Option(
        help="MODEL/PRETRAINED of open_clip, torchvision/MODEL/WEIGHTS, or a folder; default: DIPNET_ENCODER."
    ),
]


class RichProgress:
    """Shows the progress of steps as bars."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def start(self, what: str, total: int) -> int:
        """A new bar, or the unfinished one of that name."""
        for bar in self._bars.tasks:
            if bar.description == what and not bar.finished:
                return bar.id
        return self._bars.add_task(what, total=total, told="")

    def advance(self, number: int, by: int) -> None:
        """Move a bar on."""
        self._bars.advance(TaskID(number), by)

    def tell(self, number: int, text: str) -> None:
        """Words at the end of a bar."""
        self._bars.update(TaskID(number), told=text)


@contextmanager
def progress() -> Iterator[None]:
    """Show bars on standard error for the steps inside the block; they are wiped when it ends.

    What libraries print meanwhile goes there too, such as Ray's words for a worker that died: standard output is for
    what the command has to say.
    """
    from tasks.steps import showing

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=11)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
        TextColumn("[dim]{task.fields[told]}[/dim]", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    bars = Progress(*columns, console=Console(stderr=True), transient=True)
    with bars, showing(RichProgress(bars)), redirect_stdout(sys.stderr):
        yield


def show(found: BaseModel | Row | Sequence[BaseModel | Row], *, as_json: bool, title: str = "") -> None:
    """Print a record or a table of records."""
    many = isinstance(found, Sequence)
    rows = [_plain(row) for row in (found if isinstance(found, Sequence) else [found])]
    if as_json:
        print(json.dumps(rows if many else rows[0], indent=2, default=str))  # noqa: T201  the command's output
    elif many:
        print_table(rows, title=title)
    else:
        grid = Table(show_header=False, box=None, title=title or None, title_justify="left")
        for name, value in _spread(rows[0]):
            grid.add_row(f"[dim]{name.replace('_', ' ')}[/dim]", cell(value))
        Console().print(grid)


def _spread(row: Row, within: str = "") -> Iterator[tuple[str, object]]:
    """Names and values; what holds records of its own gets a line for each of them."""
    for name, value in row.items():
        if isinstance(value, Mapping) and any(isinstance(inside, Mapping) for inside in value.values()):
            yield from _spread(value, f"{within}{name}: ")
        else:
            yield within + name, value


def print_table(rows: Sequence[Row], *, title: str = "", styles: Sequence[str] = ()) -> None:
    """Print rows that have the same keys, each in a style of its own where styles are given."""
    console = Console()
    if not rows:
        console.print(f"[dim]{title or 'nothing'}: none yet[/dim]")
        return
    table = Table(title=title or None, title_justify="left")
    for name, value in rows[0].items():
        table.add_column(name.replace("_", " "), justify="right" if isinstance(value, int | float) else "left")
    for place, row in enumerate(rows):
        table.add_row(*(cell(value) for value in row.values()), style=styles[place] if styles else None)
    console.print(table)


def headline(message: str, *, colour: str = "") -> None:
    """A line of text; square brackets in it are no markup."""
    Console().print(cell(message), style=f"bold {colour}" if colour else None, highlight=False)


def cell(value: object) -> str:
    """A value as a person reads it; square brackets are not markup."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping) and {"right", "of", "low", "high"} <= set(value):
        return f"{value['right']}/{value['of']} = {value['share']:.3f} \\[{value['low']:.3f}, {value['high']:.3f}]"
    if isinstance(value, Mapping):
        counts = all(isinstance(count, int) for count in value.values())
        pairs = (f"{count} {name}" if counts else f"{name} {cell(count)}" for name, count in value.items())
        return ", ".join(pairs) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value) or "–"
    return "–" if value in (None, "") else str(value).replace("[", r"\[")


def warn(message: str) -> None:
    """One line on standard error that asks for a look; nothing for an empty one."""
    if message:
        Console(stderr=True, soft_wrap=True).print(f"[yellow]{cell(message)}[/yellow]", highlight=False)


def complain(message: str, *, code: int) -> None:
    """One line on standard error, and as JSON on standard output where JSON was asked for."""
    if "--json" in sys.argv:
        print(json.dumps({"error": message, "exit_code": code}))  # noqa: T201  the command's output
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/bold red] {cell(message)}", highlight=False)


def _plain(row: BaseModel | Row) -> dict[str, Any]:
    return row.model_dump(mode="json") if isinstance(row, BaseModel) else dict(row)
