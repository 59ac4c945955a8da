"""The same house on a real PostgreSQL."""

from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect
from sqlmodel import SQLModel, select

from models.corpus import Corpus
from models.values import IngestPlan
from storage.database import alembic_config, open_engine
from storage.stores import open_stores
from tasks import ingesting


@pytest.fixture(autouse=True)
def on_postgres(house: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPNET_DATABASE_URL", postgres)


def test_migrations_go_down_and_up_and_agree_with_the_models(postgres: str) -> None:
    url = "postgresql+psycopg://" + postgres.removeprefix("postgresql://")
    engine = open_engine(url)
    assert set(inspect(engine).get_table_names()) == {*SQLModel.metadata.tables, "alembic_version"}
    config = alembic_config(url)
    command.downgrade(config, "base")
    command.upgrade(config, "head")
    command.check(config)
    engine.dispose()


def test_ingesting_twice_adds_nothing(draw) -> None:  # type: ignore[no-untyped-def]
    plan = IngestPlan(corpus="pg-pool", prefix=str(draw("pool", 12)))
    assert ingesting.ingest(plan).new_images == 12
    assert ingesting.ingest(plan).new_images == 0
    with open_stores() as stores:
        assert stores.db.get_bind().dialect.name == "postgresql"
        assert len(stores.db.exec(select(Corpus)).all()) == 1
