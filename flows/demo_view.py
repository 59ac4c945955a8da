"""The demo's closing tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from flows import campaign_view, console


def show(report: dict[str, Any], out: Console) -> None:
    """The three arms on the issue's slice and over all, then every class before and after."""
    issue, arms = report["issue"], report["arms"]
    on_slice, overall = (report["scenarios"][report[name]] for name in ("slice", "overall"))
    out.print(f"\n[bold]{issue['name']}[/bold]: {issue['description']}", highlight=False)
    for arm in arms.values():
        out.print(
            f"  {arm['campaign']:<9} {arm['of_the_class']:>4} of {arm['candidates']} labelled images are {issue['class_name']}",
            highlight=False,
        )
    out.print(_arms_table(issue["class_name"], on_slice, overall))
    out.print(_classes_table(overall))
    for row in report["uplift"]:
        told = campaign_view.uplift(row)
        out.print(
            f"uplift over the control arm, {told['labels of each']} labels each, {told['seeds']} training seeds: "
            f"{told['metric']} {told['control, mean']} → {told['campaign, mean']}, "
            f"[bold]{console.cell(told['uplift'])}[/bold]",
            highlight=False,
        )
    gate = report["gate"]
    colour = {"pass": "green", "fail": "red"}.get(gate["verdict"], "yellow")
    out.print(f"[bold {colour}]gate: {gate['verdict']}[/bold {colour}]  {'; '.join(gate['reasons'])}", highlight=False)


def _arms_table(class_name: str, on_slice: dict[str, Any], overall: dict[str, Any]) -> Table:
    table = Table(
        title="three arms; differences with 95 % paired intervals",
        title_justify="left",
    )
    for name in ("", "before", "campaign", "control", "campaign − before", "control − before", "campaign − control"):
        table.add_column(name, justify="right" if name else "left")
    rows = (
        (f"issue's slice (n={on_slice['samples']}): F1 of {class_name}", on_slice, class_name, "f1"),
        (f"overall (n={overall['samples']}): accuracy", overall, "", "accuracy"),
        ("overall: macro F1", overall, "", "macro_f1"),
    )
    for title, scenario, key, metric in rows:
        campaign, control, uplift = (
            scenario["deltas"][side][key][metric] for side in ("campaign", "control", "uplift")
        )
        values = [f"{campaign['before']:.3f}", f"{campaign['after']:.3f}", f"{control['after']:.3f}"]
        table.add_row(title, *values, *(delta(found) for found in (campaign, control, uplift)))
    return table


def _classes_table(overall: dict[str, Any]) -> Table:
    table = Table(title="every class, overall: before → after the campaign", title_justify="left")
    table.add_column("class")
    for metric in ("precision", "recall", "F1"):
        table.add_column(metric, justify="right")
    for name, found in overall["deltas"]["campaign"].items():
        if name:
            cells = [found[metric] for metric in ("precision", "recall", "f1")]
            table.add_row(name, *(f"{c['before']:.2f} → {c['after']:.2f}  {delta(c)}" for c in cells))
    return table


def delta(found: dict[str, float]) -> str:
    """A difference and its interval; green when it lies above 0, red when below."""
    colour = "green" if found["low"] > 0 else "red" if found["high"] < 0 else "default"
    return rf"[{colour}]{found['delta']:+.3f}[/{colour}] [dim]\[{found['low']:+.3f}, {found['high']:+.3f}][/dim]"
