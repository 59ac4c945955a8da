"""The hand-off to Label Studio: nothing lost, nothing twice, whatever breaks; how quick it is; what its statistics are worth.

    uv run python tests/benchmarks/labeling.py [--json] [--quick] [--only CHECK]

CHECK: faults, kills, speed, at-once, webhooks, statistics. A real Label Studio is started on a copy of its data; back-offs
of dipnet are shortened in the fault matrix alone. Nothing is tuned on what is reported here.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

HOUSE = Path(__file__).parents[2]
sys.path.insert(0, str(HOUSE))

from harness import Check, run, say  # noqa: E402

from storage.labelstudio_server import LabelStudioServer  # noqa: E402
from tests.benchmarks import handoff, handoff_kills, handoff_speed, handoff_statistics, handoff_webhooks  # noqa: E402
from tests.benchmarks.handoff_checks import Outcome  # noqa: E402
from tests.services.migrated import migrated_label_studio  # noqa: E402


def fresh_data(migrated: Path) -> Iterator[Path]:
    """A data directory of its own, migrated already."""
    with tempfile.TemporaryDirectory(prefix="dipnet-benchmark-") as folder:
        yield Path(shutil.copytree(migrated, Path(folder) / "label-studio"))


def counted(name: str, found: Outcome, least: int) -> list[Check]:
    """The checks of a campaign of breakages: enough of them, and nothing went wrong."""
    for detail in found.details:
        say(f"{name}: {detail}")
    told = {"seconds": round(found.seconds, 1), "doubled until the next sync": found.tidied}
    checks = [Check(f"{name}: cases", found.cases, "cases", least, found.cases >= least, detail=told)]
    for kind in ("lost", "doubled", "wrong", "escaped"):
        count = int(getattr(found, kind))
        checks.append(Check(f"{name}: {kind}", count, "", 0, count == 0))
    return checks


def faults(migrated: Path, *, quick: bool) -> list[Check]:
    """Every call, every fault, there and back."""
    with fresh_data(migrated) as data, LabelStudioServer(data, environment=handoff.OPEN_TO_LOOPBACK) as server:
        found = handoff.fault_matrix(server, quick=quick, on_case=say)
    return counted("fault matrix", found, 10 if quick else 60)


def kills(migrated: Path, *, quick: bool) -> list[Check]:
    """Kill -9 at random instants."""
    count, requests = (6, 200) if quick else (30, 1_000)
    with fresh_data(migrated) as data:
        found = handoff_kills.kills(data, count=count, requests=requests, seed=0, on_case=say)
    return counted("kills", found, 5 if quick else 25)


def at_once(migrated: Path, *, quick: bool) -> list[Check]:
    """Two sends, two syncs."""
    with fresh_data(migrated) as data, LabelStudioServer(data) as server:
        found = handoff_kills.at_once(server, rounds=1 if quick else 3)
    return counted("two at once", found, 2)


def speed(migrated: Path, *, quick: bool) -> list[Check]:
    """Ten thousand there and back."""
    count, repeats = (1_000, 1) if quick else (10_000, 3)
    with fresh_data(migrated) as data:
        found = handoff_speed.measure_apart(data, count=count, repeats=repeats)
    ratio = sorted(found.ratios)[len(found.ratios) // 2]
    # What a send costs whatever its size, opening a project above all, is no measure in a small one.
    bar, met = (None, None) if quick else (1.5, ratio <= 1.5)
    scale = count / 10_000
    detail = {"raw at once": round(found.raw_at_once, 2), "raw by thousand": round(found.raw_by_thousand, 2)}
    return [
        Check(f"send {count:,} with predictions", found.send, "s", 60 * scale, found.send <= 60 * scale, detail=detail),
        Check("a send by one raw import of the same", ratio, "x", bar, met, [min(found.ratios), max(found.ratios)]),
        Check(
            f"first sync of {count - 100:,} answers", found.first_sync, "s", 90 * scale, found.first_sync <= 90 * scale
        ),
        Check("a sync of nothing new", found.idle_sync, "s"),
        Check("a sync of 100 new answers", found.next_sync, "s", 5, found.next_sync <= 5),
        Check("memory", found.megabytes, "MB", 500, found.megabytes <= 500, detail={"before": found.megabytes_before}),
        Check("all of it is right", float(found.right), "", 1, found.right),
    ]


CHECKS: dict[str, Callable[..., list[Check]]] = {
    "statistics": handoff_statistics.checks,
    "webhooks": handoff_webhooks.checks,
    "at-once": at_once,
    "speed": speed,
    "faults": faults,
    "kills": kills,
}


if __name__ == "__main__":
    run(str(__doc__), CHECKS, lambda: [migrated_label_studio(on_wait=say)])
