"""A real Label Studio of our own on loopback, pinned, quiet, and gone when we are: for the demo and the tests."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import httpx
from pydantic import SecretStr

from models.errors import Unavailable

RELEASE = "1.23.2"
HOST = "127.0.0.1"
USER = "dipnet@example.com"
START_SECONDS = 900  # the first time, a gigabyte is fetched and 300 migrations run


class LabelStudioServer:
    """A server with its own data folder. A folder that was used before starts in seconds and keeps its projects."""

    def __init__(
        self, home: Path, *, files_root: Path | None = None, on_wait: Callable[[str], None] = lambda _: None
    ) -> None:
        """`files_root`: folder whose images it may show. `on_wait` is told what takes long."""
        self._home, self._files_root, self._on_wait = home, files_root, on_wait
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.token = SecretStr("")

    def __enter__(self) -> LabelStudioServer:
        """Start, and wait until it answers. Raises Unavailable with the reason."""
        self._home.mkdir(parents=True, exist_ok=True)
        secret = self._secret()
        self.token, port = SecretStr(secret["token"]), _free_port()
        self.url = f"http://{HOST}:{port}"
        self._on_wait(f"Label Studio {RELEASE}: the first start installs it, which takes some minutes")
        program = _installed(self._log)
        command = [program, "start", "--no-browser", "--internal-host", HOST, "--port", str(port)]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603  a pinned package through uv
                command,
                env=self._environment(secret),
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server and whatever it started."""
        self._stop()

    @property
    def _log(self) -> Path:
        return self._home / "label-studio.log"

    def _secret(self) -> dict[str, str]:
        """Password and token, made at the first start and readable by the owner alone."""
        file = self._home / "credentials.json"
        if not file.is_file():
            made = {"password": secrets.token_urlsafe(24), "token": secrets.token_hex(20)}
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
                json.dump(made, handle)
        found: dict[str, str] = json.loads(file.read_text())
        return found

    def _environment(self, secret: dict[str, str]) -> dict[str, str]:
        """Quiet, closed, and with an account made at the first start."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("DIPNET_", "LABEL_STUDIO_"))}
        own |= {
            "LABEL_STUDIO_BASE_DATA_DIR": str(self._home / "data"),
            "LABEL_STUDIO_USERNAME": USER,
            "LABEL_STUDIO_PASSWORD": secret["password"],
            "LABEL_STUDIO_USER_TOKEN": secret["token"],
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
            "LABEL_STUDIO_SENTRY_DSN": "",
            "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
            "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
            "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
            "DEBUG": "false",
        }
        if self._files_root is not None:
            own["LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED"] = "true"
            own["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"] = str(self._files_root)
        return own

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process is not None and (code := self._process.poll()) is not None:
                lines = self._log.read_text(errors="replace").strip().splitlines()
                raise Unavailable(
                    f"Label Studio ended with code {code} ({lines[-1] if lines else 'no output'}); see {self._log}"
                )
            try:
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        raise Unavailable(f"Label Studio did not answer within {START_SECONDS} s; see {self._log}")

    def _stop(self) -> None:
        if self._process is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, sign)
                self._process.wait(10)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


def _installed(log: Path) -> str:
    """The path of the label-studio program, installed by uv if need be.

    It is then started directly: were uv its parent, a kill of ours would end uv and leave the server running.
    """
    find = "import sys, pathlib; print(pathlib.Path(sys.executable).parent / 'label-studio')"
    command = [*_uvx(), "--quiet", "--from", f"label-studio=={RELEASE}", "python", "-c", find]
    with log.open("ab") as output:
        done = subprocess.run(  # noqa: S603  a pinned package through uv
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, text=True, check=False
        )
    program = done.stdout.strip()
    if done.returncode or not Path(program).is_file():
        raise Unavailable(f"label-studio=={RELEASE} cannot be installed through uv; see {log}")
    return program


def _uvx() -> list[str]:
    """How to run a tool in an environment of its own: its pins do not fit ours."""
    if found := shutil.which("uvx"):
        return [found]
    if found := shutil.which("uv"):
        return [found, "tool", "run"]
    raise Unavailable("Label Studio is started through uv, which is not on the PATH; install it with: pip install uv")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """In the child after the fork: receive SIGTERM when the parent dies, even by SIGKILL (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
