"""What the receiver makes of hints that something was answered: few syncs, never two at once, and none of forged ones."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from deploy.receiver import MOST_BODY_BYTES, make_app
from models.errors import NotFound
from storage.media import TOKEN_HEADER, Signer, webhook_path

SECRET = "0123456789abcdef" * 4
TOKEN = Signer(SecretStr(SECRET)).webhook_token()
Listening = Callable[[FastAPI], AbstractContextManager[str]]
Judge = Callable[..., bool]
Logged = Callable[[], str]
Syncs = Any  # tests/deploy/conftest.py


def seen_until(happened: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def hint(web: httpx.Client, project_id: object = 1, *, token: str = TOKEN, body: bytes = b"{}") -> httpx.Response:
    return web.post(webhook_path(str(project_id)), headers={TOKEN_HEADER: token}, content=body)


def test_a_hint_causes_a_sync_of_its_project(web: httpx.Client, syncs: Syncs) -> None:
    answer = hint(web, 42, body=b'{"project": {"token": "labelstudios-own"}')
    assert (answer.status_code, answer.content) == (202, b"")
    seen_until(lambda: syncs.ended == 1)
    assert syncs.of == [42]


def test_a_hundred_forged_hints_cause_nothing_and_learn_nothing(
    web: httpx.Client, syncs: Syncs, logged: Logged, says_little: Judge
) -> None:
    body, path = b'{"marker": "in-the-body"}', webhook_path(1)
    right = {TOKEN_HEADER: TOKEN}
    wrong = [{}, *({TOKEN_HEADER: token} for token in ("", "0" * 64, TOKEN[:-1], TOKEN + "0", TOKEN.upper(), SECRET))]
    wrong += [{TOKEN_HEADER: "%00"}, {"Authorization": f"Token {TOKEN}"}, {"Cookie": f"{TOKEN_HEADER}={TOKEN}"}]
    answers = [web.post(webhook_path(n), headers=headers, content=body) for n in (1, 2, 999) for headers in wrong]
    answers += [web.post(f"{path}?{TOKEN_HEADER}={TOKEN}", content=body)]
    answers += [web.post(path, headers=[(TOKEN_HEADER, TOKEN), (TOKEN_HEADER, given)]) for given in (TOKEN, "x")]
    answers += [web.post(path, headers=[(TOKEN_HEADER.encode(), b"\xff\xfe" + TOKEN.encode())])]
    assert {(answer.status_code, answer.content) for answer in answers} == {(401, b"")}
    assert len({str(sorted({**answer.headers, "date": ""}.items())) for answer in answers}) == 1

    strange = ("", "/", "/1/", "/1/2", "/../health", "/1%2f2", "/%2e%2e/x")
    answers += [web.post(f"/webhooks/label-studio{end}", headers=right, content=body) for end in strange]
    answers += [web.request(method, path, headers=right, content=body) for method in ("GET", "PUT", "PATCH", "DELETE")]
    # Ids that no project has: it may be known that the token is right, and nothing happens.
    answers += [
        hint(web, odd, body=body) for odd in ("0x1", "-1", "1.0", "%D9%A3", "1%00", "%00", "9" * 400, "a", "1e1")
    ]
    answers += [hint(web, body=b"x" * (MOST_BODY_BYTES + 1)) for _ in range(10)]
    answers += [hint(web, token="x" * n, body=body) for n in range(40)]
    assert len(answers) >= 100
    assert {answer.status_code for answer in answers} <= {202, 401, 404, 405, 413}
    assert all(says_little(answer, "in-the-body", "xxxx") for answer in answers)
    time.sleep(0.2)
    assert syncs.of == []
    ours = logged()
    assert f"POST {path} HTTP" in ours
    assert not any(word in ours for word in (SECRET, TOKEN, "in-the-body"))


def raw(web: httpx.Client, head: list[str], *pieces: bytes) -> bytes:
    """Send what no client would, and return what comes back until the other side ends or rests."""
    at = urlsplit(str(web.base_url))
    lines = [f"POST {webhook_path(1)} HTTP/1.1", f"Host: {at.netloc}", f"{TOKEN_HEADER}: {TOKEN}", *head, "", ""]
    with socket.create_connection((at.hostname, at.port), timeout=5) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"".join(pieces))
        connection.settimeout(0.5)
        found = b""
        try:
            while piece := connection.recv(65_536):
                found += piece
        except (TimeoutError, ConnectionResetError):
            pass
    return found


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def test_a_body_is_measured_whatever_is_said_of_it(web: httpx.Client, syncs: Syncs) -> None:
    piece = chunk(b"x" * 65_536)
    chunked = ["Transfer-Encoding: chunked"]
    assert b" 413 " in raw(web, ["Content-Length: 1000000000000"])
    assert b" 413 " in raw(web, [f"Content-Length: {MOST_BODY_BYTES + 1}"])
    assert b" 413 " in raw(web, chunked, *[piece] * 4, chunk(b"x"))  # and no end
    assert b" 202 " not in raw(web, chunked, piece)  # it has not ended
    assert b" 202 " not in raw(web, ["Content-Length: 100"], b"x" * 99)
    assert b" 400 " in raw(web, ["Content-Length: many"], b"x")
    assert b" 400 " in raw(web, ["Content-Length: -5"], b"x")
    time.sleep(0.1)
    assert syncs.of == []
    assert b" 202 " in raw(web, ["Content-Length: 2"], b"{}" + b"x" * 30)  # the rest is no part of it
    assert b" 202 " in raw(web, chunked, *[piece] * 4, b"0\r\n\r\n")
    seen_until(lambda: syncs.of != [])


def test_a_client_that_leaves_in_the_middle_is_no_hint_and_no_trouble(
    web: httpx.Client, syncs: Syncs, logged: Logged
) -> None:
    at = urlsplit(str(web.base_url))
    for _ in range(5):
        with socket.create_connection((at.hostname, at.port), timeout=5) as connection:
            head = (
                f"POST {webhook_path(1)} HTTP/1.1\r\nHost: x\r\n{TOKEN_HEADER}: {TOKEN}\r\nContent-Length: 100\r\n\r\nx"
            )
            connection.sendall(head.encode())
    assert web.get("/health").status_code == 403
    time.sleep(0.1)
    assert syncs.of == []
    assert "Traceback" not in logged()


def test_a_hundred_replays_cause_few_syncs_and_never_two_at_once(listening: Listening, syncs: Syncs) -> None:
    began, apart = time.monotonic(), 0.5
    with listening(make_app(sync=syncs, wait=0.1, apart=apart)) as url, httpx.Client(base_url=url) as client:
        for number in range(100):
            assert hint(client, 1 + number % 2).status_code == 202
        seen_until(lambda: syncs.at_once == 0 and {1, 2} <= set(syncs.of))
        time.sleep(apart)
        most = 1 + (time.monotonic() - began) / apart
    assert syncs.most_at_once == 1
    assert syncs.of.count(1) <= most
    assert syncs.of.count(2) <= most


def test_what_is_submitted_within_a_second_becomes_one_sync(listening: Listening, syncs: Syncs) -> None:
    with listening(make_app(sync=syncs)) as url, httpx.Client(base_url=url) as usual:
        for _ in range(100):
            hint(usual)
        assert syncs.of == []
        seen_until(lambda: syncs.of != [])
    assert syncs.of == [1]


def test_a_hint_during_a_sync_causes_one_more_and_is_answered_at_once(web: httpx.Client, syncs: Syncs) -> None:
    syncs.may_end.clear()
    hint(web)
    seen_until(lambda: syncs.at_once == 1)
    for _ in range(20):
        began = time.monotonic()
        assert hint(web).status_code == 202
        assert time.monotonic() - began < 0.5  # Label Studio waits a second, and the annotator with it
    assert syncs.of == [1]
    syncs.may_end.set()
    seen_until(lambda: syncs.ended == 2)
    time.sleep(0.2)
    assert syncs.of == [1, 1]


def test_a_sync_that_fails_is_told_in_a_line_and_ends_nothing(
    web: httpx.Client, syncs: Syncs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="deploy")
    failures = [NotFound("there is no label project 1;\nsee: dipnet labels"), RuntimeError(f"with {SECRET}")]
    for number, error in enumerate([*failures, None], start=1):
        syncs.error = error
        hint(web)
        seen_until(lambda number=number: syncs.ended == number)  # type: ignore[misc]
    seen_until(lambda: sum(record.name == "deploy.hints" for record in caplog.records) == 3)
    first, second, third = [record.getMessage() for record in caplog.records if record.name == "deploy.hints"]
    assert first == "project 1 was hinted at and not synced: there is no label project 1; see: dipnet labels"
    assert second == "project 1 was hinted at and not synced: RuntimeError"
    assert "synced in" in third


def test_the_end_waits_for_a_sync_and_forgets_what_is_due(listening: Listening, syncs: Syncs) -> None:
    syncs.may_end.clear()
    with listening(make_app(sync=syncs, wait=0.0, apart=60.0)) as url, httpx.Client(base_url=url) as client:
        hint(client)
        seen_until(lambda: syncs.at_once == 1)
        hint(client, 2)
        threading.Timer(0.3, syncs.may_end.set).start()
    assert (syncs.of, syncs.ended) == ([1], 1)
