"""The proof on real images: twice the same, a network on pixels with its verdict, and trainings that are killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import Check

HOUSE = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "gate_worker.py"


@contextmanager
def prepared() -> Iterator[Path]:
    """A folder with the demo's images, embedded, and a head that was fitted on them."""
    with tempfile.TemporaryDirectory(prefix="dipnet-benchmark-") as folder:
        run("prepare", Path(folder))
        yield Path(folder)


def run(stage: str, folder: Path, *, root: Path | None = None, **more: str) -> dict[str, Any]:
    """A stage to its end."""
    done = subprocess.run(
        [sys.executable, WORKER, stage, folder],
        env=environment(folder, root, more),
        cwd=HOUSE,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def environment(folder: Path, root: Path | None, more: dict[str, str]) -> dict[str, str]:
    """Settings of the run alone."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DIPNET_", "PREFECT_API"))}
    own = {"ROOT": root or folder / "data", "ENCODER": HOUSE / "deploy" / "demo" / "clip", "LABELER": "oracle"}
    own["ORACLE_TRUTH"] = folder / "truth.csv"
    quiet = {"PREFECT_LOGGING_LEVEL": "CRITICAL", "DO_NOT_TRACK": "1"}
    return {**clean, **quiet, **{f"DIPNET_{name}": str(value) for name, value in own.items()}, **more}


def repeat_checks(*, quick: bool) -> list[Check]:
    """The same inputs in another process with other threads and hashes, and in another folder from the images on."""
    del quick
    with prepared() as folder, tempfile.TemporaryDirectory(prefix="dipnet-benchmark-") as elsewhere:
        first = run("head", folder, OMP_NUM_THREADS="1", PYTHONHASHSEED="1")
        shutil.copytree(folder / "data", folder / "copy")
        with_root = folder / "copy"
        for name in ("again",):
            forget(with_root, name)
        second = run("head", folder, root=with_root, OMP_NUM_THREADS="4", PYTHONHASHSEED="2")
        other = run("prepare", Path(elsewhere), PYTHONHASHSEED="3")
    return [
        same("another process: weights of a head, bit for bit", first["weights"], second["weights"]),
        same("another process: metrics and intervals, bit for bit", first["metrics"], second["metrics"]),
        same("another folder, from the images on: dataset hash", first["dataset"], other["dataset"]),
    ]


def forget(root: Path, name: str) -> None:
    """Take a model and all that was computed from it out of a copy, so that it is fitted and evaluated anew."""
    import sqlite3

    with sqlite3.connect(root / "dipnet.db") as db:
        (model,) = db.execute("SELECT id FROM modelversion WHERE name = ?", (name,)).fetchone()
        db.execute(
            "DELETE FROM evaluation WHERE inference_id IN (SELECT id FROM inferenceset WHERE model_id = ?)", (model,)
        )
        db.execute("DELETE FROM inferenceset WHERE model_id = ?", (model,))
        db.execute("DELETE FROM promotion WHERE model_id = ?", (model,))
        (training,) = db.execute("SELECT training_run_id FROM modelversion WHERE id = ?", (model,)).fetchone()
        db.execute("DELETE FROM modelversion WHERE id = ?", (model,))
        db.execute("DELETE FROM trainingrun WHERE id = ?", (training,))


def same(name: str, one: str, other: str) -> Check:
    return Check(name, float(one == other), "", 1, one == other)


def finetune_checks(*, quick: bool) -> list[Check]:
    """resnet18 from scratch on the demo's images, before and after the campaign."""
    if quick:
        return []
    with prepared() as folder:
        began = time.monotonic()
        found = run("pixels", folder)
        took = time.monotonic() - began
    target = next(row for row in found["findings"] if row["role"] == "target")
    ends = [target["low"], target["high"]]
    ended = found["verdict"] in ("pass", "fail", "inconclusive") and ends[0] < ends[1]
    told = {"verdict": found["verdict"], "reasons": found["reasons"]}
    return [
        Check("resnet18 from scratch: ends in a verdict", float(ended), "", 1, ended, detail=told),
        Check("… F1 on the issue's slice, after − before", target["delta"], "F1", interval=ends),
        Check("… campaign, both trainings, verdict", took, "s"),
    ]


def kill_checks(*, quick: bool) -> list[Check]:
    """Kill −9 in a training at random instants; then run it again: the same weights, and one model."""
    generator, wrong, doubled, count = random.Random(7), 0, 0, 2 if quick else 5
    with prepared() as folder:
        whole = folder / "whole"
        shutil.copytree(folder / "data", whole)
        began = time.monotonic()
        expected = run("small", folder, root=whole)
        took = time.monotonic() - began
        for number in range(count):
            root = folder / f"killed-{number}"
            shutil.copytree(folder / "data", root)
            share = (number + generator.random()) / count  # one in every part of the time that the work takes
            kill_after(took * (0.3 + 0.65 * share), folder, root)
            found = run("small", folder, root=root)
            wrong += found["weights"] != expected["weights"]
            doubled += found["models"] != 1
    return [
        Check("kill −9 in a training: instants", count, "", 5, count >= 5 or quick or None),
        Check("… other weights than undisturbed", wrong, "", 0, wrong == 0),
        Check("… models that are there twice", doubled, "", 0, doubled == 0),
    ]


def kill_after(seconds: float, folder: Path, root: Path) -> None:
    """Start the training and kill it with its children."""
    process = subprocess.Popen(
        [sys.executable, WORKER, "small", folder],
        env=environment(folder, root, {}),
        cwd=HOUSE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(seconds)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
