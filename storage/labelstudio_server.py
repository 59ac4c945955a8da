"""A real Label Studio on loopback, for the demo and for tests: pinned, in an environment of its own, gone with its parent."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx
from pydantic import SecretStr

from models.errors import Unavailable

RELEASE = "1.23.2"
REPORT_EVERY_S = 15.0
STOP_WITHIN_S = 10.0

# The server is our direct child, and it asks every half second who its parent is: a parent that was killed with -9
# cannot stop anything, and PR_SET_PDEATHSIG would fire when the *thread* that started the server ends.
BOOT = """
import os, signal, sys, threading, time
parent = int(sys.argv.pop(1))
def watch():
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
from label_studio.server import main
sys.argv[0] = "label-studio"
sys.exit(main())
"""

# What would change the server's mind if it leaked in from our own environment; it reads names with and without prefix.
FOREIGN = (
    "LABEL_STUDIO_",
    "DIPNET_",
    "DJANGO_",
    "POSTGRE_",
    "MYSQL_",
    "STORAGE_",
    "MINIO_",
    "SENTRY_",
    "PYTHON",
    "LS_",
)
FOREIGN_NAMES = ("HOST", "PORT", "USERNAME", "PASSWORD", "USER_TOKEN", "BASE_DATA_DIR", "DATABASE_NAME")
FIXED = {
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
    "LABEL_STUDIO_SENTRY_DSN": "",
    "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
    "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
    "LABEL_STUDIO_LATEST_RELEASE_CHECK": "false",
    "DEBUG": "false",
    "LOG_LEVEL": "WARNING",
}


def _quiet(what: str) -> None:
    """Nobody wants to hear."""


class LabelStudioServer:
    """Label Studio while a `with` block lasts. A data directory that was used before keeps its user, token and projects.

    `files_root` becomes Label Studio's local files document root: folders below it can be served, itself not. Without a
    `port` it gets a free one. Raises Unavailable when the server cannot be had.
    """

    def __init__(
        self,
        data: Path,
        *,
        files_root: Path | None = None,
        environment: Mapping[str, str] | None = None,
        port: int = 0,
        deadline_s: float = 600.0,
        on_wait: Callable[[str], None] = _quiet,
    ) -> None:
        self._port = port
        self._data, self.files_root = data.absolute(), files_root.absolute() if files_root else None
        self._environment, self._deadline_s, self._on_wait = dict(environment or {}), deadline_s, on_wait
        self._process: subprocess.Popen[bytes] | None = None
        self.log = self._data / "server.log"
        self.url, self.email = "", ""
        self.password, self.token = SecretStr(""), SecretStr("")

    def __enter__(self) -> LabelStudioServer:
        self._data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._load_credentials()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and whatever it started. Twice is once."""
        process, self._process = self._process, None
        if process is None:
            return
        for ending in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, ending)
                process.wait(STOP_WITHIN_S)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        process.wait()

    def _load_credentials(self) -> None:
        """User, password and token of this data directory; made at the first start, readable by nobody else."""
        path = self._data / "credentials.json"
        if not path.is_file():
            made = {"email": "dipnet@localhost", "password": secrets.token_urlsafe(18), "token": secrets.token_hex(20)}
            partial = path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:  # noqa: PTH123
                json.dump(made, handle)
            partial.replace(path)
        known = json.loads(path.read_text())
        self.email, self.password, self.token = (
            known["email"],
            SecretStr(known["password"]),
            SecretStr(known["token"]),
        )

    def _start(self) -> None:
        deadline = time.monotonic() + self._deadline_s
        with open(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:  # noqa: PTH123
            python = self._install(log, deadline)
            port = self._port or _free_port()
            self.url = f"http://127.0.0.1:{port}"
            arguments = ["start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
            self._process = subprocess.Popen(  # noqa: S603
                [python, "-I", "-c", BOOT, str(os.getpid()), *arguments],
                cwd=self._data,
                env=self._server_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._wait(self._process, self._answers, f"starting Label Studio {RELEASE}", deadline)
        self._check_identity()

    def _install(self, log: IO[bytes], deadline: float) -> str:
        """The Python of Label Studio's own environment, from uv's cache when it is there, else from the registry."""
        ask = ["--python", sys.executable, "--from", f"label-studio=={RELEASE}", "python", "-I", "-c"]
        tail = "import sys, label_studio; print(sys.executable)"
        uvx = _launcher()
        for options in (["--offline"], []):
            found = subprocess.Popen(  # noqa: S603
                [*uvx, *options, *ask, tail],
                env=_inherited(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
            self._process = found
            what = f"installing Label Studio {RELEASE} (about 1 GB, the first time only)"
            failed = self._wait(found, lambda done=found: done.poll() is not None, what, deadline, may_end=True)  # type: ignore[misc]
            out = found.communicate()[0].decode().strip()
            self._process = None
            if not failed and out:
                return out.splitlines()[-1]
        raise self._gone(f"Label Studio {RELEASE} cannot be installed; check the network and the package registry")

    def _server_environment(self) -> dict[str, str]:
        environment = _inherited() | FIXED
        environment |= {
            "LABEL_STUDIO_BASE_DATA_DIR": str(self._data),
            "LABEL_STUDIO_USERNAME": self.email,
            "LABEL_STUDIO_PASSWORD": self.password.get_secret_value(),
            "LABEL_STUDIO_USER_TOKEN": self.token.get_secret_value(),
        }
        if self.files_root:
            environment["LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED"] = "true"
            environment["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"] = str(self.files_root)
        return environment | self._environment

    def _wait(
        self,
        process: subprocess.Popen[bytes],
        ready: Callable[[], bool],
        what: str,
        deadline: float,
        *,
        may_end: bool = False,
    ) -> bool:
        """Wait until ready, telling how long it takes; return whether the process failed. Raises Unavailable."""
        started = told = time.monotonic()
        while not ready():
            now = time.monotonic()
            if process.poll() is not None and not may_end:
                raise self._gone("Label Studio ended instead of starting")
            if now > deadline:
                raise self._gone(f"{what}: not done within {self._deadline_s:.0f} s")
            if now - told >= REPORT_EVERY_S:
                told = now
                self._on_wait(f"{what}: {now - started:.0f} s so far")
            time.sleep(0.2)
        return process.poll() not in (None, 0)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=10, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _check_identity(self) -> None:
        """Raises Unavailable when what answers is not ours: another process took the port, or other credentials."""
        headers = {"Authorization": f"Token {self.token.get_secret_value()}"}
        try:
            status = httpx.get(
                f"{self.url}/api/current-user/whoami", headers=headers, timeout=60, trust_env=False
            ).status_code
        except httpx.HTTPError as error:
            raise self._gone(f"Label Studio stopped answering ({type(error).__name__})") from None
        if status != 200:
            raise self._gone(f"Label Studio does not know its own token (HTTP {status}); delete '{self._data}'")

    def _gone(self, what: str) -> Unavailable:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return Unavailable(f"{what}; the log '{self.log}' ends with: {lines[-1] if lines else '(nothing)'}")


def _launcher() -> list[str]:
    """The command that runs a tool from a package: uvx, or the uv that pip installs. Raises Unavailable."""
    uvx = shutil.which("uvx")
    if uvx:
        return [uvx]
    if find_spec("uv"):
        return [sys.executable, "-m", "uv", "tool", "run"]
    raise Unavailable("Label Studio is started with uv, which is not installed; install it with: pip install uv")


def _inherited() -> dict[str, str]:
    """Our environment without what would configure the server, and without our secrets."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(FOREIGN) and name not in FOREIGN_NAMES
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
