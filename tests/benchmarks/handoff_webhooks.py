"""Webhooks as hints: forged, replayed and lost ones change nothing, and a right one brings an answer within seconds."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
from harness import Check
from sqlmodel import func, select

from deploy.receiver import make_app
from models.labeling import Label, LabelProject
from storage.labelstudio_server import LabelStudioServer
from storage.media import TOKEN_HEADER, webhook_path
from storage.stores import open_stores
from tests.benchmarks.handoff_direct import Direct
from tests.benchmarks.handoff_worker import send, sync
from tests.benchmarks.handoff_world import CLASSES, World, living_in, plant
from tests.conftest import listen

# Label Studio calls no loopback address otherwise, for good reason.
MAY_CALL_LOOPBACK = {
    "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS": "false",
    "LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS": "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16",
}
SECRET, FORGED = "0123456789abcdef" * 4, 100


def checks(migrated: Path, *, quick: bool) -> list[Check]:
    """A hundred forged ones and as many replayed ones, and answers that Label Studio tells of."""
    with tempfile.TemporaryDirectory(prefix="dipnet-benchmark-") as folder:
        data = Path(shutil.copytree(migrated, Path(folder) / "label-studio"))
        with (
            LabelStudioServer(data, environment=MAY_CALL_LOOPBACK) as server,
            living_in(Path(folder), server.url, server.token),
            _receiver() as url,
            Direct(server.url, server.token) as direct,
        ):
            world = plant(Path(folder), uuid4().hex, 20)
            send(world)
            (project,) = direct.projects(world.plan.campaign)
            tasks = [task.id for task in direct.tasks(project)]
            delays = [_heard_after(direct, task) for task in tasks[: 3 if quick else 10]]
            before = _stored()
            direct.answer(tasks[-1], CLASSES[0])  # Label Studio tells of it once; what follows must not matter
            time.sleep(4)
            sync(world)
            effects, leaks = _forge(url, world, server)
            replayed = _replay(url)
            after = _stored()
    slowest = max(delays)
    return [
        Check("webhooks: effects of 100 forged ones", effects, "", 0, effects == 0),
        Check("webhooks: answers that leak something", leaks, "", 0, leaks == 0),
        Check("webhooks: labels that 100 replayed ones added", replayed, "", 0, replayed == 0),
        Check("webhooks: labels in all that one answer added", after - before, "", 1, after - before == 1),
        Check("webhooks: an answer is stored after", statistics.median(delays), "s", 5, slowest <= 5, [min(delays), slowest]),
    ]  # fmt: skip


@contextmanager
def _receiver() -> Iterator[str]:
    """The receiver, as it is served, with its secret in the settings of dipnet."""
    os.environ["DIPNET_RECEIVER_SECRET"] = SECRET
    with listen(make_app()) as url:
        os.environ["DIPNET_RECEIVER_URL"] = url
        try:
            yield url
        finally:
            del os.environ["DIPNET_RECEIVER_URL"], os.environ["DIPNET_RECEIVER_SECRET"]


def _stored() -> int:
    with open_stores() as stores:
        return stores.db.exec(select(func.count()).select_from(Label)).one()


def _heard_after(direct: Direct, task: int) -> float:
    """Seconds from an answer in Label Studio to its row here, that nothing but a webhook brings."""
    known, began = _stored(), time.monotonic()
    direct.answer(task, CLASSES[1])
    while _stored() == known:
        if time.monotonic() - began > 30:
            return 30.0
        time.sleep(0.05)
    return time.monotonic() - began


def _marks() -> object:
    """Whatever a sync would have changed."""
    with open_stores() as stores:
        project = stores.db.exec(select(LabelProject)).one()
        return project.watermark, project.census, project.swept_at, _stored()


def _forge(url: str, world: World, server: LabelStudioServer) -> tuple[int, int]:
    """A hundred with wrong tokens, bodies and paths: how many were accepted or had an effect, how many answers leak."""
    del world
    before, secrets = _marks(), (SECRET, server.token.get_secret_value())
    accepted = leaks = 0
    with httpx.Client(base_url=url) as client:
        for number in range(FORGED):
            token = ("", "0" * 64, SECRET, uuid4().hex, "\u00e9" * 8)[number % 5].encode()
            body = b'{"action": "ANNOTATION_CREATED", "token": "' + os.urandom(number).hex().encode() + b'"}'
            answer = client.post(webhook_path(number % 3), headers={TOKEN_HEADER.encode(): token}, content=body)  # type: ignore[dict-item]
            accepted += answer.status_code < 400
            said = answer.text + str(answer.headers)
            leaks += any(secret in said for secret in secrets) or "Traceback" in said
    time.sleep(4)
    return accepted + (_marks() != before), leaks


def _replay(url: str) -> int:
    """A hundred with the right token and nothing behind them: labels that they added."""
    from pydantic import SecretStr

    from storage.media import Signer

    before, headers = _stored(), {TOKEN_HEADER: Signer(SecretStr(SECRET)).webhook_token()}
    with httpx.Client(base_url=url) as client:
        for _ in range(FORGED):
            assert (
                client.post(webhook_path(1), headers=headers, json={"action": "ANNOTATION_CREATED"}).status_code == 202
            )
    time.sleep(6)
    return _stored() - before
