"""What the tests of the receiver share: one that is served, what it synced, and what it logged."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from deploy.receiver import make_app
from storage.media import Signer

SECRET = "0123456789abcdef" * 4


class Syncs:
    """Stands for the sync: counts, notices whether two run at once, and can be held or made to fail."""

    def __init__(self) -> None:
        self.of: list[int] = []
        self.at_once = self.most_at_once = self.ended = 0
        self.may_end = threading.Event()
        self.may_end.set()
        self.error: Exception | None = None
        self._lock = threading.Lock()

    def __call__(self, project_id: int) -> None:
        with self._lock:
            self.of.append(project_id)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.may_end.wait(20)
        with self._lock:
            self.at_once -= 1
            self.ended += 1
        if self.error:
            raise self.error


@pytest.fixture
def syncs() -> Syncs:
    return Syncs()


@pytest.fixture(autouse=True)
def signer(monkeypatch: pytest.MonkeyPatch) -> Signer:
    """What signs with the receiver's own secret."""
    monkeypatch.setenv("DIPNET_RECEIVER_SECRET", SECRET)
    return Signer(SecretStr(SECRET))


@pytest.fixture
def web(listening: Callable[[FastAPI], AbstractContextManager[str]], syncs: Syncs) -> Iterator[httpx.Client]:
    """A receiver that syncs quickly, and a client that knows it."""
    with listening(make_app(sync=syncs, wait=0.02, apart=0.05)) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture
def logged(web: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """All that was logged, uvicorn's access log too, as somebody may switch it on; but not the tests' own client."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    line = caplog.handler.format
    return lambda: "\n".join(line(record) for record in caplog.records if not record.name.startswith("http"))


@pytest.fixture
def says_little(signer: Signer) -> Callable[..., bool]:
    """Whether an answer without an image is a few plain words that give nothing away."""

    def judge(answer: httpx.Response, *others: str) -> bool:
        words = answer.text + str(answer.headers)
        secrets = (SECRET, signer.webhook_token(), "Traceback", "sqlite", "uvicorn", *others)
        plain = answer.headers.get("content-type", "text/plain").startswith("text/plain")
        return plain and len(answer.content) < 120 and not any(secret in words for secret in secrets)

    return judge
