"""Alembic's entry: run migrations on the URL that storage.database gives."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
from sqlmodel import AutoString, SQLModel

from models import campaign, corpus, labeling, learning
from models.base import UtcDateTime

TABLES_OF = (campaign, corpus, labeling, learning)  # importing them fills SQLModel.metadata


def render(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write our own column types as plain SQLAlchemy: a migration must not change when our code does."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, AutoString):
        length = getattr(item.impl_instance, "length", None)
        return f"sa.String(length={length})" if length else "sa.String()"
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
