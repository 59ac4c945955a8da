"""What every benchmark shares: checks with bars, the machine, a table or JSON, and the exit code."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


@dataclass
class Check:
    """A measured value against its bar; `ok` is None for a figure that has no bar."""

    check: str
    value: float
    unit: str
    bar: float | None = None
    ok: bool | None = None
    interval: list[float] | None = None
    detail: dict[str, Any] = field(default_factory=dict)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def run(
    told: str, groups: Mapping[str, Callable[..., list[Check]]], before: Callable[[], Sequence[Any]] = tuple
) -> None:
    """The command line of a benchmark: all groups of checks, or one. Each gets what `before` gives, and `quick`."""
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="a small version")
    parser.add_argument("--only", choices=groups, help="one of the checks")
    chosen = parser.parse_args()
    found: list[Check] = []
    given = before()
    for name, group in groups.items():
        if chosen.only in (None, name):
            say(f"{name} …")
            found += group(*given, quick=chosen.quick)
    finish(found, as_json=chosen.json)


def say(what: str) -> None:
    """Long work tells where it is."""
    print(what, file=sys.stderr, flush=True)


def finish(checks: list[Check], *, as_json: bool) -> None:
    """Print the checks and exit: 1 when one falls short."""
    if as_json:
        print(json.dumps({"machine": machine(), "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        table = Table("check", "value", "95 %", "bar", "", title=" · ".join(str(part) for part in machine().values()))
        for check in checks:
            within = f"[{check.interval[0]:.3f}, {check.interval[1]:.3f}]" if check.interval else ""
            told = {True: "ok", False: "[bold red]short[/bold red]", None: ""}[check.ok]
            bar = "" if check.bar is None else f"{check.bar:g}"
            table.add_row(check.check, f"{check.value:.3f} {check.unit}", within.replace("[", "\\["), bar, told)
        Console().print(table)
    sys.exit(1 if any(check.ok is False for check in checks) else 0)
