"""What `dipnet doctor` looks at: every outside system, one line each, with the next action where it is unwell."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
from prefect.settings import PREFECT_API_URL

from models.base import utc_now
from models.errors import DipnetError
from models.settings import PREFIX, Settings, load_settings
from storage.media import HEALTH, MARK, Signer
from storage.stores import open_stores
from tasks.encoders import encoder_named, load_encoder

Row = dict[str, Any]
CLOCKS_DIFFER = timedelta(minutes=10)  # for how long the question is good, where clocks disagree


def settings_rows() -> list[Row]:
    """A row a setting; secrets are shown as set or not, never as they are."""
    settings = load_settings()
    return [
        {
            "name": f"{PREFIX}{name}".upper(),
            "value": str(getattr(settings, name)),
            "meaning": field.description,
        }
        for name, field in Settings.model_fields.items()
    ]


def checks(encoder: str = "") -> list[Row]:
    """A row a check: what, ok (None: not configured), detail. An encoder is loaded when it is named."""
    rows = [_check("settings", lambda: f"root {load_settings().root}")]
    if not rows[0]["ok"]:
        return rows
    rows += [_check("database", _database), _check("object store", _object_store), _check("prefect", _prefect)]
    rows += [_check("labeller", _labeler), _check("receiver", _receiver)]
    if encoder:
        rows.append(_check("encoder", lambda: _encoder(encoder)))
    return rows


def _check(what: str, look: Callable[[], str]) -> Row:
    try:
        detail = look()
    except DipnetError as error:
        return {"check": what, "ok": False, "detail": str(error)}
    return {"check": what, "ok": None if detail.startswith("not configured") else True, "detail": detail}


def _database() -> str:
    with open_stores() as stores:
        return f"{stores.db.get_bind().dialect.name}, at this version's schema"


def _object_store() -> str:
    """Write, read back and compare a small object."""
    with open_stores() as stores:
        token = secrets.token_bytes(16)
        stores.objects.write("doctor/probe", token)
        if stores.objects.read("doctor/probe") != token:
            raise DipnetError(f"'{stores.objects.prefix}' gives back other bytes than were written; check the store")
        return f"{stores.objects.prefix} can be written and read"


def _prefect() -> str:
    url = PREFECT_API_URL.value()
    if not url:
        return "not configured: commands run without a Prefect server; `dipnet serve` starts one"
    try:
        httpx.get(f"{url}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        raise DipnetError(f"the Prefect API at {url} does not answer ({type(error).__name__}); start it") from None
    return f"{url} answers"


def _labeler() -> str:
    settings = load_settings()
    if settings.labeler == "label-studio" and not settings.label_studio_url:
        return "not configured: set DIPNET_LABEL_STUDIO_URL and DIPNET_LABEL_STUDIO_TOKEN before a campaign is routed"
    with open_stores(settings) as stores:
        return ", ".join(f"{name} {value}" for name, value in stores.labeler.check().items())


def _receiver() -> str:
    """Ask for something signed: that tells a receiver that is down from another server, and from another secret."""
    settings = load_settings()
    url = settings.receiver_url
    if not url:
        return "not configured: answers are polled, and Label Studio serves files itself; see: dipnet receiver --help"
    query = Signer(settings.receiver_secret).query(HEALTH, utc_now() + CLOCKS_DIFFER)
    try:
        answer = httpx.get(f"{url}{HEALTH}", params=dict(query), timeout=5)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DipnetError(
            f"the receiver at {url} does not answer ({type(error).__name__}); start it with `dipnet receiver`, or "
            "correct DIPNET_RECEIVER_URL"
        ) from None
    name, value = MARK
    if answer.headers.get(name) != value or answer.status_code not in (204, 403):
        raise DipnetError(
            f"something else than a receiver answers at {url} (HTTP {answer.status_code}); correct DIPNET_RECEIVER_URL, "
            "or what the proxy there leads to"
        )
    if answer.status_code == 403:
        raise DipnetError(
            f"the receiver at {url} refuses what is signed here; give both the same DIPNET_RECEIVER_SECRET, and check "
            "that their clocks agree"
        )
    return f"{url} answers, and knows the same secret"


def _encoder(name: str) -> str:
    settings = load_settings()
    spec = load_encoder(encoder_named(name, settings), settings.device).spec
    return f"{spec.name}: {spec.dim} dimensions, weights {spec.weights_sha256[:12]}"
