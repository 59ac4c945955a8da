"""The hand-off to a real Label Studio while everything breaks: nothing lost, nothing twice, nothing wrong.

A case breaks one call of a send or of a sync in one way, lets dipnet do what it does then, runs it again on a mended way,
as Prefect's retry or the next poll would, and holds the server, read directly, against what was to be there.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from sqlmodel import select

from models.base import utc_now
from models.errors import DipnetError
from models.labeling import LabelProject
from models.states import RequestState
from storage import labelstudio, labelstudio_connection
from storage.labelstudio_server import LabelStudioServer
from storage.stores import open_stores
from tests.benchmarks.handoff_annotators import Annotators
from tests.benchmarks.handoff_checks import Given, Outcome, check_present, check_sent, check_synced
from tests.benchmarks.handoff_direct import Direct
from tests.benchmarks.handoff_kills import at_once, kills
from tests.benchmarks.handoff_worker import send, sync
from tests.benchmarks.handoff_world import OPEN_TO_LOOPBACK, RECEIVER, World, living_in, plant, world
from tests.services.faults import Call, Fault, FaultyWay

__all__ = [
    "OPEN_TO_LOOPBACK",
    "Outcome",
    "World",
    "at_once",
    "fault_matrix",
    "kills",
    "living_in",
    "send",
    "sync",
    "world",
]

REQUESTS = 12
FEW = 5  # of them in an import, or on a page
HASTE = 0.02  # of dipnet's pauses between attempts
TIMEOUT_S = 3.0
DATABASE = "dipnet.db"
HELD_S = 600.0  # a late request is held until it is released


class Spot(NamedTuple):
    """A call that can be broken: the how-manieth of its method and path in a send or a sync, and what it asks for."""

    work: str
    method: str
    path: str
    nth: int
    purpose: str
    everything: bool  # whether it is broken in every way


class Breakage(NamedTuple):
    """One way to break a call. `late_s`: how long after the client was sent away the server gets a late request."""

    name: str
    fault: Fault
    seconds: float = 0.2
    late_s: float = HELD_S


EVERYWHERE = tuple(Breakage(fault.value, fault) for fault in Fault)
# What changes something at the server is also answered too late for us, or done while we ask again.
WHERE_IT_CHANGES = (
    Breakage("slow beyond the timeout", Fault.SLOW, seconds=TIMEOUT_S + 0.3),
    Breakage("slow, a little late", Fault.SLOW_LATE, late_s=0.05),
)


class Scene(NamedTuple):
    """A campaign that was sent, synced once and then answered in every way there is, and how to have it so again.

    A sync changes little at the server: it takes away what is there twice, asks for more opinions, and renews links.
    """

    of: World
    next: World  # its next round, which is not sent yet
    given: Given
    overlaps: dict[str, int]  # what the sync is to ask for, by key
    asked: list[int]  # the tasks that it asks this of
    twice: list[dict[str, Any]]  # the data of what it takes away
    house: Path  # the database as it was


class Ground(NamedTuple):
    """What all cases share: a house, a server, and a way between them that breaks."""

    folder: Path
    direct: Direct
    way: FaultyWay


def fault_matrix(server: LabelStudioServer, *, quick: bool = False, on_case: Callable[[str], None] = str) -> Outcome:
    """Break every call of a send and of a sync in every way, one at a time.

    Of calls of one method and path the first and the last are broken in every way, and the first that asks for something
    else in some. dipnet's pauses are a fiftieth of what they are (time.sleep of storage.labelstudio_connection is
    replaced), it waits 3 s for an answer instead of 120, and imports and lists five at a time. Quick: every third call
    is broken in one way.
    """
    outcome, began = Outcome(), time.monotonic()
    with on_the_ground(server) as ground:
        scene = answered(ground)
        for spot, breakage in cases(ground, scene, quick=quick):
            name = f"{spot.work}, {spot.method} {spot.path} no. {spot.nth} ({spot.purpose}), {breakage.name}"
            on_case(name)
            outcome.add(run_case(ground, scene, spot, breakage), name)
        clear_away(ground, scene.of)
    outcome.seconds = time.monotonic() - began
    return outcome


@contextmanager
def on_the_ground(server: LabelStudioServer) -> Iterator[Ground]:
    """A house whose way to the server breaks on demand; dipnet is in a hurry and lives there while the block lasts."""
    with (
        tempfile.TemporaryDirectory(prefix="dipnet-handoff-") as folder,
        Direct(server.url, server.token) as direct,
        FaultyWay(server.url, late_s=HELD_S) as way,
        living_in(Path(folder), way.url, server.token, **RECEIVER),
        _in_a_hurry(),
    ):
        yield Ground(Path(folder), direct, way)


def cases(ground: Ground, scene: Scene, *, quick: bool) -> list[tuple[Spot, Breakage]]:
    """Every call, as a run on a good way makes them, with the ways to break it."""
    found: list[tuple[Spot, Breakage]] = []
    calls = {"send": _calls_of_send(ground), "next send": _calls_of_next(ground, scene)}
    calls["sync"] = _calls_of_sync(ground, scene)
    spots = [spot for work, made in calls.items() for spot in _spots(work, made)]
    for number, spot in enumerate(spots[:: 3 if quick else 1]):
        ways = EVERYWHERE if spot.method == "GET" else EVERYWHERE + WHERE_IT_CHANGES
        if quick:
            ways = (ways[number * 5 % len(ways)],)
        elif not spot.everything:
            ways = ways[number % 3 :: 3]
        found += [(spot, way) for way in ways]
    return found


def run_case(ground: Ground, scene: Scene, spot: Spot, breakage: Breakage) -> Outcome:
    """Break one call of one send or sync, and see what comes of it."""
    if spot.work == "send":
        found = _send_case(ground, spot, breakage)
    else:
        found = (_next_case if spot.work == "next send" else _sync_case)(ground, scene, spot, breakage)
    found.cases = 1
    return found


def _send_case(ground: Ground, spot: Spot, breakage: Breakage) -> Outcome:
    found, of = Outcome(), plant(ground.folder, uuid4().hex, REQUESTS)
    _break_off(ground, spot, breakage, lambda: send(of), found)
    early = ground.direct.projects(of.plan.campaign)
    for project in early[:1]:
        ground.direct.put_foreign(project)
    _must(lambda: send(of), found)
    for project in ground.direct.projects(of.plan.campaign)[: 0 if early else 1]:
        ground.direct.put_foreign(project)
    if breakage.fault is Fault.SLOW_LATE:
        ground.way.release()
        ground.way.settle()
        _must(lambda: sync(of), found)
    found.add(check_sent(of, ground.direct, foreign=True), "")
    clear_away(ground, of)
    return found


def _next_case(ground: Ground, scene: Scene, spot: Spot, breakage: Breakage) -> Outcome:
    """Another round's batch, into a project that is known and holds one, and items of others."""
    found, of = Outcome(), scene.next
    shutil.copy(scene.house, ground.folder / DATABASE)
    _break_off(ground, spot, breakage, lambda: send(of), found)
    _must(lambda: send(of), found)
    if breakage.fault is Fault.SLOW_LATE:
        ground.way.release()
        ground.way.settle()
        _must(lambda: sync(of), found)
    found.add(check_sent(of, ground.direct, foreign=True, beside=scene.given.states.keys()), "")
    _take_away_next(ground, scene)
    return found


def _sync_case(ground: Ground, scene: Scene, spot: Spot, breakage: Breakage) -> Outcome:
    found, given = Outcome(), scene.given
    _restore(ground, scene)
    _break_off(ground, spot, breakage, lambda: sync(scene.of), found)
    _must(lambda: sync(scene.of), found)
    if breakage.fault is Fault.SLOW_LATE:
        ground.way.release()
        ground.way.settle()
        _must(lambda: sync(scene.of), found)
    found.add(check_synced(scene.of, given), "")
    deleted = {key for key, (state, _) in given.states.items() if state is RequestState.DELETED}
    found.add(check_present(scene.of, ground.direct, given.states.keys() - deleted, overlaps=scene.overlaps), "")
    return found


def _break_off(ground: Ground, spot: Spot, breakage: Breakage, work: Callable[[], None], found: Outcome) -> None:
    """The try that meets the fault: it may fail in dipnet's own words, or go well in spite of it."""
    ground.way.late_s = breakage.late_s
    broken = ground.way.break_(
        breakage.fault,
        method=spot.method,
        path_pattern=re.escape(spot.path),
        skip=spot.nth - 1,
        seconds=breakage.seconds,
    )
    try:
        work()
    except DipnetError:
        pass
    except Exception:  # noqa: BLE001  whatever escapes is what is looked for
        found.note("escaped", 1, traceback.format_exc(limit=-6))
    ground.way.clear()
    found.note("wrong", int(not broken.met), "fault that was not met")


def _must(work: Callable[[], None], found: Outcome) -> None:
    """The next try, on a good way, has to go well."""
    try:
        work()
    except DipnetError as problem:
        found.note("wrong", 1, f"try on a good way, {problem}")
    except Exception:  # noqa: BLE001  the same
        found.note("escaped", 1, traceback.format_exc(limit=-6))


def clear_away(ground: Ground, of: World) -> None:
    """Delete a campaign's projects."""
    # More than a page of projects would add calls to later cases.
    for project in ground.direct.projects(of.plan.campaign):
        ground.direct.delete_project(project)


def _calls_of_send(ground: Ground) -> list[Call]:
    of = plant(ground.folder, uuid4().hex, REQUESTS)
    ground.way.forget()
    send(of)
    calls = list(ground.way.calls)
    clear_away(ground, of)
    return calls


def _calls_of_next(ground: Ground, scene: Scene) -> list[Call]:
    shutil.copy(scene.house, ground.folder / DATABASE)
    ground.way.forget()
    send(scene.next)
    calls = list(ground.way.calls)
    _take_away_next(ground, scene)
    return calls


def _take_away_next(ground: Ground, scene: Scene) -> None:
    (project,) = ground.direct.projects(scene.of.plan.campaign)
    for task in ground.direct.tasks(project):
        if task.key and task.key not in scene.given.states:
            ground.direct.delete_task(task.id)


def _calls_of_sync(ground: Ground, scene: Scene) -> list[Call]:
    _restore(ground, scene)
    ground.way.forget()
    sync(scene.of)
    return list(ground.way.calls)


def _spots(work: str, calls: Iterable[Call]) -> list[Spot]:
    """The first and the last call of each method and path, and the first of each purpose."""
    by_path: dict[tuple[str, str], list[Call]] = {}
    by_purpose: dict[tuple[str, str, str], Call] = {}
    for call in calls:
        by_path.setdefault((call.method, call.path), []).append(call)
        by_purpose.setdefault((call.method, call.path, _purpose(call)), call)
    ends = {(call.method, call.path, call.nth): call for same in by_path.values() for call in (same[0], same[-1])}
    more = {(call.method, call.path, call.nth): call for call in by_purpose.values()}
    return [Spot(work, *name, _purpose(call), name in ends) for name, call in (ends | more).items()]


def _purpose(call: Call) -> str:
    """What a listing asks for: its fields and the conditions, without their values."""
    asked = parse_qs(urlsplit(call.target).query)
    query = json.loads(asked.get("query", ["{}"])[0])
    conditions = [one["filter"].rpartition(":")[2] for one in query.get("filters", {}).get("items", [])]
    return " ".join([*asked.get("include", []), *(["where", *conditions] if conditions else [])])


def answered(ground: Ground) -> Scene:
    """Make the scene of all syncs."""
    of, colleague = plant(ground.folder, uuid4().hex, REQUESTS), ground.direct.colleague()
    send(of)
    (project,) = ground.direct.projects(of.plan.campaign)
    ground.direct.put_foreign(project)
    people = Annotators(ground.direct, project)
    same, other, skip, empty, mended, undone, contested, gone, twice, younger, stray, *_ = sorted(people.tasks)
    first, second = people.answer(mended, "cat"), people.answer(undone, "dog")
    people.synced()
    sync(of)
    people.answer(same, "cat")
    people.answer(other, "fox")
    people.answer(skip, "dog", skipped=True)  # a skip keeps what it was pre-filled with
    people.answer(empty)
    people.correct(first, "dog")
    people.withdraw(second)
    people.delete(gone)
    people.answer(stray, "wolf")
    doubles = [people.tasks[key].data for key in (twice, younger)]  # which a case puts there
    ground.direct.put(project, doubles[1:])
    ground.direct.delete_task(people.tasks[younger].id)
    copy = max(task.id for task in ground.direct.tasks(project) if task.key == younger)
    asked = {contested: people.tasks[contested].id, younger: copy}
    for key, task in asked.items():
        people.answer(key, "cat", task=task)
        people.answer(key, "fox", task=task, by=colleague)
    # Two that differ, and a class that was not offered, are no answer yet.
    overlaps = {contested: 3, younger: 3, stray: 2}
    people.states |= dict.fromkeys(overlaps, (RequestState.PENDING, ""))
    following = plant(ground.folder, of.plan.campaign, REQUESTS, round_=2)
    _let_links_expire()
    house = Path(shutil.copy(ground.folder / DATABASE, ground.folder / "before.db"))
    return Scene(of, following, people.synced(), overlaps, [*asked.values(), people.tasks[stray].id], doubles, house)


def _let_links_expire() -> None:
    """The next sync renews the links of what waits."""
    with open_stores() as stores:
        for project in stores.db.exec(select(LabelProject)).all():
            project.media_until = utc_now()
            stores.db.add(project)


def _restore(ground: Ground, scene: Scene) -> None:
    """The scene as it was before any sync."""
    shutil.copy(scene.house, ground.folder / DATABASE)
    (project,) = ground.direct.projects(scene.of.plan.campaign)
    ground.direct.put(project, scene.twice)
    for task in scene.asked:
        ground.direct.set_overlap(task, 1)


@contextmanager
def _in_a_hurry() -> Iterator[None]:
    """Shorten the pauses between attempts and the wait for an answer; make imports and pages small, so as to have several."""
    module = labelstudio_connection
    before = module.time, module.TIMEOUT_S, module.PAGE, labelstudio.CHUNK
    module.time = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds * HASTE))  # type: ignore[assignment]
    module.TIMEOUT_S, module.PAGE, labelstudio.CHUNK = TIMEOUT_S, FEW, FEW
    try:
        yield
    finally:
        module.time, module.TIMEOUT_S, module.PAGE, labelstudio.CHUNK = before
