"""The same loop with its rows in a real PostgreSQL, and with images and data behind a real S3 protocol."""

from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from alembic import command
from moto.server import ThreadedMotoServer
from sqlalchemy import inspect
from sqlmodel import SQLModel, func, select

from flows.campaign import run_campaign
from flows.corpus import embed_corpus, ingest_corpus
from flows.labeling import sync_labels
from flows.training import retrain_and_evaluate
from models.outcomes import Retrained
from models.plans import (
    CampaignPlan,
    EmbedPlan,
    IngestPlan,
    SelectionPolicy,
    SyncPlan,
)
from models.retraining import RetrainPlan
from storage.database import alembic_config, open_engine
from storage.stores import open_stores
from tasks import searching
from tasks.compute.images import fingerprint

SPLITS = {"train": "train", "held": "holdout", "pool": "none"}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "HOME": str(tmp_path / "home"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DIPNET_S3_ENDPOINT", f"http://{host}:{port}")
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="photos")
    yield f"http://{host}:{port}"
    server.stop()


def loop(prefixes: dict[str, str], exemplar: Path) -> Retrained:
    """Every flow once, as plain functions."""
    for name, split in SPLITS.items():
        label = "" if split == "none" else "class_name"
        ingest_corpus.fn(IngestPlan(corpus=name, prefix=prefixes[name], split=split, label_column=label))
    embed_corpus.fn(EmbedPlan(corpora=list(SPLITS)))
    with open_stores() as stores:
        exists = searching.campaigns.find_issue(stores.db, name="i") is not None
    if not exists:
        searching.new_issue("i", class_name="bar", where="tone = 'light'", description="")
    searching.add_exemplars("i", [exemplar], positive=True)
    retrain_and_evaluate.fn(RetrainPlan(model="before", corpora=["train"]))
    policy = SelectionPolicy(budget=6, near_duplicate_cosine=1.0, leak_cosine=1.0)
    run_campaign.fn(CampaignPlan(campaign="c", issue="i", corpora=["pool"], policy=policy, model="before"))
    sync_labels.fn(SyncPlan())
    return retrain_and_evaluate.fn(
        RetrainPlan(model="after", corpora=["train"], campaigns=["c"], compare_with="before", issue="i", resamples=200)
    )


def rows() -> dict[str, int]:
    with open_stores() as stores:
        tables = SQLModel.metadata.tables
        return {name: stores.db.exec(select(func.count()).select_from(table)).one() for name, table in tables.items()}


@pytest.fixture
def folders(draw: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    drawn = {name: draw(name, 24, seed=seed) for seed, name in enumerate(SPLITS)}
    truth = [f"{fingerprint(file.read_bytes())},bar" for file in drawn["pool"].glob("*.png")]
    (tmp_path / "truth.csv").write_text("\n".join(["sample_id,class_name", *truth]))
    monkeypatch.setenv("DIPNET_ORACLE_TRUTH", str(tmp_path / "truth.csv"))
    return drawn


def test_postgres_migrates_and_runs_the_loop_twice_as_once(
    postgres: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPNET_DATABASE_URL", postgres)
    engine = open_engine("postgresql+psycopg://" + postgres.removeprefix("postgresql://"))
    assert set(inspect(engine).get_table_names()) == {*SQLModel.metadata.tables, "alembic_version"}
    config = alembic_config(engine.url.render_as_string(hide_password=False))
    command.downgrade(config, "base")
    command.upgrade(config, "head")
    command.check(config)
    engine.dispose()
    prefixes = {name: str(folder) for name, folder in folders.items()}
    first = loop(prefixes, folders["held"] / "0003.png")
    counts = rows()
    assert counts["candidate"] == counts["labelrequest"] == 6
    assert counts["label"] == 24 + 24 + 6
    second = loop(prefixes, folders["held"] / "0003.png")
    assert second.comparisons == first.comparisons
    assert second.gate == first.gate
    assert rows() == counts


def test_images_and_data_in_s3_give_what_a_directory_gives(
    s3: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
    for name, folder in folders.items():
        for file in folder.iterdir():
            client.upload_file(str(file), "photos", f"in/{name}/{file.name}")
    local = loop({name: str(folder) for name, folder in folders.items()}, folders["held"] / "0003.png")
    directory = rows()
    monkeypatch.setenv("DIPNET_ROOT", "s3://photos/dipnet")
    monkeypatch.setenv("DIPNET_DATABASE_URL", f"sqlite:///{tmp_path / 'other.db'}")
    remote = loop({name: f"s3://photos/in/{name}" for name in folders}, folders["held"] / "0003.png")
    assert rows() == directory
    assert remote.gate == local.gate
    keys = [item["Key"] for item in client.list_objects_v2(Bucket="photos", Prefix="dipnet/")["Contents"]]
    assert {key.split("/")[1] for key in keys} == {
        "backgrounds",
        "campaigns",
        "corpora",
        "embeddings",
        "datasets",
        "models",
        "scenarios",
        "inference",
        "comparisons",
        "reports",
    }
    image = next(iter(searching.search("pool", image=folders["pool"] / "0001.png", text="", encoder_name="", top=1)))
    assert image["image"] == "s3://photos/in/pool/0001.png"
