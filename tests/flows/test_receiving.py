"""`dipnet receiver`: what it refuses to start with, and what it says when it starts."""

import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest

from flows import cli, receiving

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would have been served, since the command does not come back."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(receiving.uvicorn, "run", lambda app, **options: found.append({"app": app, **options}))
    return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: object) -> Run:
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("DIPNET_RECEIVER_SECRET", "0123456789abcdef" * 4)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dipnet", "receiver", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return call


def test_it_listens_on_loopback_without_an_access_log(run: Run, served: list[dict[str, Any]]) -> None:
    code, out, _ = run("--port", 0)
    assert code == 0
    options = served[0]
    assert (options["app"], options["factory"], options["host"]) == ("deploy.receiver:make_app", True, "127.0.0.1")
    assert not options["access_log"]
    assert not options["server_header"]
    assert f"http://127.0.0.1:{options['port']}" in out
    assert "set DIPNET_RECEIVER_URL" in out
    assert "others" not in out


def test_it_says_who_can_reach_it_and_where_links_lead(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPNET_RECEIVER_URL", "https://images.example")
    out = run("--port", 0, "--host", "0.0.0.0")[1]
    assert "others can reach this address" in out
    assert "links are made for https://images.example" in out
    assert "0123456789abcdef" not in out
    assert "others" not in run("--port", 0, "--host", "localhost")[1]


def test_without_a_secret_it_does_not_start(
    run: Run, served: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DIPNET_RECEIVER_SECRET")
    code, _, err = run("--port", 0)
    assert code == 2
    assert "DIPNET_RECEIVER_SECRET" in err
    assert "openssl rand -hex 32" in err
    monkeypatch.setenv("DIPNET_RECEIVER_SECRET", "short")
    assert run("--port", 0)[0] == 2
    assert served == []


def test_where_it_cannot_listen_it_does_not_start(run: Run, served: list[dict[str, Any]]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = run("--port", taken.getsockname()[1])
    assert code == 2
    assert "is in use" in err
    code, _, err = run("--host", "192.0.2.1")
    assert code == 2
    assert "192.0.2.1:8137 cannot be listened on" in err
    code, _, err = run("--host", "not an address")
    assert code == 2
    assert "'not an address' is not an address" in err
    assert served == []


def test_a_database_that_is_down_is_told_before_anything_is_served(
    run: Run, served: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPNET_DATABASE_URL", "postgresql://127.0.0.1:9/nowhere")
    assert run("--port", 0)[0] == 5
    assert served == []


def test_help_teaches_the_three_steps(run: Run) -> None:
    out = run("--help")[1]
    for word in ("DIPNET_RECEIVER_SECRET", "DIPNET_RECEIVER_URL", "openssl rand -hex 32", "dipnet doctor", "8137"):
        assert word in out
