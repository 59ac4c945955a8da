"""Shards embedded on a Ray cluster: actors that encode, a group of shards at a time each, fed by Ray's decode workers."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextvars import copy_context
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorUnschedulableError, RayActorError, RayTaskError
from sqlalchemy import make_url

from models.errors import BadSettings, Unavailable
from models.plans import EmbedPlan
from models.settings import PREFIX, Settings
from models.values import EmbeddedGroup
from storage import corpora
from storage.stores import open_stores
from tasks import embedding, stages, steps
from tasks.compute.cores import cores
from tasks.ray_decoding import raise_inside
from tasks.ray_workers import EmbeddingActor
from tasks.steps import step

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
STORE_BYTES = 1_000_000_000  # of pixels under way, on this machine's own cluster
# Idle workers are kept: another one would import everything anew. And they are what this machine is to do, so not nice.
SYSTEM = {"num_workers_soft_limit": 1_024, "worker_niceness": 0}
cluster: Any = ray  # whose own hints know nothing of an actor's options or of what a cluster has
SHORT = 24  # characters of a temporary folder, below which Ray's sockets have paths that systems allow
ASK_EVERY_S = 0.5
MOST_DEATHS = 3  # of actors in a row that completed nothing


class Size(NamedTuple):
    """What a cluster has."""

    machines: int
    processors: int
    gpus: int


class Share(NamedTuple):
    """What one of the actors gets of it."""

    actors: int
    workers: int  # that decode for it
    threads: int  # that it encodes with on a CPU
    gpus: int


class RayRunner:
    """A Ray cluster, connected to when there is something to embed, and let go of by `close`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder: str | None = None
        self._connected = False

    def embed(self, groups: Sequence[Sequence[int]], plan: EmbedPlan, *, wait: bool = False) -> Iterator[EmbeddedGroup]:
        """Several groups at once, one an actor; what became of each as it ends."""
        if not groups:
            return
        self._connect()
        share = share_of(size_here(), self._settings)
        board = Board(embedding.bar_of(self._settings, [shard for group in groups for shard in group]))
        seats = [Seat(self._settings, share, board) for _ in range(min(share.actors, len(groups)))]
        free: queue.SimpleQueue[Seat] = queue.SimpleQueue()
        for seat in seats:
            free.put(seat)

        @step()
        def embed_shards_on_ray(shard_ids: Sequence[int]) -> EmbeddedGroup:
            seat = free.get()
            try:
                return seat.embed(shard_ids, plan, wait=wait)
            finally:
                free.put(seat)

        # Threads rather than Prefect's, so that it is the same without Prefect; the context tells a step of its flow.
        with ThreadPoolExecutor(len(seats), "ray") as pool:
            try:
                futures = [pool.submit(copy_context().run, embed_shards_on_ray, list(group)) for group in groups]
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for seat in seats:
                    seat.close()

    def close(self) -> None:
        """End a cluster of our own, or the connection to another."""
        if self._connected:
            ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._connected, self._folder = False, None

    def _connect(self) -> None:
        if not ray.is_initialized():
            self._connected = True
            self._join() if self._settings.ray_address else self._start()
        refuse_sqlite(self._settings, size_here().machines)

    def _join(self) -> None:
        """Raises Unavailable."""
        address = self._settings.ray_address
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            raise Unavailable(
                f"the Ray cluster at '{address}' cannot be used ({_first_line(error)}); start it, or correct "
                "DIPNET_RAY_ADDRESS, or leave it empty for a cluster on this machine"
            ) from None

    def _start(self) -> None:
        """A cluster of our own, on loopback where `runner_of` imported Ray. Raises Unavailable."""
        short = len(tempfile.gettempdir()) <= SHORT
        self._folder = tempfile.mkdtemp(prefix="dipnet-ray-", dir=None if short else "/tmp")  # noqa: S108  made by mkdtemp
        try:
            ray.init(
                num_cpus=self._settings.decoders or cores(),
                include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
                object_store_memory=STORE_BYTES, _temp_dir=self._folder, _system_config=SYSTEM,
            )  # fmt: skip
        except (ConnectionError, TimeoutError, RuntimeError, ValueError, OSError) as error:
            raise Unavailable(
                f"Ray does not start on this machine ({_first_line(error)}); try again, or embed with --runner local"
            ) from None


class Seat:
    """A place for an actor that encodes. One that dies is replaced, and its successor goes on with the shards."""

    def __init__(self, settings: Settings, share: Share, board: Board) -> None:
        self._settings, self._share, self._board = settings, share, board
        self._environment = travelling(settings)
        self._actor: Any = None
        self._closed = False
        self._turn = threading.Lock()  # of who makes an actor and who ends it

    def embed(self, shard_ids: Sequence[int], plan: EmbedPlan, *, wait: bool) -> EmbeddedGroup:
        """A group of shards. Raises what embedding raises, Unavailable when actor after actor dies, or CancelledError."""
        lost: list[EmbeddedGroup] = []  # what those did that are dead
        deaths = 0
        while True:
            before = self._complete(shard_ids)
            self._board.put(self, EmbeddedGroup())
            try:
                found = self._watched(shard_ids, plan, wait)
                return stages.together([*lost, found], seconds=found.seconds + sum(one.seconds for one in lost))
            except RayTaskError as error:
                raise_inside(error)
            except ActorUnschedulableError as error:
                raise Unavailable(f"Ray has no room for an encoder ({_first_line(error)}); see its logs") from None
            except RayActorError as error:
                self._drop()
                if self._closed:
                    raise CancelledError from None
                done = len(self._complete(shard_ids) - before)
                lost.append(self._board.of(self).model_copy(update={"left": [], "shards": done}))
                deaths = 0 if done else deaths + 1
                if deaths == MOST_DEATHS:
                    raise Unavailable(
                        f"{deaths} encoders in a row died on the Ray cluster before a shard was complete "
                        f"({_first_line(error)}); see Ray's logs, and run the command again: what is complete is kept"
                    ) from None

    def close(self) -> None:
        """End the actor, whatever it is at, and make no other."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        """End the actor; one that only seems to be dead would otherwise keep its shards."""
        with self._turn:
            if self._actor is not None:
                ray.kill(self._actor)
            self._actor = None

    def _seated(self) -> Any:
        """The actor, made when there is none. Raises CancelledError where the place is closed."""
        with self._turn:
            if self._closed:
                raise CancelledError  # of a step that nobody waits for any more: not one to try again
            self._actor = self._actor or self._new()
            return self._actor

    def _watched(self, shard_ids: Sequence[int], plan: EmbedPlan, wait: bool) -> EmbeddedGroup:
        actor = self._seated()
        done = actor.embed.remote(list(shard_ids), plan.encoder, plan.batch_size, plan.retry, wait)
        while not ray.wait([done], timeout=ASK_EVERY_S)[0]:
            self._board.put(self, ray.get(actor.so_far.remote()))
        found: EmbeddedGroup = ray.get(done)
        self._board.put(self, found)
        return found

    def _new(self) -> Any:
        """Two calls at once: one works, one asks how far it is."""
        made = cluster.remote(num_cpus=0, num_gpus=self._share.gpus, max_concurrency=2)(EmbeddingActor)
        return made.remote(ray.put(self._environment), self._share.workers, self._share.threads)

    def _complete(self, shard_ids: Sequence[int]) -> set[tuple[int, str]]:
        """Shards that are complete, each with what tells it from what it is after another look."""
        with open_stores(self._settings) as stores:
            return corpora.versions_of(stores.db, shard_ids=shard_ids)


class Board:
    """What all actors have done, for somebody who watches."""

    def __init__(self, bar: steps.Counter) -> None:
        self._bar = bar
        self._started = time.monotonic()
        self._turn = threading.Lock()
        self._now: dict[Seat, EmbeddedGroup] = {}

    def put(self, seat: Seat, group: EmbeddedGroup) -> None:
        """How far the group is that a seat is at."""
        with self._turn:
            before = self._now.get(seat, EmbeddedGroup())
            self._now[seat] = group
            self._bar(max(0, group.images - before.images))
            busy = [one for one in self._now.values() if one.images]
            self._bar.tell(stages.told(stages.together(busy, seconds=max((one.seconds for one in busy), default=0.0))))

    def of(self, seat: Seat) -> EmbeddedGroup:
        """The last that was heard of it."""
        return self._now[seat]


def share_of(size: Size, settings: Settings) -> Share:
    """An actor a GPU, or a machine, or as many as the settings say; they share processors evenly."""
    on_gpu = size.gpus > 0 and settings.device != "cpu"
    actors = settings.ray_embedders or (size.gpus if on_gpu else size.machines)
    of_machine = size.processors / size.machines
    threads = int(of_machine / -(-actors // size.machines))
    return Share(actors, max(1, size.processors // actors), max(1, threads), int(on_gpu))


def size_here() -> Size:
    """Of the cluster that is connected to."""
    machines = {node["NodeManagerAddress"] for node in cluster.nodes() if node["Alive"]}
    total = cluster.cluster_resources()
    return Size(len(machines), max(1, int(total.get("CPU", 1))), int(total.get("GPU", 0)))


def refuse_sqlite(settings: Settings, machines: int) -> None:
    """Raises BadSettings where several machines would have to share a file of SQLite's."""
    elsewhere = machines > 1 or settings.ray_address.startswith("ray://")
    if elsewhere and make_url(settings.resolved_database_url).get_backend_name() == "sqlite":
        raise BadSettings(
            "SQLite keeps its database in a file of one machine, and this Ray cluster has others; "
            "set DIPNET_DATABASE_URL to a PostgreSQL that all of them reach"
        )


def travelling(settings: Settings) -> dict[str, str]:
    """Settings as environment variables for workers, with places in full; nothing of the labeller's goes along.

    They travel as an argument: Ray writes a runtime environment to its logs.
    """
    known = settings.model_dump(mode="json", include=set(TRAVELS))
    known["database_url"] = settings.resolved_database_url
    if not settings.root.startswith("s3://"):
        known["root"] = str(Path(settings.root).absolute())
    if Path(settings.encoder).exists():
        known["encoder"] = str(Path(settings.encoder).absolute())
    keys = {name: os.environ[name] for name in CREDENTIALS if name in os.environ}
    return {f"{PREFIX}{name}".upper(): str(value) for name, value in known.items()} | keys


TRAVELS = (
    "root", "s3_endpoint", "s3_region", "cache_bytes", "encoder", "device", "max_pixels", "max_image_bytes",
    "image_seconds", "backend",
)  # fmt: skip


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
