"""A retraining that is killed, wherever it is, leaves nothing that another one could stumble over: the same rows, one model."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from flows.training import retrain_and_evaluate
from models.learning import Comparison, Evaluation, Gate, MetricDelta, ModelVersion
from storage.stores import open_stores
from tests.tasks.killed_training import PLAN, POINTS
from tests.tasks.test_loop import plan as campaign_plan
from tests.tasks.test_loop import rows_by_table, run_to_labels

ROOT = Path(__file__).parents[2]
QUICK = ("models/", "promotion")
MADE_BY = {"created_at", "seconds"}


def outcome() -> tuple[Any, ...]:
    """All that a retraining leaves, without times: rows, and what they say."""
    with open_stores() as stores:
        told = [
            [one.model_dump(exclude=MADE_BY) for one in stores.db.exec(select(table)).all()]  # type: ignore[call-overload]
            for table in (ModelVersion, Evaluation, Comparison, MetricDelta, Gate)
        ]
    return rows_by_table(), told


def start(point: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.tasks.killed_training", point]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def kill_at(point: str) -> None:
    """Kill -9 at a point of the work."""
    with start(point) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == point
        process.kill()
        process.wait(30)


@pytest.fixture
def ready(world: Path) -> Path:
    """A champion, and labels that it has not seen."""
    retrain_and_evaluate.fn(PLAN.model_copy(update={"campaigns": [], "issue": ""}))
    run_to_labels(campaign_plan(budget=12))
    return world


def copied(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def restored(root: Path, files: dict[Path, bytes]) -> None:
    for path in [path for path in root.rglob("*") if path.is_file() and path not in files]:
        path.unlink()
    for path, data in files.items():
        path.write_bytes(data)


def check_kills(ready: Path, points: list[str]) -> None:
    """Whatever a kill leaves, running it again gives what an undisturbed run gives, and a third time changes nothing."""
    root = ready / "root"
    before = copied(root)
    retrain_and_evaluate.fn(PLAN)
    whole = outcome()
    assert len(whole[1][0]) == 2
    for point in points:
        restored(root, before)
        kill_at(point)
        found = retrain_and_evaluate.fn(PLAN)
        assert Path(found.report.removeprefix("file://")).is_file()
        assert outcome() == whole, point
        assert (found.model, found.compared_with) == ("m@2", "m@1"), point
        assert retrain_and_evaluate.fn(PLAN).unchanged == "nothing changed since m@2"
        assert outcome() == whole, point


def test_killed_between_two_stages_and_run_again_gives_the_same(ready: Path) -> None:
    check_kills(ready, list(QUICK))


@pytest.mark.kills
def test_killed_after_every_stage_and_every_file(ready: Path) -> None:
    check_kills(ready, [point for point in POINTS if point not in QUICK])


@pytest.mark.kills
def test_killed_again_and_again_at_random_instants(ready: Path) -> None:
    root = ready / "root"
    before = copied(root)
    began = time.monotonic()
    with start("none") as process:
        assert process.wait(300) == 0
    length = time.monotonic() - began
    whole = outcome()
    generator = random.Random(5)
    restored(root, before)
    killed = 0
    for _ in range(12):
        with start("none") as process:
            try:
                process.wait(generator.uniform(0.4, 1.0) * length)
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
            process.wait(30)
    assert killed
    retrain_and_evaluate.fn(PLAN)
    assert outcome() == whole
