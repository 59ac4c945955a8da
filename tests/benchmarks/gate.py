"""The proof: how often the gate is wrong, what its intervals hold, what it sees, how quick it is, and that it repeats itself.

    uv run python tests/benchmarks/gate.py [--json] [--quick] [--only CHECK]

CHECK: null, coverage, power, speed, repeat, finetune, kills. The first three simulate worlds whose truth is known, under
seeds at which nothing was looked while methods were chosen; the others run dipnet on the demo's images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

HOUSE = Path(__file__).parents[2]
sys.path.insert(0, str(HOUSE))

from harness import Check, run  # noqa: E402

from tests.benchmarks import gate_runs, gate_simulations, gate_speed  # noqa: E402


def speed(*, quick: bool) -> list[Check]:
    """A million predictions of a hundred classes, as they lie in Parquet."""
    samples = 50_000 if quick else 1_000_000
    found = gate_speed.measure(samples)
    named = f"{samples:,} × {gate_speed.CLASSES}"
    bars = {"evaluate": 10.0, "compare": 30.0, "gigabytes": 2.0}
    words = {"evaluate": "evaluate", "compare": "compare with 2,000 resamples", "gigabytes": "most memory of both"}
    return [
        Check(f"{named}: {words[name]}", value, "GB" if name == "gigabytes" else "s", bars[name], value <= bars[name])
        for name, value in found._asdict().items()
    ]


CHECKS: dict[str, Callable[..., list[Check]]] = {
    "null": gate_simulations.null_checks,
    "coverage": gate_simulations.coverage_checks,
    "power": gate_simulations.power_checks,
    "speed": speed,
    "repeat": gate_runs.repeat_checks,
    "finetune": gate_runs.finetune_checks,
    "kills": gate_runs.kill_checks,
}


if __name__ == "__main__":
    run(str(__doc__), CHECKS)
