"""`dipnet receiver`: what annotators' browsers and Label Studio reach."""

from __future__ import annotations

import copy
import ipaddress
from typing import Any

import uvicorn
from rich.console import Console
from uvicorn.config import LOGGING_CONFIG

from flows.control_plane import free_port
from models.settings import Settings, load_settings
from storage.media import Signer
from storage.stores import open_stores

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
