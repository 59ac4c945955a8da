"""Real servers, each started once a session, and skipped with a reason where they cannot be had."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from models.errors import Unavailable
from storage.labelstudio_server import LabelStudioServer
from tests.services.migrated import migrated_label_studio


@pytest.fixture(scope="session")
def migrated() -> Path:
    """A data directory that Label Studio has already migrated, to be copied."""
    try:
        return migrated_label_studio()
    except Unavailable as problem:
        pytest.skip(f"no Label Studio here: {problem}")


@pytest.fixture(scope="session")
def label_studio_home(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of the session's Label Studio."""
    return Path(shutil.copytree(migrated, tmp_path_factory.mktemp("label-studio") / "home"))


@pytest.fixture(scope="session")
def label_studio(label_studio_home: Path) -> Iterator[LabelStudioServer]:
    """A Label Studio on loopback that may show files of folders below its home's `files`."""
    files = label_studio_home / "files"
    files.mkdir()
    try:
        with LabelStudioServer(label_studio_home, files_root=files) as server:
            yield server
    except Unavailable as problem:
        pytest.skip(f"no Label Studio here: {problem}")


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of one Prefect server that several tests share, named to them alone."""
    home = tmp_path_factory.mktemp("prefect-api")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-services",
    ]
    quiet = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    with (home / "log").open("w") as output:
        process = subprocess.Popen(command, env={**os.environ, **quiet}, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=5).is_success:
                    break
            except httpx.HTTPError:
                assert time.monotonic() < deadline, (home / "log").read_text()[-2000:]
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        process.terminate()
        process.wait(20)


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's server programs, which Debian keeps off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of an empty database of a real PostgreSQL that listens on a socket in a folder of its own."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    home = Path(tempfile.mkdtemp(prefix="dipnet-pg-"))
    as_user = {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(home, "postgres", "postgres")
        as_user = {"user": "postgres", "group": "postgres"}

    def run(program: str, *arguments: str) -> None:
        subprocess.run([programs / program, *arguments], check=True, capture_output=True, cwd=home, **as_user)

    data = home / "data"
    run("initdb", "-D", str(data), "-U", "dipnet", "--auth=trust", "-E", "UTF8")
    run("pg_ctl", "-D", str(data), "-w", "-l", str(home / "log"), "-o", f"-k {home} -c listen_addresses=", "start")
    try:
        yield f"postgresql://dipnet@/postgres?host={home}"
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(home, ignore_errors=True)
