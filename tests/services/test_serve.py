"""`dipnet serve`: a campaign launched from the form in the Prefect UI, in a real browser, runs to its end."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import sync_playwright

from models.plans import EmbedPlan, IngestPlan
from tasks import embedding, ingesting, searching, views


@pytest.fixture
def served(house: Path, draw: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A house with a pool and an issue, served; the URL of the Prefect API."""
    ingesting.ingest(IngestPlan(corpus="pool", prefix=str(draw("pool", 30))))
    ingesting.ingest(
        IngestPlan(corpus="train", prefix=str(draw("train", 8, seed=1)), split="train", label_column="class_name")
    )
    embedding.embed_shards(embedding.pending_shards("train", ""), "", 16)
    embedding.embed_shards(embedding.pending_shards("pool", ""), "", EmbedPlan(corpora=["pool"]).batch_size)
    searching.new_issue("i", class_name="bar", where="", description="")
    searching.add_exemplars("i", [tmp_path / "images" / "pool" / "0003.png"], positive=True)
    (tmp_path / "truth.csv").write_text("sample_id,class_name\n")
    monkeypatch.setenv("DIPNET_ORACLE_TRUTH", str(tmp_path / "truth.csv"))
    log = tmp_path / "serve.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    command = [Path(sys.executable).parent / "dipnet", "serve", "--port", str(port)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env={**clean, "PREFECT_HOME": str(tmp_path / "prefect")}, stdout=output, stderr=output
        )
    try:
        wait_for(lambda: len(deployments(api)) == 7, 120, log)
        yield api
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def deployments(api: str) -> dict[str, str]:
    try:
        found = httpx.post(f"{api}/deployments/filter", json={}, timeout=10).json()
    except httpx.HTTPError:
        return {}
    return {entry["entrypoint"]: entry["id"] for entry in found}


def wait_for(happened: Callable[[], bool], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)


def fill_in_the_form(api: str, deployment: str, *, campaign: str, issue: str, corpus: str, budget: int) -> None:
    """Launch run-campaign as a person does: open the deployment's Run page, fill in the form, press Submit."""
    quiet = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-component-update", "disable-sync"]
    with sync_playwright() as playwright:
        flags = [f"--{flag}" for flag in [*quiet, "disable-background-networking"]]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1300, "height": 2600})
        page.goto(f"{api.removesuffix('/api')}/deployments/deployment/{deployment}/run")
        page.get_by_text("Name of an issue that has exemplars").wait_for(timeout=60_000)
        page.get_by_role("button", name="Add item").first.click()
        for place, text in enumerate((campaign, issue, corpus)):
            page.locator("textarea").nth(place).fill(text)
        field = page.locator("label", has_text="Budget").locator("xpath=ancestor::*[.//input][1]").locator("input")
        field.first.fill(str(budget))
        page.get_by_role("button", name="Submit").click()
        page.wait_for_url("**tab=Runs**", timeout=30_000)
        browser.close()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here; on Debian: apt-get install chromium")
def test_a_campaign_launched_from_the_form_in_the_prefect_ui_sends_its_batch(served: str, tmp_path: Path) -> None:
    deployment = deployments(served)["flows.campaign.run_campaign"]
    fill_in_the_form(served, deployment, campaign="from-the-form", issue="i", corpus="pool", budget=5)

    def state() -> str:
        wanted = {"deployments": {"id": {"any_": [deployment]}}}
        found = httpx.post(f"{served}/flow_runs/filter", json=wanted, timeout=10).json()
        return str(found[0]["state"]["type"]) if found else "NONE"

    wait_for(lambda: state() in ("COMPLETED", "FAILED", "CRASHED"), 150, tmp_path / "serve.log")
    assert state() == "COMPLETED", (tmp_path / "serve.log").read_text()[-3000:]
    row = views.campaign_rows()[0]
    assert (row["campaign"], row["candidates"], row["state"]) == ("from-the-form", 5, "sent")


def test_a_complete_batch_starts_one_retraining_of_all_that_is_complete_by_then(served: str, tmp_path: Path) -> None:
    deployment = deployments(served)["flows.training.retrain_and_evaluate"]
    found = httpx.get(f"{served}/deployments/{deployment}", timeout=10).json()
    assert [(one["schedule"]["cron"], one["parameters"]["plan"]["model"]) for one in found["schedules"]] == [
        ("0 3 * * *", "nightly")
    ]

    def emit(batch: int) -> None:
        event = {
            "occurred": datetime.now(UTC).isoformat(),
            "event": "dipnet.batch.completed",
            "resource": {"prefect.resource.id": f"dipnet.batch.{batch}", "dipnet.campaign": "c"},
            "payload": {"run": batch},
            "id": str(uuid.uuid4()),
        }
        httpx.post(f"{served}/events", json=[event], timeout=10).raise_for_status()

    def started() -> list[dict[str, Any]]:
        wanted = {"deployments": {"id": {"any_": [deployment]}}}
        runs = httpx.post(f"{served}/flow_runs/filter", json=wanted, timeout=10).json()
        return [run for run in runs if not run["auto_scheduled"]]

    for batch in (1, 2, 3):
        emit(batch)
    wait_for(lambda: bool(started()), 60, tmp_path / "serve.log")
    time.sleep(3)
    (run,) = started()
    assert run["parameters"] == {"plan": {"model": "nightly", "campaigns": ["*"], "issue": "*"}}
    due = datetime.fromisoformat(run["expected_start_time"])
    assert timedelta(minutes=9) < due - datetime.now(UTC) < timedelta(minutes=11)
