"""Pieces of work that one process has taken, so that another takes others. A claim ends with its holder, however it ends."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from sqlalchemy import Connection, Engine, text

from models.settings import Settings
from storage.database import open_engine
from storage.locks import advisory_key


class Claims(Protocol):
    """What one worker holds. Two workers of one process are as much apart as two processes are."""

    def take(self, name: str) -> bool:
        """Hold that name, unless somebody does; never waits."""
        ...

    def release(self, name: str) -> None:
        """Let go of a name that is held."""
        ...


@contextmanager
def claims_of(settings: Settings) -> Iterator[Claims]:
    """Claims in the settings' database, all of them let go when the block ends."""
    engine = open_engine(settings.resolved_database_url)
    try:
        if engine.url.get_backend_name() == "sqlite":
            with _files(engine) as files:
                yield files
        else:
            # Without a transaction, which a server may end when it idles.
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                yield ServerClaims(connection)
                connection.execute(text("SELECT pg_advisory_unlock_all()"))
    finally:
        engine.dispose()


class FileClaims:
    """A locked file a claim, beside SQLite's; the kernel lets go of them when the process is gone."""

    def __init__(self, stem: str) -> None:
        self._stem = stem
        self._held: dict[str, IO[str]] = {}

    def take(self, name: str) -> bool:
        """Lock the file of that name."""
        path = self._path(name)
        while True:
            handle = path.open("w")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.close()
                return False
            if _is_at(handle, path):
                self._held[name] = handle
                return True
            handle.close()  # its holder removed it before it was locked here: the name is another file's by now

    def release(self, name: str) -> None:
        """Remove the file while it is locked, so that nobody locks a file that is about to go."""
        with self._held.pop(name):
            self._path(name).unlink(missing_ok=True)

    def release_all(self) -> None:
        """Let go of everything."""
        for name in list(self._held):
            self.release(name)

    def _path(self, name: str) -> Path:
        return Path(f"{self._stem}.{name}-claim")


class ServerClaims:
    """Advisory locks of one connection to PostgreSQL; the server lets go of them when it is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._turn = threading.Lock()  # one thread takes, another lets go

    def take(self, name: str) -> bool:
        """Try the lock."""
        query = text("SELECT pg_try_advisory_lock(:key)")
        with self._turn:
            return bool(self._connection.execute(query, {"key": advisory_key(name)}).scalar())

    def release(self, name: str) -> None:
        """Unlock."""
        with self._turn:
            self._connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": advisory_key(name)})


@contextmanager
def _files(engine: Engine) -> Iterator[FileClaims]:
    files = FileClaims(str(engine.url.database))
    try:
        yield files
    finally:
        files.release_all()


def _is_at(handle: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False
