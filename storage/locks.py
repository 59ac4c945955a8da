"""Locks that die with their holder: one dipnet at a time sends to or reads from a labeller's project, or migrates."""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text

from models.errors import Unavailable

WAIT_S = 900.0
ASK_EVERY_S = 0.1


@contextmanager
def alone(engine: Engine, name: str, *, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold the lock of that name for this database: a file's beside SQLite, an advisory one of PostgreSQL.

    It is no transaction, so that nobody waits for the database meanwhile. Raises Unavailable when somebody else holds it
    for longer than `wait_s`.
    """
    kind = _of_a_file if engine.url.get_backend_name() == "sqlite" else _of_the_server
    with kind(engine, name, wait_s):
        yield


@contextmanager
def _of_a_file(engine: Engine, name: str, wait_s: float) -> Iterator[None]:
    with Path(f"{engine.url.database}.{name}-lock").open("w") as handle:

        def taken() -> bool:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        _wait(taken, name, wait_s)
        yield


@contextmanager
def _of_the_server(engine: Engine, name: str, wait_s: float) -> Iterator[None]:
    key = {"key": advisory_key(name)}
    # Without a transaction, which a server may end when it idles.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:

        def taken() -> bool:
            return bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar())

        _wait(taken, name, wait_s)
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)


def advisory_key(name: str) -> int:
    """The number that PostgreSQL knows a lock by: 64 bits, signed."""
    return int.from_bytes(hashlib.sha256(f"dipnet:{name}".encode()).digest()[:8], signed=True)


def _wait(taken: Callable[[], bool], name: str, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while not taken():
        if time.monotonic() > deadline:
            raise Unavailable(
                f"another dipnet has been working on {name} for {wait_s:.0f} s; run the command again later"
            )
        time.sleep(ASK_EVERY_S)
