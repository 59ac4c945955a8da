"""`dipnet receiver`: what annotators' browsers and Label Studio reach."""

from __future__ import annotations

import copy
import ipaddress
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import uvicorn
from rich.console import Console
from uvicorn.config import LOGGING_CONFIG

from flows.control_plane import end_with_parent, free_port
from models.errors import Unavailable
from models.settings import PREFIX, Settings, load_settings
from storage.media import HEALTH, MARK, Signer
from storage.stores import open_stores

LOOPBACK = "127.0.0.1"
START_SECONDS = 120
APP = "deploy.receiver:make_app"  # by name: what is served and what serves it are peers


def serve_receiver(*, host: str, port: int) -> None:
    """Serve until interrupted. Raises BadInput, before anything is served, when settings, address or port are wrong."""
    settings = load_settings()
    Signer(settings.receiver_secret)
    with open_stores(settings):
        pass  # a database that cannot be used is told now, not to an annotator
    chosen = free_port(port, host)
    _introduce(settings, host, chosen)
    uvicorn.run(APP, factory=True, host=host, port=chosen, **server_options())


@contextmanager
def receiver_beside(folder: Path) -> Iterator[str]:
    """The URL of a receiver on loopback that lives as long as the block, known to this process; the same one every time.

    Its port and secret lie in the folder, readable by their owner alone, so that links of an earlier run stay good.
    Raises Unavailable when it does not start.
    """
    port, secret = _kept(folder / "receiver.json")
    url = f"http://{LOOPBACK}:{port}"
    os.environ |= {f"{PREFIX}RECEIVER_URL": url, f"{PREFIX}RECEIVER_SECRET": secret}
    log = folder / "receiver.log"
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  our own interpreter
            [sys.executable, "-c", "from flows.cli import main; main()", "receiver", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=end_with_parent,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"the receiver does not answer at {url}; see {log}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _kept(path: Path) -> tuple[int, str]:
    if not path.is_file():
        made = json.dumps({"port": free_port(0), "secret": token_hex(32)})
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:  # noqa: PTH123
            handle.write(made)
        partial.replace(path)
    known = json.loads(path.read_text())
    return int(known["port"]), str(known["secret"])


def _answers(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}{HEALTH}", timeout=5).headers.get(MARK[0]) == MARK[1])
    except httpx.HTTPError:
        return False


def server_options() -> dict[str, Any]:
    """How the receiver is served. There is no access log: it would hold the signatures of links, which are permissions."""
    logging: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    logging["loggers"]["deploy"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return {
        "access_log": False,
        "log_config": logging,
        "server_header": False,
        "proxy_headers": False,  # nothing depends on who asks, or on the name that was asked for
        "ws": "none",
        "lifespan": "on",
        "timeout_graceful_shutdown": 10,
    }


def _introduce(settings: Settings, host: str, port: int) -> None:
    """Say where it is, and how browsers are led there."""
    out = Console(soft_wrap=True, highlight=False)
    out.print(f"[bold]{_url(host, port)}[/bold]  shows images and hears from Label Studio; Ctrl-C ends")
    if settings.receiver_url:
        out.print(f"links are made for {settings.receiver_url}, which must lead here; ask: dipnet doctor")
    else:
        out.print(
            "set DIPNET_RECEIVER_URL to where browsers and Label Studio reach this, for every dipnet that sends batches"
        )
    if not _is_loopback(host):
        out.print(
            "[yellow]others can reach this address.[/yellow] They see only what they have a signed link to, but links "
            "are readable on their way: put a proxy with TLS in front"
        )


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
