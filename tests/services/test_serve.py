"""`dipnet serve`: a campaign launched through the Prefect server's API, as its UI's form does, runs to its end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.values import EmbedPlan, IngestPlan
from tasks import embedding, ingesting, searching, views

PORT = 4297
API = f"http://127.0.0.1:{PORT}/api"


@pytest.fixture
def served(house: Path, draw: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A house with a pool and an issue, served."""
    ingesting.ingest(IngestPlan(corpus="pool", prefix=str(draw("pool", 30))))
    embedding.embed_shards(embedding.pending_shards("pool", ""), "", EmbedPlan(corpora=["pool"]).batch_size)
    searching.new_issue("i", class_name="bar", where="", description="")
    searching.add_exemplars("i", [tmp_path / "images" / "pool" / "0003.png"], positive=True)
    (tmp_path / "truth.csv").write_text("sample_id,class_name\n")
    monkeypatch.setenv("DIPNET_ORACLE_TRUTH", str(tmp_path / "truth.csv"))
    log = tmp_path / "serve.log"
    command = [Path(sys.executable).parent / "dipnet", "serve", "--port", str(PORT)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env={**clean, "PREFECT_HOME": str(tmp_path / "prefect")}, stdout=output, stderr=output
        )
    try:
        wait_for(lambda: len(deployments()) == 6, 120, log)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def deployments() -> dict[str, str]:
    try:
        found = httpx.post(f"{API}/deployments/filter", json={}, timeout=10).json()
    except httpx.HTTPError:
        return {}
    return {entry["entrypoint"]: entry["id"] for entry in found}


def wait_for(happened: Callable[[], bool], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)


def test_a_campaign_launched_from_a_deployment_sends_its_batch(served: None, tmp_path: Path) -> None:
    plan: dict[str, Any] = {
        "campaign": "from-the-form",
        "issue": "i",
        "corpora": ["pool"],
        "policy": {"budget": 5},
        "class_names": ["bar", "square"],
    }
    deployment = deployments()["flows.campaign.run_campaign"]
    made = httpx.post(
        f"{API}/deployments/{deployment}/create_flow_run",
        json={"parameters": {"plan": plan}, "state": {"type": "SCHEDULED"}},
    )
    run_id = made.raise_for_status().json()["id"]

    def state() -> str:
        return str(httpx.get(f"{API}/flow_runs/{run_id}").json()["state"]["type"])

    wait_for(lambda: state() in ("COMPLETED", "FAILED", "CRASHED"), 150, tmp_path / "serve.log")
    assert state() == "COMPLETED"
    row = views.campaign_rows()[0]
    assert (row["campaign"], row["candidates"], row["state"]) == ("from-the-form", 5, "sent")
