"""Every call that sending and syncing make, with every fault on its way, one at a time.

Which calls there are is seen in a run without a fault. Pauses between attempts are a hundredth of what they are, and
the client waits for two seconds, not for two minutes, so that a slow answer is one that never came.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import httpx
from sqlmodel import select

import storage.labelstudio
import storage.labelstudio_connection as connection
from flows.labeling import sync_labels
from models.base import utc_now
from models.errors import DipnetError
from models.labeling import LabelProject
from models.states import RequestState
from storage.labelstudio_server import LabelStudioServer
from storage.stores import open_stores
from tasks import routing
from tests.benchmarks import labeling_judge as judge
from tests.benchmarks.labeling_judge import Said, Verdict
from tests.benchmarks.labeling_world import (
    CLASSES,
    answer,
    forget_tasks,
    held,
    house_at,
    living_in,
    mined,
    plan_of,
    titled,
)
from tests.services.faults import Call, Fault, FaultyWay

COUNT = 11
TIMEOUT_S = 2.0


class Point(NamedTuple):
    """A call that is made, and which of its kind."""

    method: str
    path: str
    nth: int
    kind: str


class Case(NamedTuple):
    """One fault at one call of a stage, and what came of it."""

    stage: str
    point: Point
    fault: Fault
    verdict: Verdict
    raised: str  # what the broken run said; empty: it went well


@contextmanager
def impatient() -> Iterator[None]:
    """Small pages and imports, short pauses, and a short patience, while the block lasts."""
    kept = (connection.time, connection.TIMEOUT_S, connection.PAGE, storage.labelstudio.CHUNK)
    hasty = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 100))
    connection.time, connection.TIMEOUT_S, connection.PAGE, storage.labelstudio.CHUNK = hasty, TIMEOUT_S, 4, 4  # type: ignore[assignment]
    try:
        yield
    finally:
        connection.time, connection.TIMEOUT_S, connection.PAGE, storage.labelstudio.CHUNK = kept


class Stage:
    """One kind of work, begun again and again from the same state here and there."""

    name = ""
    like_another = False  # only those of its calls are broken that the stages before do not make

    def __init__(self, server: LabelStudioServer, home: Path, way: FaultyWay, folder: Path) -> None:
        self.home, self.way = home, way
        self.root, self.kept = folder / self.name.replace(" ", "-"), folder / f"{self.name}.db"
        self.campaign = self.name.replace(" ", "-")
        self.house = house_at(self.root, server, url=way.url)
        headers = {"Authorization": f"Token {self.house.token}"}
        self.api = httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False)

    def prepare(self) -> None:
        """Make the state that it begins from."""
        raise NotImplementedError

    def work(self) -> None:
        """What is broken."""
        raise NotImplementedError

    def judge(self) -> Verdict:
        """What became of it."""
        raise NotImplementedError

    def keep(self) -> None:
        """It begins from here. No connection is open, so that the file is all there is."""
        shutil.copy(self.root / "dipnet.db", self.kept)

    def reset(self) -> None:
        """Back to where it begins."""
        for end in ("-wal", "-shm"):
            (self.root / f"dipnet.db{end}").unlink(missing_ok=True)
        shutil.copy(self.kept, self.root / "dipnet.db")

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """A call of the server's own API, not along the way."""
        answered = self.api.request(method, path, **body).raise_for_status()
        return answered.json() if answered.content else None

    def send(self, run_id: int) -> int:
        """Send a run; the project."""
        return int(routing.send_batch(routing.prepare_batch(run_id, plan_of(self.campaign))).project)

    def add_foreign(self, project: int) -> None:
        """Two items that are not ours, of which one is answered."""
        self.ask("POST", f"/api/projects/{project}/import", json=[{"data": {"image": "x"}}] * 2)
        task = next(task for task in held(self.home, project) if "dipnet_key" not in task.data)
        answer(self.home, {task.id: (RequestState.LABELLED, CLASSES[0])})


class FirstSend(Stage):
    """The first batch of a campaign, whose project is still to be made."""

    name = "first send"

    def prepare(self) -> None:
        self.run = mined(self.campaign, COUNT)
        self.keep()

    def reset(self) -> None:
        super().reset()
        for project in titled(self.home, f"dipnet: {self.campaign}"):
            self.ask("DELETE", f"/api/projects/{project}/")

    def work(self) -> None:
        self.send(self.run)

    def judge(self) -> Verdict:
        return judge.sent(self.home, self.run)


class NextSend(Stage):
    """Another batch of a campaign, into a project that holds one, and items of others."""

    name = "next send"

    def prepare(self) -> None:
        self.first = mined(self.campaign, COUNT)
        self.project = self.send(self.first)
        self.add_foreign(self.project)
        self.last = max(task.id for task in held(self.home, self.project))
        self.run = mined(self.campaign, COUNT, number=2)
        self.keep()

    def reset(self) -> None:
        super().reset()
        forget_tasks(self.home, self.project, above=self.last)

    def work(self) -> None:
        self.send(self.run)

    def judge(self) -> Verdict:
        return judge.sent(self.home, self.run, beside=[self.first], others=2)


class FirstSync(Stage):
    """Answers of all kinds, an item that a person deleted, two that are there twice, links that are about to expire."""

    name = "first sync"

    def prepare(self) -> None:
        self.project = self.send(mined(self.campaign, COUNT))
        self.add_foreign(self.project)
        self.tasks = [task for task in held(self.home, self.project) if "dipnet_key" in task.data]
        self.expected = {task.data["dipnet_key"]: (RequestState.PENDING, "") for task in self.tasks}
        self.answer()
        self.delete(7)
        with open_stores() as stores:
            for project in stores.db.exec(select(LabelProject)):
                project.media_until = utc_now()
                stores.db.add(project)
        self.keep()

    def answer(self) -> None:
        """A class, a skip, nothing to say, a class that was not offered."""
        self.say(0, RequestState.LABELLED, CLASSES[0])
        self.say(1, RequestState.LABELLED, CLASSES[1])
        self.say(2, RequestState.SKIPPED, CLASSES[1])
        self.say(3, RequestState.EMPTY, "")
        self.say(4, RequestState.LABELLED, "hexagon")

    def say(self, place: int, state: RequestState, name: str) -> None:
        """Answer an item; what is expected of it follows."""
        answer(self.home, {self.tasks[place].id: (state, name)})
        said: Said = (state, name if state is RequestState.LABELLED else "")
        self.expected[self.tasks[place].data["dipnet_key"]] = (RequestState.PENDING, "") if name == "hexagon" else said

    def delete(self, place: int) -> None:
        """A person deletes an item."""
        self.ask("DELETE", f"/api/tasks/{self.tasks[place].id}/")
        self.expected[self.tasks[place].data["dipnet_key"]] = (RequestState.DELETED, "")

    def reset(self) -> None:
        super().reset()
        forget_tasks(self.home, self.project, above=self.tasks[-1].id + 2)  # the two of others
        self.ask(
            "POST", f"/api/projects/{self.project}/import", json=[{"data": self.tasks[place].data} for place in (8, 9)]
        )

    def work(self) -> None:
        sync_labels.fn()

    def judge(self) -> Verdict:
        found = judge.synced(self.home, self.project, self.expected)
        there = [task.data.get("dipnet_key", "") for task in held(self.home, self.project)]
        kept = [key for key, (state, _) in self.expected.items() if state is not RequestState.DELETED]
        found.expect("items", sorted(there), sorted([*kept, "", ""]))
        return found


class LaterSync(FirstSync):
    """The same after a first one, with a correction, a withdrawal and more answers."""

    name = "later sync"
    like_another = True

    def answer(self) -> None:
        self.say(5, RequestState.LABELLED, CLASSES[0])
        self.say(6, RequestState.LABELLED, CLASSES[0])
        self.say(10, RequestState.SKIPPED, CLASSES[0])
        sync_labels.fn()
        given = {task.id: next(iter(task.answers), "") for task in held(self.home, self.project)}
        corrected, withdrawn = given[self.tasks[5].id], given[self.tasks[6].id]
        choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [CLASSES[1]]}}
        self.ask("PATCH", f"/api/annotations/{corrected}/", json={"result": [choice]})
        self.ask("DELETE", f"/api/annotations/{withdrawn}/")
        self.expected[self.tasks[5].data["dipnet_key"]] = (RequestState.LABELLED, CLASSES[1])
        self.expected[self.tasks[6].data["dipnet_key"]] = (RequestState.PENDING, "")
        super().answer()


STAGES: list[type[Stage]] = [FirstSend, NextSend, FirstSync, LaterSync]


def matrix(server: LabelStudioServer, home: Path, folder: Path, *, every: int = 1) -> Iterator[Case]:
    """All cases, or every so manieth. A break that is not met is none."""
    number = 0
    seen: set[str] = set()
    with impatient(), FaultyWay(server.url, late_s=math.inf) as way:
        for kind in STAGES:
            stage = kind(server, home, way, folder)
            with living_in(stage.house):
                stage.prepare()
                points = [point for point in points_of(stage) if point.kind not in seen or not stage.like_another]
                seen |= {point.kind for point in points}
                for point, fault in product(points, Fault):
                    number += 1
                    if number % every == 0 and (case := _try(stage, point, fault)) is not None:
                        yield case


def points_of(stage: Stage) -> list[Point]:
    """The first and the last call of each kind that the stage's work makes. Raises AssertionError where it does not go well."""
    stage.reset()
    stage.way.forget()
    stage.work()
    found: dict[str, list[Point]] = {}
    for call in stage.way.seen():
        kind = kind_of(call)
        found.setdefault(kind, []).append(Point(call.method, call.path, call.nth, kind))
    verdict = stage.judge()
    assert verdict.good, f"{stage.name} without a fault: {verdict}"
    return [point for points in found.values() for point in dict.fromkeys((points[0], points[-1]))]


def kind_of(call: Call) -> str:
    """Method and path; of a list of tasks, what it asks for, too."""
    asked = parse_qs(urlsplit(call.target).query)
    if "query" not in asked:
        return f"{call.method} {call.path}"
    items = json.loads(asked["query"][0])["filters"]["items"]
    filters = [
        f"{one['filter'].removeprefix('filter:tasks:')} {one['operator']} {one['value'] is True}" for one in items
    ]
    return f"{call.method} {call.path} {asked['include'][0]} where {', '.join(filters)}"


def _try(stage: Stage, point: Point, fault: Fault) -> Case | None:
    """Work with the fault at the point, then again without; judge. None where the fault was not met."""
    stage.reset()
    way, raised, verdict = stage.way, "", Verdict()
    way.forget()
    slow = 1.2 * TIMEOUT_S if fault is Fault.SLOW else 0.0
    made = way.break_(fault, method=point.method, path_pattern=re.escape(point.path), skip=point.nth - 1, seconds=slow)
    try:
        stage.work()
    except Exception as problem:  # noqa: BLE001  whatever it is, it is told
        raised = f"{type(problem).__name__}: {problem}"
        if not isinstance(problem, DipnetError):
            verdict.wrong.append(raised)
    way.clear()
    try:
        stage.work()
        if fault is Fault.SLOW_LATE:
            way.release()
            way.settle()
            sync_labels.fn()
    except Exception as problem:  # noqa: BLE001
        verdict.wrong.append(f"the second time: {type(problem).__name__}: {problem}")
    way.settle()
    verdict = verdict + stage.judge()
    return Case(stage.name, point, fault, verdict, raised) if made.met else None
