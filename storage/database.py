"""The relational database: SQLite in WAL mode, or PostgreSQL. Migrated by Alembic when it is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, NoSuchModuleError, OperationalError
from sqlalchemy.orm.exc import StaleDataError
from sqlmodel import Session

from models.errors import BadSettings, Collided, CorruptData, Incompatible, Unavailable
from storage.locks import alone

MIGRATIONS = Path(__file__).parent / "migrations"


def open_engine(url: str) -> Engine:
    """An engine on a database that is at this version's schema. Raises BadSettings, Unavailable or Incompatible."""
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
            _make_folder(Path(str(parsed.database)).parent)
        engine = create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError):
        raise BadSettings(
            "DIPNET_DATABASE_URL is not a database URL that dipnet knows; use sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from None
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    try:
        _migrate(engine, shown)
    except OperationalError as error:
        engine.dispose()
        raise Unavailable(
            f"database '{shown}' does not open ({_first_line(error)}); check DIPNET_DATABASE_URL"
        ) from None
    except DatabaseError as error:
        engine.dispose()
        raise CorruptData(
            f"database '{shown}' is not usable ({_first_line(error)}); restore it or name another"
        ) from None
    return engine


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """A session that commits when the block ends well and rolls back when it does not. Raises Unavailable for a collision."""
    try:
        with Session(engine, expire_on_commit=False) as session:
            yield session
            session.commit()
    except (IntegrityError, StaleDataError):  # the latter: a row that was to change is gone
        raise Collided(
            "another dipnet wrote the same rows first; run the command again: what is there is kept"
        ) from None
    except OperationalError as error:
        raise Unavailable(f"the database cannot be used now ({_first_line(error)}); run the command again") from None


def alembic_config(url: str) -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"folder '{folder}' cannot be made ({error.strerror}); correct DIPNET_ROOT or its rights"
        ) from None


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """WAL lets readers and one writer work at once; a second writer waits instead of failing."""
    for pragma in ("busy_timeout = 30000", "journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _migrate(engine: Engine, shown: str) -> None:
    """Bring the schema to this version's head; refuse a database that a newer dipnet has migrated."""
    scripts = _scripts()
    head = scripts.get_current_head()
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current == head:
        return
    if current is not None and not _knows(scripts, current):
        raise Incompatible(
            f"database '{shown}' was migrated by a newer dipnet (revision {current}); upgrade dipnet, or name another database"
        )
    with alone(engine, "migrate"):  # so that two first starts at once do not migrate twice
        command.upgrade(alembic_config(engine.url.render_as_string(hide_password=False)), "head")


@cache
def _scripts() -> ScriptDirectory:
    """This version's migrations, read once: a poll opens the database a dozen times."""
    return ScriptDirectory(str(MIGRATIONS))


def _knows(scripts: ScriptDirectory, revision: str) -> bool:
    try:
        return scripts.get_revision(revision) is not None
    except CommandError:
        return False


def _first_line(error: DatabaseError) -> str:
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else type(error).__name__
