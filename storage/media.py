"""How an image becomes visible in an annotator's browser: by reference, for as long as labelling takes.

A signed link leads to `dipnet receiver`, which opens the image where it lies when somebody looks: S3's own presigned
links last seven days at most, and a batch may wait for longer. Nothing is copied, and a link shows one image of one
batch or issue alone.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlencode

from pydantic import SecretStr

from models.elements import place_of
from models.errors import BadInput, DipnetError
from models.settings import Settings

LOCAL_FILES = "/data/local-files/?d="
HEALTH = "/health"
TOKEN_HEADER = "X-Dipnet-Token"  # noqa: S105  the name of a header
MARK = ("X-Dipnet", "receiver")  # what every answer of `dipnet receiver` says, so that another server is told apart
LONGEST_UNTIL = 15  # digits: thirty million years


class Refused(DipnetError):
    """A link that was tampered with, or has expired."""


def request_path(key: str) -> str:
    """Where the receiver shows the image of a label request: what is signed."""
    return f"/media/requests/{quote(key, safe='', errors='replace')}"


def example_path(project_id: int | str, sample_id: str) -> str:
    """Where the receiver shows an exemplar to the annotators of a project (ours)."""
    return f"/media/examples/{quote(str(project_id), safe='', errors='replace')}/{quote(sample_id, safe='', errors='replace')}"


def webhook_path(project_id: int | str) -> str:
    """Where the receiver hears that something was answered in a project (ours)."""
    return f"/webhooks/label-studio/{project_id}"


class Media(Protocol):
    """Links to images that a browser shows."""

    @property
    def until(self) -> datetime | None:
        """When links that are made now expire; None: they do not."""
        ...

    def of_request(self, key: str, uri: str) -> str:
        """The link to the image of a label request. Raises BadInput for an image that cannot be shown."""
        ...

    def of_example(self, project_id: int, sample_id: str, uri: str) -> str:
        """The link to an exemplar, as the instructions of a project (ours) show it."""
        ...


def media_of(settings: Settings, *, now: datetime) -> Media:
    """The way that the settings name: signed links where there is a receiver, else files that Label Studio serves."""
    if settings.receiver_url:
        until = now + timedelta(days=settings.media_days)
        return SignedMedia(Signer(settings.receiver_secret), settings.receiver_url, until)
    return LocalFiles(settings.label_studio_files_root)


class Signer:
    """Signs and checks paths with keys that are derived from one secret, so that a webhook's token signs no image."""

    def __init__(self, secret: SecretStr) -> None:
        if not secret.get_secret_value():
            raise BadInput(
                "links to images are signed, and there is no secret; set DIPNET_RECEIVER_SECRET to what "
                "`openssl rand -hex 32` prints, the same for dipnet and for `dipnet receiver`"
            )
        self._secret = secret.get_secret_value().encode()

    def query(self, path: str, until: datetime) -> Mapping[str, str]:
        """What follows a path: until when it may be opened, and the signature of both."""
        moment = str(int(until.timestamp()))
        return {"until": moment, "signature": self._signature(path, moment)}

    def check(self, path: str, *, until: str, signature: str, now: datetime) -> None:
        """Raises Refused for a path that was not signed so, or no longer. It takes as long for every wrong signature."""
        right = hmac.compare_digest(self._signature(path, until).encode(), signature.encode("utf-8", "replace"))
        # Whatever was signed is a plain number; anything else would not be worth an exception of int()'s.
        numeric = until.isascii() and until.isdigit() and len(until) <= LONGEST_UNTIL
        if not (right and numeric and int(until) >= now.timestamp()):
            raise Refused("this link is not valid, or no longer; open the task anew in the labelling tool")

    def webhook_token(self) -> str:
        """What Label Studio sends along with a webhook, in a header."""
        return self._mac("webhook", "")

    def is_webhook_token(self, given: str) -> bool:
        """Whether it is that token. It takes as long for every wrong one."""
        return hmac.compare_digest(self.webhook_token().encode(), given.encode("utf-8", "replace"))

    def _signature(self, path: str, until: str) -> str:
        return self._mac("media", f"{until}\n{path}")

    def _mac(self, purpose: str, message: str) -> str:
        key = hmac.digest(self._secret, f"dipnet {purpose}".encode(), hashlib.sha256)
        return hmac.new(key, message.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


class SignedMedia:
    """Links to `dipnet receiver`. What lies on the web already is linked as it is."""

    def __init__(self, signer: Signer, url: str, until: datetime) -> None:
        self._signer, self._url = signer, url.rstrip("/")
        self.until: datetime | None = until.astimezone(UTC)
        self._until = until

    def of_request(self, key: str, uri: str) -> str:
        """/media/requests/KEY"""
        return uri if _is_web(uri) else self._link(request_path(key))

    def of_example(self, project_id: int, sample_id: str, uri: str) -> str:
        """/media/examples/PROJECT/SAMPLE"""
        return uri if _is_web(uri) else self._link(example_path(project_id, sample_id))

    def _link(self, path: str) -> str:
        return f"{self._url}{path}?{urlencode(self._signer.query(path, self._until))}"


class LocalFiles:
    """Links to files that Label Studio serves itself, to those who are signed in there. They do not expire."""

    def __init__(self, root: Path | None) -> None:
        self.root = normal(root) if root else None
        self.until: datetime | None = None

    def of_request(self, key: str, uri: str) -> str:
        """The link, relative to Label Studio. Raises BadInput for an image outside what Label Studio serves."""
        del key
        return self._link(uri)

    def of_example(self, project_id: int, sample_id: str, uri: str) -> str:
        """The same."""
        del project_id, sample_id
        return self._link(uri)

    def _link(self, uri: str) -> str:
        if _is_web(uri):
            return uri
        place = place_of(uri)
        if place.member or place.box:
            raise BadInput(
                f"annotators could not see '{uri}': Label Studio serves whole files, and this is "
                f"{'a part of one' if place.box else 'a member of a tar'}; run `dipnet receiver`, which shows it, and set "
                "DIPNET_RECEIVER_URL and DIPNET_RECEIVER_SECRET"
            )
        path = normal(Path(uri))
        # Label Studio serves folders below its root, but not the root itself.
        if uri.startswith("s3://") or not self.root or path.parent == self.root or not path.is_relative_to(self.root):
            raise BadInput(
                f"annotators could not see '{uri}'; run `dipnet receiver` and set DIPNET_RECEIVER_URL and "
                "DIPNET_RECEIVER_SECRET, or, for files, let Label Studio serve a folder above it and set "
                "DIPNET_LABEL_STUDIO_FILES_ROOT to that folder"
            )
        return LOCAL_FILES + quote(path.relative_to(self.root).as_posix())


def normal(path: Path) -> Path:
    """Absolute and without `..`; links are kept, since Label Studio compares names."""
    return Path(os.path.normpath(path.absolute()))


def _is_web(uri: str) -> bool:
    """Whether it lies on the web as it is to be seen; a browser would show the whole image of a box."""
    return uri.startswith(("http://", "https://")) and not place_of(uri).box
