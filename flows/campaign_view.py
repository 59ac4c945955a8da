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
    out.print("\n[bold]dataset versions that know its batches[/bold]" + ("" if found["datasets"] else ": none yet"))
    for version in found["datasets"]:
        left = f"; left out: {console.cell(version['left_out'])}" if version["left_out"] else ""
        held = f"{version['holds']} of its labels ({console.cell(version['by_split'])})"
        out.print(f"  {version['dataset']}: {held} in {version['samples']} samples{left}", highlight=False)
    out.print("\n[bold]models that learnt from them[/bold]" + ("" if found["models"] else ": none yet"))
    for model in found["models"]:
        _show_model(model, out)
    for row in found["uplift"]:
        told = uplift(row)
        out.print(
            f"\n[bold]uplift over {told['control']}[/bold] at {told['labels of each']} labels each, {told['seeds']} seeds: "
            f"{told['metric']} {told['control, mean']} → {told['campaign, mean']}, {console.cell(told['uplift'])}"
            f"\n  on {told['scenario']}",
            highlight=False,
        )


def _show_model(model: Row, out: Console) -> None:
    """A line a difference, those of the issue first, and a line a gate."""
    out.print(f"  {model['model']} ({model['trainer']}, dataset version {model['dataset']})", highlight=False)
    for row in sorted(model["deltas"], key=lambda row: str(row["about"]) != "issue"):
        metric = f"{row['metric']} {row['class_name']}".strip()
        gained = console.cell(interval(row["delta"], row["low"], row["high"]))
        out.print(
            f"    {metric} {row['from']:.3f} → {row['to']:.3f}, {gained} against {row['before']} on {row['scenario']}",
            highlight=False,
        )
    if not model["deltas"]:
        out.print("    compared with nothing yet")
    for gate in model["gates"]:
        about = f" for {gate['issue']}" if gate["issue"] else ""
        out.print(f"    gate{about}: {gate['verdict']}; {console.cell('; '.join(gate['reasons']))}", highlight=False)


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
