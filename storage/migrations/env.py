"""Alembic's entry: run migrations on the URL that storage.database gives."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
from sqlmodel import AutoString, SQLModel

from models.base import UtcDateTime


def render(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write our own column types as plain SQLAlchemy: a migration must not change when our code does."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, AutoString):
        return f"sa.String(length={item.impl_instance.length})" if item.impl_instance.length else "sa.String()"
    return False


url = context.config.get_main_option("sqlalchemy.url")
if url is None:
    raise RuntimeError("run migrations through storage.database, which names the database")

with create_engine(url, poolclass=NullPool).connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        render_item=render,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
