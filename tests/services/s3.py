"""An S3 server on loopback that checks signatures: `rclone serve s3` over a folder whose folders are the buckets."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY, SECRET = "dipnet", "a secret of the tests"
START_S = 30.0


def program() -> str:
    """Where rclone is: beside this Python, or on the path; '' where it is not."""
    beside = Path(sys.executable).with_name("rclone")
    return str(beside) if beside.exists() else shutil.which("rclone") or ""


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[str]:
    """The endpoint of a server, started with these flags besides, for as long as the block lasts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program(), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"]
    command += ["--no-cleanup", "--config", "/dev/null", *flags, str(folder)]
    with (folder.parent / "rclone.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while not _listens(port):
            assert server.poll() is None and time.monotonic() < deadline, "rclone does not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
