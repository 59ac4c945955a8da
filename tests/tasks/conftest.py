"""A small world of corpora and an issue, made once and copied for each test."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from models.plans import IngestPlan
from tasks import embedding, ingesting, searching
from tasks.compute import images

Draw = Callable[..., Path]
CLIP = Path(__file__).parents[2] / "deploy" / "demo" / "clip"


def prepare(name: str, folder: Path, split: str) -> None:
    """Ingest and embed a folder."""
    label = "" if split == "none" else "class_name"
    ingesting.ingest(IngestPlan(corpus=name, prefix=str(folder), split=split, label_column=label))  # type: ignore[arg-type]
    embedding.embed_shards(embedding.pending_shards(name, ""), "", 16)


@pytest.fixture(scope="session")
def world_once(tmp_path_factory: pytest.TempPathFactory, drawn_images: Draw) -> Path:
    """A train, a development, a holdout corpus and a pool, embedded, with an issue, and the truth about the pool."""
    home = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPNET_ROOT", str(home / "root"))
        patch.setenv("DIPNET_ENCODER", str(CLIP))
        for seed, (name, count, split) in enumerate(
            [("train", 40, "train"), ("dev", 24, "development"), ("held", 24, "holdout"), ("pool", 60, "none")]
        ):
            prepare(name, drawn_images(home / "images" / name, count, seed=seed), split)
        issue_images = [home / "images" / "dev" / f"{number:04d}.png" for number in (3, 7, 11)]  # light bars
        searching.new_issue("light-bar", class_name="bar", where="tone = 'light'", description="")
        searching.add_exemplars("light-bar", issue_images, positive=True)
    truth = ["sample_id,class_name"]
    for number, file in enumerate(sorted((home / "images" / "pool").glob("*.png"))):
        truth.append(f"{images.fingerprint(file.read_bytes())},{('square', 'bar')[number % 2]}")
    (home / "truth.csv").write_text("\n".join(truth))
    return home


@pytest.fixture
def world(world_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that world, moved to the test's own folder."""
    shutil.copytree(world_once, tmp_path, dirs_exist_ok=True)
    with closing(sqlite3.connect(tmp_path / "root" / "dipnet.db")) as db, db:
        for column in ("corpus.prefix", "sample.uri"):
            table, name = column.split(".")
            db.execute(f"UPDATE {table} SET {name} = replace({name}, ?, ?)", (str(world_once), str(tmp_path)))
    monkeypatch.setenv("DIPNET_ORACLE_TRUTH", str(tmp_path / "truth.csv"))
    return tmp_path
