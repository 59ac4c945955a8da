"""What `dipnet doctor` says of the receiver: down, somebody else, another secret, or well."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from fastapi import FastAPI

from deploy.receiver import make_app
from models.settings import load_settings
from tasks import checking

SECRET = "0123456789abcdef" * 4


def receiver_row() -> dict[str, Any]:
    return next(row for row in checking.checks() if row["check"] == "receiver")


@pytest.fixture
def receiver(
    listening: Callable[[FastAPI], AbstractContextManager[str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    monkeypatch.setenv("DIPNET_RECEIVER_SECRET", SECRET)
    with listening(make_app(load_settings(), sync=lambda project_id: None)) as url:
        monkeypatch.setenv("DIPNET_RECEIVER_URL", url)
        yield url


def test_no_receiver_is_no_fault() -> None:
    row = receiver_row()
    assert row["ok"] is None
    assert "dipnet receiver --help" in row["detail"]


def test_a_receiver_with_the_same_secret_is_well(receiver: str) -> None:
    assert receiver_row() == {
        "check": "receiver",
        "ok": True,
        "detail": f"{receiver} answers, and knows the same secret",
    }


def test_another_secret_is_told(receiver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPNET_RECEIVER_SECRET", SECRET[::-1])
    row = receiver_row()
    assert row["ok"] is False
    assert "the same DIPNET_RECEIVER_SECRET" in row["detail"]
    assert SECRET[::-1] not in row["detail"]
    monkeypatch.delenv("DIPNET_RECEIVER_SECRET")
    assert "openssl rand -hex 32" in receiver_row()["detail"]


def test_a_receiver_that_is_down_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPNET_RECEIVER_SECRET", SECRET)
    for url in ("http://127.0.0.1:9", "http://["):
        monkeypatch.setenv("DIPNET_RECEIVER_URL", url)
        row = receiver_row()
        assert row["ok"] is False
        assert "does not answer" in row["detail"]
        assert "dipnet receiver" in row["detail"]
        assert "signature" not in row["detail"]


@pytest.mark.parametrize("status", [200, 204, 301, 403, 502])
def test_another_server_is_told(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("DIPNET_RECEIVER_SECRET", SECRET)
        monkeypatch.setenv("DIPNET_RECEIVER_URL", f"http://127.0.0.1:{server.server_port}")
        row = receiver_row()
        server.shutdown()
        thread.join()
    assert row["ok"] is False
    assert (
        f"something else than a receiver answers at http://127.0.0.1:{server.server_port} (HTTP {status})"
        in row["detail"]
    )
