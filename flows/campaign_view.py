"""How `dipnet campaign show` says what a campaign bought and what it cost."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from flows import console

Row = dict[str, Any]
COST = ("asked", "answered", "states", "labels", "hits", "minutes", "cost")


def show(found: Row) -> None:
    """The answer in a sentence, then the tables that it rests on."""
    out = Console()
    out.print(f"\n[bold]{console.cell(found['campaign'])}[/bold]: {console.cell(found['answer'])}", highlight=False)
    about = {"issue": f"{found['issue']} ({found['class_name']}), {found['issue_state']}", "campaign": found["state"]}
    if found["stopped_because"]:
        about["campaign"] += f": {found['stopped_because']}"
    console.show({**about, **{name: found[name] for name in COST}}, as_json=False)
    if not found["asked"]:
        return
    console.show(found["datasets"], as_json=False, title="dataset versions that know its batches")
    console.show(deltas(found["models"]), as_json=False, title="models that learnt from them, against those before")
    gates = [{"model": model["model"], **gate} for model in found["models"] for gate in model["gates"]]
    console.show(gates, as_json=False, title="gates")
    console.show([uplift(row) for row in found["uplift"]], as_json=False, title="uplift over a control at equal budget")


def deltas(models: list[Row]) -> list[Row]:
    """A row a model and scenario; a model that was compared with nothing has a row too."""
    rows = []
    for model in models:
        for one in model["deltas"] or [None]:
            told = (
                {
                    "scenario": one["scenario"],
                    "metric": f"{one['metric']} {one['class_name']}".strip(),
                    "before": f"{one['from']:.3f} ({one['before']})",
                    "after": f"{one['to']:.3f}",
                    "difference": interval(one["delta"], one["low"], one["high"]),
                }
                if one
                else {
                    "scenario": "compared with nothing yet",
                    "metric": "",
                    "before": "",
                    "after": "",
                    "difference": "",
                }
            )
            rows.append({"model": model["model"], "dataset": model["dataset"], **told})
    return rows


def uplift(row: Row) -> Row:
    """An uplift in a line."""
    return {
        "control": row["control"],
        "scenario": row["scenario"],
        "metric": f"{row['metric']} {row['class_name']}".strip(),
        "labels of each": row["budget"],
        "seeds": len(row["seeds"]),
        "control, mean": f"{sum(one['control'] for one in row['by_seed']) / len(row['by_seed']):.3f}",
        "campaign, mean": f"{sum(one['campaign'] for one in row['by_seed']) / len(row['by_seed']):.3f}",
        "uplift": interval(row["mean"], row["low"], row["high"]),
    }


def interval(value: float, low: float, high: float) -> str:
    """A difference and its 95 % interval."""
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
