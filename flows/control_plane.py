"""Where flow runs are recorded: the Prefect API that is configured, or a server of our own that lives as long as we do."""

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import httpx
from prefect.flows import Flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from models.errors import BadInput, Unavailable

P = ParamSpec("P")
R = TypeVar("R")

HOST = "127.0.0.1"
START_SECONDS = 180  # 20 s on an idle machine; a busy one has taken three times as long
QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_SERVER_LOGGING_LEVEL": "ERROR"}


def configured_api() -> str:
    """The URL of the Prefect API that this environment or profile names; empty when it names none."""
    return str(PREFECT_API_URL.value() or "")


def call(flow: Flow[P, R]) -> Callable[P, R]:
    """The flow as a Prefect run where an API is configured, and as the plain function where none is. Raises Unavailable."""
    url = configured_api()
    if url:
        _require(url)
    return flow if url else flow.fn


@contextmanager
def control_plane(log: Path, *, port: int = 0, ui: bool = False) -> Iterator[str]:
    """The URL of a Prefect API, usable by flows inside the block. Raises Unavailable when it does not answer.

    A configured API is used as it is. Otherwise `prefect server start` runs on loopback, writes to `log`, and ends with
    the block, or with this process however it ends. Prefect's own ephemeral mode would outlive a kill.
    """
    if url := configured_api():
        _require(url)
        yield url
        return
    chosen = free_port(port)
    url = f"http://{HOST}:{chosen}/api"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(chosen)]
    command += ["--ui"] if ui else ["--no-ui", "--no-services"]
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  our own interpreter
            command,
            # The UI asks the port of the settings, not the one on the command line.
            env={**os.environ, **QUIET, "PREFECT_SERVER_API_PORT": str(chosen), "PREFECT_SERVER_UI_API_URL": url},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=end_with_parent,
        )
    try:
        _wait(url, process, log)
        with temporary_settings({PREFECT_API_URL: url}):
            os.environ["PREFECT_API_URL"] = url  # for the processes that a served deployment starts
            yield url
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def end_with_parent() -> None:
    """In a child after the fork: receive SIGTERM when the parent dies, even by SIGKILL (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def free_port(port: int, host: str = HOST) -> int:
    """That port, or any free one for 0. Raises BadInput when it cannot be listened on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise BadInput(f"'{host}' is not an address; give one of this machine's with --host") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise BadInput(f"port {port} is in use; stop what listens there, or give another with --port") from None
            raise BadInput(f"{host}:{port} cannot be listened on ({error.strerror}); give another address") from None
        return int(probe.getsockname()[1])


def _require(url: str) -> None:
    """Raises Unavailable when a configured API does not answer; flows would say so with a traceback."""
    if not _healthy(url):
        raise Unavailable(f"the Prefect API at {url} does not answer; start it, or unset PREFECT_API_URL")


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until our own server answers. Raises Unavailable when it ends, or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while not _healthy(url):
        if process.poll() is not None:
            raise Unavailable(f"the Prefect server ended with code {process.returncode}; see {log}")
        if time.monotonic() > deadline:
            raise Unavailable(f"the Prefect server did not answer within {START_SECONDS} s; see {log}")
        time.sleep(0.3)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False
