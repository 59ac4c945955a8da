"""Kill -9 at random instants of a send and a sync, of dipnet or of the server, and two dipnets at once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from models.states import RequestState
from storage.labelstudio_server import LabelStudioServer
from tests.benchmarks.handoff_annotators import Annotators
from tests.benchmarks.handoff_checks import Given, Outcome, check_present, check_sent, check_synced
from tests.benchmarks.handoff_direct import Direct
from tests.benchmarks.handoff_worker import ESCAPED, WELL, Worker
from tests.benchmarks.handoff_world import CLASSES, World, environment, living_in, plant

IN_A_ROW = 3  # kills of one send or sync at most, before it is run to its end
SERVER_EVERY, SERVER_FIRST = 8, 5  # of the kills, these are the server's
TRIES = 3  # a send may give up while its server is gone


class Stage(NamedTuple):
    """Where the killing takes place: a house, a server that can be killed, and a dipnet that can."""

    folder: Path
    server: LabelStudioServer
    direct: Direct
    worker: Worker

    def environment(self, root: Path) -> dict[str, str]:
        """The settings of a dipnet that lives there."""
        return environment(root, self.server.url, self.server.token)

    def strike(self, victim: str) -> None:
        """Kill one of the two; a server comes back, on the same port and data."""
        if victim == "dipnet":
            self.worker.kill()
            return
        process = self.server._process
        assert process is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.server.__enter__()


class Blow(NamedTuple):
    """Whom to kill, and how long after the beginning."""

    after_s: float
    victim: str


def kills(
    server_data: Path, *, count: int = 30, requests: int = 1_000, seed: int = 0, on_case: Callable[[str], None] = str
) -> Outcome:
    """Kill dipnet, or Label Studio, so often while it sends so many requests and syncs as many answers.

    The instants are spread evenly, by chance, over how long both take undisturbed. `server_data` is a data directory that
    may be used up. Every send and sync is run to its end after three kills at most, and then looked at.
    """
    outcome, began, chance = Outcome(), time.monotonic(), random.Random(seed)
    with _stage(server_data) as stage:
        sent = plant(stage.folder, uuid4().hex, requests)
        sending_s = _timed(stage, "send", sent)
        given = _answer(stage, sent)
        syncing_s = _timed(stage, "sync", _copy(stage, sent))
        on_case(f"undisturbed, {requests} are sent in {sending_s:.1f} s and synced in {syncing_s:.1f} s")
        instants = sorted(chance.uniform(0, sending_s + syncing_s) for _ in range(count))
        victims = ["server" if n % SERVER_EVERY == SERVER_FIRST else "dipnet" for n in range(count)]
        chance.shuffle(victims)
        blows = [Blow(instant, victim) for instant, victim in zip(instants, victims, strict=True)]
        of_send = [blow for blow in blows if blow.after_s < sending_s]
        of_sync = [Blow(blow.after_s - sending_s, blow.victim) for blow in blows if blow.after_s >= sending_s]
        for work, some in (("send", of_send), ("sync", of_sync)):
            chance.shuffle(some)
            while some:
                name = f"{work}, killed at " + ", ".join(f"{b.after_s:.2f} s ({b.victim})" for b in some[:IN_A_ROW])
                on_case(name)
                outcome.add(
                    _send_case(stage, some, requests) if work == "send" else _sync_case(stage, some, sent, given), name
                )
    outcome.seconds = time.monotonic() - began
    return outcome


def at_once(server: LabelStudioServer, *, requests: int = 60, rounds: int = 3) -> Outcome:
    """Two processes send one run at once, and two sync it at once: one effect, and both end well."""
    outcome, began = Outcome(), time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dipnet-handoff-")))
        direct = stack.enter_context(Direct(server.url, server.token))
        workers = [stack.enter_context(Worker()) for _ in range(2)]
        for number in range(rounds):
            of = plant(folder, uuid4().hex, requests)
            stage = Stage(folder, server, direct, workers[0])
            outcome.add(_both(stage, workers, "send", of), f"two sends, {number}")
            with living_in(folder, server.url, server.token):
                outcome.add(check_sent(of, direct, foreign=False), f"two sends, {number}")
            given = _answer(stage, of)
            outcome.add(_both(stage, workers, "sync", of), f"two syncs, {number}")
            outcome.add(_look(stage, of, given), f"two syncs, {number}")
            _clear_away(stage, of)
    outcome.seconds = time.monotonic() - began
    return outcome


def _both(stage: Stage, workers: list[Worker], work: str, of: World) -> Outcome:
    found = Outcome(cases=1)
    for worker in workers:
        worker.start(work, of, stage.environment(of.root))
    for worker in workers:
        code, said = worker.wait()
        found.note("escaped" if code == ESCAPED else "wrong", int(code != WELL), f"end with {code}, {said}")
    return found


@contextmanager
def _stage(server_data: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dipnet-handoff-")))
        server = stack.enter_context(LabelStudioServer(server_data))
        server._port = int(server.url.rpartition(":")[2])  # where it comes back
        direct = stack.enter_context(Direct(server.url, server.token))
        yield Stage(folder, server, direct, stack.enter_context(Worker()))


def _timed(stage: Stage, work: str, of: World) -> float:
    began = time.monotonic()
    code, said = stage.worker.run(work, of, stage.environment(of.root))
    if code != WELL:
        raise RuntimeError(f"an undisturbed {work} ends with {code}: {said}")
    return time.monotonic() - began


def _answer(stage: Stage, of: World) -> Given:
    """Some answers that were synced, then corrections, withdrawals, skips, deleted items, and answers to all the others."""
    (project,) = stage.direct.projects(of.plan.campaign)
    stage.direct.put_foreign(project)
    people = Annotators(stage.direct, project)
    keys, some = sorted(people.tasks), max(2, len(people.tasks) // 60)
    early = list(people.accept(keys[: 6 * some]).values())
    people.synced()
    _timed(stage, "sync", of)
    for number, annotation in enumerate(early[: 2 * some]):
        people.correct(annotation, CLASSES[number % 3])
    for annotation in early[2 * some : 3 * some]:
        people.withdraw(annotation)
    for key in keys[6 * some : 7 * some]:
        people.answer(key, CLASSES[0], skipped=True)
    for key in keys[7 * some : 8 * some]:
        people.delete(key)
    people.accept(keys[8 * some :])
    return people.synced()


def _copy(stage: Stage, of: World) -> World:
    """The house as it was when the last answers were in and not synced: a sync changes little but the house."""
    folder = stage.folder / uuid4().hex
    folder.mkdir()
    for file in of.root.glob("dipnet.db*"):
        shutil.copy(file, folder)
    return of._replace(root=folder)


def _send_case(stage: Stage, blows: list[Blow], requests: int) -> Outcome:
    """Send a new campaign's run under the next blows, then to the end, then sync once: whatever was doubled is tidied."""
    of = plant(stage.folder, uuid4().hex, requests)
    found = _under_blows(stage, "send", of, blows)
    projects = stage.direct.projects(of.plan.campaign)
    found.tidied = max(0, sum(len(stage.direct.tasks(project)) for project in projects) - requests)
    _finish(stage, "sync", of, found)
    with living_in(of.root, stage.server.url, stage.server.token):
        found.add(check_sent(of, stage.direct, foreign=False), "")
    _clear_away(stage, of)
    return found


def _sync_case(stage: Stage, blows: list[Blow], sent: World, given: Given) -> Outcome:
    """Sync a copy of the house under the next blows, then to the end."""
    of = _copy(stage, sent)
    found = _under_blows(stage, "sync", of, blows)
    found.add(_look(stage, of, given), "")
    return found


def _under_blows(stage: Stage, work: str, of: World, blows: list[Blow]) -> Outcome:
    """Up to so many kills in a row, each of a run that was started anew."""
    found = Outcome()
    while blows and found.cases < IN_A_ROW:
        blow = blows.pop(0)
        stage.worker.start(work, of, stage.environment(of.root))
        time.sleep(blow.after_s)
        stage.strike(blow.victim)
        code, said = stage.worker.wait()
        if blow.victim == "dipnet" and code != -signal.SIGKILL:
            # It was done before, and was not killed: at another instant, of the time that it took.
            blows.append(blow._replace(after_s=blow.after_s % stage.worker.took))
            break
        found.cases += 1
        found.note("escaped", int(code == ESCAPED), said)
    _finish(stage, work, of, found)
    return found


def _finish(stage: Stage, work: str, of: World, found: Outcome) -> None:
    """Run it as Prefect's retries would."""
    for _ in range(TRIES):
        code, said = stage.worker.run(work, of, stage.environment(of.root))
        if code == WELL:
            return
        found.note("escaped", int(code == ESCAPED), said)
    found.note("wrong", 1, f"{work} on a good way, {said}")


def _look(stage: Stage, of: World, given: Given) -> Outcome:
    with living_in(of.root, stage.server.url, stage.server.token):
        found = check_synced(of, given)
    there = {key for key, (state, _) in given.states.items() if state is not RequestState.DELETED}
    found.add(check_present(of, stage.direct, there, overlaps={}), "")
    return found


def _clear_away(stage: Stage, of: World) -> None:
    for project in stage.direct.projects(of.plan.campaign):
        stage.direct.delete_project(project)
