"""How long ten thousand requests take there and back, beside the same import by hand in the same run, and in what memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from sqlmodel import col, select

HOUSE = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(HOUSE))

from models.campaign import Candidate  # noqa: E402
from models.states import RequestState  # noqa: E402
from storage.labelstudio_format import label_config, task_of  # noqa: E402
from storage.labelstudio_server import LabelStudioServer  # noqa: E402
from storage.stores import open_stores  # noqa: E402
from tasks import routing  # noqa: E402
from tests.benchmarks.handoff_checks import check_sent  # noqa: E402
from tests.benchmarks.handoff_direct import Direct  # noqa: E402
from tests.benchmarks.handoff_worker import send, sync  # noqa: E402
from tests.benchmarks.handoff_world import CLASSES, World, living_in, plant  # noqa: E402

NEW = 100


class Speed(NamedTuple):
    """Seconds, medians where there are several; megabytes of the process that sent and synced."""

    send: float
    raw_at_once: float  # one import of everything
    raw_by_thousand: float
    ratios: list[float]  # a send by the raw import beside it, each
    first_sync: float
    idle_sync: float
    next_sync: float
    megabytes: float
    megabytes_before: float
    right: bool  # all that was sent is there once, and all that was answered is read right


def measure(server: LabelStudioServer, *, count: int, repeats: int) -> Speed:
    """Send so many requests with predictions, `repeats` times, each beside a raw import of the same data; then sync."""
    with (
        tempfile.TemporaryDirectory(prefix="dipnet-handoff-") as folder,
        living_in(Path(folder), server.url, server.token),
        Direct(server.url, server.token) as direct,
    ):
        before = _megabytes()
        rounds = [_send_beside_raw(Path(folder), direct, server, count) for _ in range(repeats)]
        world = rounds[-1][0]
        right = check_sent(world, direct, foreign=False).ok
        (project,) = direct.projects(world.plan.campaign)
        tasks = [task.id for task in direct.tasks(project)]
        direct.accept_predictions(project, tasks[NEW:])  # in one action, so that all of them change at one moment
        first = timed(lambda: sync(world))
        idle = timed(lambda: sync(world))
        for task in tasks[:NEW]:
            direct.answer(task, CLASSES[0])
        following = timed(lambda: sync(world))
        right &= _reads_right(world, set(map(str, tasks[:NEW])))
    return Speed(
        send=statistics.median(one[1] for one in rounds),
        raw_at_once=statistics.median(one[2] for one in rounds),
        raw_by_thousand=statistics.median(one[3] for one in rounds),
        ratios=[one[1] / one[2] for one in rounds],
        first_sync=first,
        idle_sync=idle,
        next_sync=following,
        megabytes=_megabytes(),
        megabytes_before=before,
        right=right,
    )


def measure_apart(data: Path, *, count: int, repeats: int) -> Speed:
    """The same in a process of its own, whose memory is that of dipnet alone."""
    command = [sys.executable, str(Path(__file__).absolute()), str(data), str(count), str(repeats)]
    done = subprocess.run(command, cwd=HOUSE, stdout=subprocess.PIPE, check=True, text=True)
    return Speed(*json.loads(done.stdout.splitlines()[-1]))


def _send_beside_raw(
    folder: Path, direct: Direct, server: LabelStudioServer, count: int
) -> tuple[World, float, float, float]:
    """A campaign that is sent, and the same data imported by hand before and after it, into projects of their own."""
    world = plant(folder, uuid4().hex, count)
    at_once = timed_import(server, world, size=count)
    sending = timed(lambda: send(world))
    by_thousand = timed_import(server, world, size=1_000)
    return world, sending, at_once, by_thousand


def timed(work: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def timed_import(server: LabelStudioServer, world: World, *, size: int) -> float:
    """How long the SDK's import_tasks takes for a run's requests, so many a call, into a project that is deleted then."""
    from label_studio_sdk import LabelStudio

    client = LabelStudio(base_url=server.url, api_key=server.token.get_secret_value())
    tasks = _tasks(world)
    project = client.projects.create(title=uuid4().hex, label_config=label_config(CLASSES))
    try:
        chunks = [tasks[first : first + size] for first in range(0, len(tasks), size)]
        return timed(lambda: [client.projects.import_tasks(project.id, request=chunk) for chunk in chunks])
    finally:
        client.projects.delete(project.id)


def _tasks(world: World) -> list[Any]:
    """What dipnet would import: the same data, links and predictions."""
    from models.values import RequestDraft

    with open_stores() as stores:
        query = select(Candidate).where(Candidate.run_id == world.run_id).order_by(col(Candidate.rank))
        found = stores.db.exec(query).all()
        run = routing.campaigns.get_run(stores.db, run_id=world.run_id)
        return [
            task_of(
                RequestDraft(
                    key=routing.key_of(run, one.sample_id),
                    uri="",
                    sample_id=one.sample_id,
                    priority=one.rank,
                    predicted_class=one.predicted_class,
                    predicted_probability=one.predicted_probability,
                    model_version="baseline-00000000",
                ),
                f"https://images.example/{one.sample_id}.jpg",
            )
            for one in found
        ]


def _reads_right(world: World, by_hand: set[str]) -> bool:
    """Whether every request is labelled: with its prediction, or with what was answered by hand."""
    with open_stores() as stores:
        batch = routing.labels.find_batch(stores.db, run_id=world.run_id)
        requests = routing.labels.requests_of(stores.db, batch_id=batch.id or 0) if batch else []
    wanted = {one.id: CLASSES[0] if one.external_id in by_hand else one.predicted_class for one in requests}
    return bool(requests) and all(
        one.state is RequestState.LABELLED and one.class_name == wanted[one.id] for one in requests
    )


def _megabytes() -> float:
    """The most that this process has held since it began; getrusage would tell of the one that it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    with LabelStudioServer(Path(sys.argv[1])) as own:
        print(json.dumps(measure(own, count=int(sys.argv[2]), repeats=int(sys.argv[3]))))
