"""`dipnet embeddings`: what scripts and people get."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from models.plans import IngestPlan
from tasks import ingesting
from tests.tasks.conftest import prepare

Draw = Callable[..., Path]
runner = CliRunner()


@pytest.fixture
def pool(draw: Draw) -> Path:
    """An embedded corpus, and the same images without vectors."""
    folder = draw("pool", 6)
    prepare("pool", folder, "none")
    ingesting.ingest(IngestPlan(corpus="again", prefix=str(folder)))
    return folder


def test_a_round_trip_by_command(pool: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    exported = runner.invoke(app, ["embeddings", "export", "pool", out, "--json"])
    assert exported.exit_code == 0, exported.output
    assert json.loads(exported.stdout)["vectors"] == 6
    imported = runner.invoke(app, ["embeddings", "import", "again", out, "--json"])
    assert imported.exit_code == 0, imported.output
    told = json.loads(imported.stdout)
    assert (told["vectors"], told["shards_left"], told["declared"]) == (6, 0, False)
    rows = json.loads(runner.invoke(app, ["embeddings", "list", "--json"]).stdout)
    assert [(row["corpus"], row["vectors"], row["shards"]) for row in rows] == [("again", 6, "1/1"), ("pool", 6, "1/1")]


def test_the_help_says_how_images_are_found() -> None:
    told = runner.invoke(app, ["embeddings", "import", "--help"], env={"COLUMNS": "200"}).output
    assert "image_path" in told
    assert "--dim" in told
