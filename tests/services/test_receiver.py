"""`dipnet receiver` as a process of its own: it answers, hears, says little, and ends when it is told to."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from models.base import utc_now
from storage.media import HEALTH, TOKEN_HEADER, Signer, webhook_path
from tasks import checking

SECRET = "0123456789abcdef" * 4


def test_the_command_serves_until_it_is_told_to_end(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("DIPNET_RECEIVER_SECRET", SECRET)
    monkeypatch.setenv("DIPNET_RECEIVER_URL", url)
    signer, log = Signer(SecretStr(SECRET)), tmp_path / "receiver.log"
    command = [Path(sys.executable).parent / "dipnet", "receiver", "--port", url.rpartition(":")[2]]
    with log.open("w") as output:
        process = subprocess.Popen(command, env={**os.environ, "COLUMNS": "200"}, stdout=output, stderr=output)
    try:
        wait_for(lambda: doctor()["ok"], log)
        query = dict(signer.query(HEALTH, utc_now() + timedelta(hours=1)))
        assert httpx.get(url + HEALTH, params=query).status_code == 204
        hint = httpx.post(url + webhook_path(1), headers={TOKEN_HEADER: signer.webhook_token()}, json={"a": "body"})
        assert hint.status_code == 202
        wait_for(lambda: "project 1 was hinted at" in log.read_text(), log)  # which there is not
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    said = log.read_text()
    assert url in said
    assert "Traceback" not in said
    assert not any(secret in said for secret in (SECRET, signer.webhook_token(), query["signature"], "body"))


def doctor() -> dict[str, object]:
    return next(row for row in checking.checks() if row["check"] == "receiver")


def wait_for(happened: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.3)
