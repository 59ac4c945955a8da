"""Small real things that many tests share."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from models.settings import PREFIX

CLIP = Path(__file__).parent.parent / "deploy" / "demo" / "clip"
SHADES = {"dark": 60, "light": 220}


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dipnet of the test's own: its root, its database, the demo's encoder, and no labeller but the oracle."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    root = tmp_path / "root"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIPNET_ROOT", str(root))
    monkeypatch.setenv("DIPNET_ENCODER", str(CLIP))
    monkeypatch.setenv("DIPNET_LABELER", "oracle")
    return root


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Path]:
    """Draw a folder of images below the test's own."""
    return lambda name, count, *, seed=0: draw_images(tmp_path / "images" / name, count, seed=seed)


@pytest.fixture(scope="session")
def drawn_images() -> Callable[..., Path]:
    """The same for fixtures of a session, which name the folder themselves."""
    return draw_images


def draw_images(folder: Path, count: int, *, seed: int) -> Path:
    """Squares and bars, dark and light, each with a grain of its own, and a metadata.csv that says which is which."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines = ["file_name,class_name,tone"]
    for number in range(count):
        shape, tone = ("square", "bar")[number % 2], ("dark", "light")[number // 2 % 2]
        pixels = generator.integers(0, 12, (28, 28)).astype(np.uint8)
        where = (slice(8, 20), slice(8, 20)) if shape == "square" else (slice(12, 16), slice(2, 26))
        pixels[where] = SHADES[tone] + generator.integers(0, 30, pixels[where].shape)
        file = f"{number:04d}.png"
        Image.fromarray(pixels).save(folder / file)
        lines.append(f"{file},{shape},{tone}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One Prefect for the whole session: real flow runs against a server of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def listening() -> Callable[[FastAPI], AbstractContextManager[str]]:
    """Serve an application as `dipnet receiver` does, on a port of its own, for as long as a block lasts."""
    return listen


@contextmanager
def listen(app: FastAPI) -> Iterator[str]:
    from flows.receiving import server_options

    options = {**server_options(), "log_config": None}  # what is logged goes to the test
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    """A real S3 protocol server with one bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="bucket")
        yield endpoint
    server.stop()
