"""The hand-off to a real Label Studio while everything breaks: nothing lost, nothing twice, nothing wrong.

A case breaks one call of a send or of a sync in one way, lets dipnet do what it does then, runs it again on a mended way,
as Prefect's retry or the next poll would, and holds the server, read directly, against what was to be there.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from models.errors import DipnetError
from models.states import RequestState
from storage import labelstudio_connection
from storage.labelstudio_server import LabelStudioServer
from tests.benchmarks.handoff_annotators import Annotators
from tests.benchmarks.handoff_checks import Given, Outcome, check_present, check_sent, check_synced
from tests.benchmarks.handoff_direct import Direct
from tests.benchmarks.handoff_kills import at_once, kills
from tests.benchmarks.handoff_worker import send, sync
from tests.benchmarks.handoff_world import World, living_in, plant, world
from tests.services.faults import Call, Fault, FaultyWay

__all__ = ["Outcome", "World", "at_once", "fault_matrix", "kills", "living_in", "send", "sync", "world"]

REQUESTS = 12
HASTE = 0.02  # of dipnet's pauses between attempts
TIMEOUT_S = 3.0
HELD_S = 600.0  # a late request is held until it is released


class Spot(NamedTuple):
    """A call that can be broken: the how-manieth of its method and path in a send or a sync, and what it asks for."""

    work: str
    method: str
    path: str
    nth: int
    purpose: str


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


class Ground(NamedTuple):
    """What all cases share: a house, a server, and a way between them that breaks."""

    folder: Path
    direct: Direct
    way: FaultyWay


def fault_matrix(server: LabelStudioServer, *, quick: bool = False, on_case: Callable[[str], None] = str) -> Outcome:
    """Break every call of a send and of a sync in every way, each in a campaign of its own.

    Of calls that ask for the same, the first and the last are broken. dipnet's pauses are a fiftieth of what they are, and
    it waits 3 s for an answer instead of 120. Quick: every call is broken in some of the ways.
    """
    outcome, began = Outcome(), time.monotonic()
    with on_the_ground(server) as ground:
        for spot, breakage in cases(ground, quick=quick):
            name = f"{spot.work}, {spot.method} {spot.path} no. {spot.nth} ({spot.purpose}), {breakage.name}"
            on_case(name)
            outcome.add(run_case(ground, spot, breakage), name)
    outcome.seconds = time.monotonic() - began
    return outcome


@contextmanager
def on_the_ground(server: LabelStudioServer) -> Iterator[Ground]:
    """A house whose way to the server breaks on demand; dipnet is in a hurry and lives there while the block lasts."""
    with (
        tempfile.TemporaryDirectory(prefix="dipnet-handoff-") as folder,
        Direct(server.url, server.token) as direct,
        FaultyWay(server.url, late_s=HELD_S) as way,
        living_in(Path(folder), way.url, server.token),
        _in_a_hurry(),
    ):
        yield Ground(Path(folder), direct, way)


def cases(ground: Ground, *, quick: bool) -> list[tuple[Spot, Breakage]]:
    """Every call, as a run on a good way makes them, with every way to break it."""
    found: list[tuple[Spot, Breakage]] = []
    spots = [*_spots("send", _calls_of_send(ground)), *_spots("sync", _calls_of_sync(ground))]
    for number, spot in enumerate(spots):
        ways = EVERYWHERE if spot.method == "GET" else EVERYWHERE + WHERE_IT_CHANGES
        found += [(spot, way) for way in (ways[number % 4 :: 4] if quick else ways)]
    return found


def run_case(ground: Ground, spot: Spot, breakage: Breakage) -> Outcome:
    """Break one call of one campaign's send or sync, and see what comes of it."""
    found = (_send_case if spot.work == "send" else _sync_case)(ground, spot, breakage)
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
    _clear_away(ground, of)
    return found


def _sync_case(ground: Ground, spot: Spot, breakage: Breakage) -> Outcome:
    found, (of, given, asked) = Outcome(), _answered(ground)
    _break_off(ground, spot, breakage, lambda: sync(of), found)
    _must(lambda: sync(of), found)
    ground.way.release()
    ground.way.settle()
    if breakage.fault is Fault.SLOW_LATE:
        _must(lambda: sync(of), found)
    found.add(check_synced(of, given), "")
    deleted = {key for key, (state, _) in given.states.items() if state is RequestState.DELETED}
    found.add(check_present(of, ground.direct, given.states.keys() - deleted, overlaps=asked), "")
    _clear_away(ground, of)
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


def _clear_away(ground: Ground, of: World) -> None:
    # More than a page of projects would add calls to later cases.
    for project in ground.direct.projects(of.plan.campaign):
        ground.direct.delete_project(project)


def _calls_of_send(ground: Ground) -> list[Call]:
    of = plant(ground.folder, uuid4().hex, REQUESTS)
    ground.way.forget()
    send(of)
    calls = list(ground.way.calls)
    _clear_away(ground, of)
    return calls


def _calls_of_sync(ground: Ground) -> list[Call]:
    of, _, _ = _answered(ground)
    ground.way.forget()
    sync(of)
    calls = list(ground.way.calls)
    _clear_away(ground, of)
    return calls


def _spots(work: str, calls: Iterable[Call]) -> Sequence[Spot]:
    """The first and the last call of each method, path and purpose."""
    kinds: dict[tuple[str, str, str], list[Call]] = {}
    for call in calls:
        kinds.setdefault((call.method, call.path, _purpose(call)), []).append(call)
    return [
        Spot(work, method, path, call.nth, purpose)
        for (method, path, purpose), same in kinds.items()
        for call in ({same[0].nth: same[0], same[-1].nth: same[-1]}).values()
    ]


def _purpose(call: Call) -> str:
    """What a listing asks for: its fields and the conditions, without their values."""
    asked = parse_qs(urlsplit(call.target).query)
    query = json.loads(asked.get("query", ["{}"])[0])
    conditions = [one["filter"].rpartition(":")[2] for one in query.get("filters", {}).get("items", [])]
    return " ".join([*asked.get("include", []), *(["where", *conditions] if conditions else [])])


def _answered(ground: Ground) -> tuple[World, Given, dict[str, int]]:
    """A campaign that was sent, synced once and then answered in every way there is; what it is to know; overlaps."""
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
    people.answer(contested, "cat")
    people.answer(contested, "fox", by=colleague)
    people.delete(gone)
    people.answer(stray, "wolf")
    ground.direct.put(project, [people.tasks[key].data for key in (twice, younger)])
    copy = max(task.id for task in ground.direct.tasks(project) if task.key == younger)
    people.answer(younger, "fox", task=copy)
    people.answer(younger, "cat", by=colleague, task=copy)
    # Two that differ, and a class that was not offered, are no answer yet.
    asked = {contested: 3, younger: 3, stray: 2}
    people.states |= dict.fromkeys(asked, (RequestState.PENDING, ""))
    return of, people.synced(), asked


@contextmanager
def _in_a_hurry() -> Iterator[None]:
    """Shorten the pauses between attempts, and the wait for an answer."""
    module = labelstudio_connection
    before = module.time, module.TIMEOUT_S
    module.time = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds * HASTE))  # type: ignore[assignment]
    module.TIMEOUT_S = TIMEOUT_S
    try:
        yield
    finally:
        module.time, module.TIMEOUT_S = before
