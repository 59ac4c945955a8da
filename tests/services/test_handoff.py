"""The hand-off to a real Label Studio while it breaks: a handful of what tests/benchmarks/labeling.py does in full."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.labelstudio_server import LabelStudioServer
from tests.benchmarks import handoff
from tests.benchmarks.handoff import Ground, Scene, Spot

IMPORT, LISTING = ("POST", "/api/projects/{id}/import"), ("GET", "/api/tasks/")


@pytest.fixture
def ground(house: Path, label_studio: LabelStudioServer) -> Iterator[Ground]:
    """dipnet in a hurry, and a way to the server that breaks."""
    with handoff.on_the_ground(label_studio) as found:
        yield found


def first(ground: Ground, scene: Scene, work: str, call: tuple[str, str]) -> Spot:
    """The first call of that method and path that a send or a sync makes."""
    spots = [spot for spot, _ in handoff.cases(ground, scene, quick=True) if spot.work == work]
    return next(spot for spot in spots if (spot.method, spot.path) == call)


def test_whatever_befalls_an_import_each_request_is_there_once(ground: Ground) -> None:
    scene = handoff.answered(ground)
    spot = first(ground, scene, "send", IMPORT)
    for breakage in handoff.EVERYWHERE:
        found = handoff.run_case(ground, scene, spot, breakage)
        assert found.ok, (breakage.name, found.details)


def test_whatever_befalls_a_listing_each_answer_is_stored_once(ground: Ground) -> None:
    scene = handoff.answered(ground)
    spot = first(ground, scene, "sync", LISTING)
    for breakage in handoff.EVERYWHERE:
        found = handoff.run_case(ground, scene, spot, breakage)
        assert found.ok, (breakage.name, found.details)
