"""The hand-off to a real Label Studio while it breaks: a handful of what tests/benchmarks/labeling.py does in full."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.labelstudio_server import LabelStudioServer
from tests.benchmarks import handoff, handoff_kills
from tests.benchmarks.handoff import EVERYWHERE, Ground
from tests.services.faults import Fault

IMPORT, LISTING = ("POST", "/api/projects/{id}/import"), ("GET", "/api/tasks/")
TRIED = [  # each fault that differs in what it leaves behind, where it hurts most
    ("send", IMPORT, {Fault.DROPPED_REQUEST, Fault.ERROR_502_AFTER, Fault.CUT_SHORT, Fault.SLOW_LATE}),
    ("next send", LISTING, {Fault.TRUNCATED}),
    ("sync", LISTING, {Fault.CUT_SHORT, Fault.ERROR_500}),
]


@pytest.fixture
def ground(house: Path, label_studio: LabelStudioServer) -> Iterator[Ground]:
    """dipnet in a hurry, and a way to the server that breaks."""
    with handoff.on_the_ground(label_studio) as found:
        yield found


def test_whatever_befalls_a_call_nothing_is_lost_doubled_or_wrong(ground: Ground) -> None:
    scene = handoff.answered(ground)
    cases = handoff.cases(ground, scene, quick=False)
    for work, (method, path), faults in TRIED:
        spot = next(spot for spot, _ in cases if (spot.work, spot.method, spot.path) == (work, method, path))
        for breakage in (one for one in EVERYWHERE if one.fault in faults):
            found = handoff.run_case(ground, scene, spot, breakage)
            assert found.ok, (spot, breakage.name, found.details)


def test_two_sends_and_two_syncs_at_once_have_one_effect(label_studio: LabelStudioServer) -> None:
    found = handoff_kills.at_once(label_studio, requests=20, rounds=1)
    assert (found.ok, found.cases) == (True, 2), found.details


def test_a_kill_loses_and_doubles_nothing(migrated: Path, tmp_path: Path) -> None:
    found = handoff_kills.kills(Path(shutil.copytree(migrated, tmp_path / "data")), count=1, requests=30, seed=0)
    assert (found.ok, found.cases) == (True, 1), found.details


@pytest.mark.kills
def test_kills_of_dipnet_and_of_label_studio_lose_and_double_nothing(migrated: Path, tmp_path: Path) -> None:
    found = handoff_kills.kills(Path(shutil.copytree(migrated, tmp_path / "data")), count=12, requests=300, seed=2)
    assert (found.ok, found.cases) == (True, 12), found.details
