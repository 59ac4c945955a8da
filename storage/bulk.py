"""Objects of S3 in bulk, through obstore: one request an object or span, its size and etag looked at before its bytes."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from models.errors import NotFound, Unavailable
from storage.objects import CLIENTS, S3Store

if TYPE_CHECKING:
    from obstore.store import S3Config, S3CredentialProvider
    from obstore.store import S3Store as Bucket

ATTEMPTS = 3  # beyond those of obstore, which does not ask again for the rest of an answer that broke off
RETRIES = 4  # of obstore itself
PAUSE_S = 0.5
STATUS, CODE = re.compile(r"status code: (\d{3})"), re.compile(r"<Code>(\w{1,100})</Code>")
OF_THE_OBJECT = {"", "AccessDenied", "Forbidden", "InvalidObjectState"}  # refusals that say nothing of our credentials


class Problem(StrEnum):
    """Why there are no bytes to look at. Values are those of the reasons of quarantine."""

    MISSING = "missing"
    FORBIDDEN = "no permission"
    CHANGED = "changed since it was listed"
    TOO_LARGE = "too many bytes"


class Access(NamedTuple):
    """How S3 is reached, and what is not read any more."""

    endpoint: str = ""  # empty: AWS
    region: str = "us-east-1"
    most_bytes: int = 200_000_000  # of an image


class Span(NamedTuple):
    """Bytes of an object, `stop` excluded."""

    start: int
    stop: int


class Closed(Exception):
    """Nobody waits for the answer any more."""


class Room:
    """Bounds the bytes that were read and not yet taken. The answer that is next in line always has room."""

    def __init__(self, most: int) -> None:
        self._most, self._used, self._next, self._closed = most, 0, 0, False
        self._shares: dict[int, int] = {}
        self._changed = threading.Condition()

    def share(self, number: int) -> Callable[[int], None]:
        """A function that waits until so many bytes more may be held for the answer of that number. Raises Closed."""

        def take(size: int) -> None:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or number <= self._next or self._used + size <= self._most)
                if self._closed:
                    raise Closed
                self._used += size - self._shares.get(number, 0)
                self._shares[number] = size

        return take

    def give_back(self, number: int) -> None:
        """The answer was taken; the one after it is next."""
        with self._changed:
            self._used -= self._shares.pop(number, 0)
            self._next = max(self._next, number + 1)
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of everyone who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def is_s3(uri: str) -> bool:
    """Whether a URI names an object of S3."""
    return uri.startswith("s3://")


class Reader:
    """Reads objects wherever in S3 they lie. Made anew for each sitting, so that changed credentials are seen."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self.quickest_s = float("inf")  # from asking to the beginning of an answer
        self._surroundings = hash(frozenset(item for item in os.environ.items() if item[0].startswith("AWS_")))

    def fetch(self, uri: str, etag: str, span: Span | None, take: Callable[[int], None]) -> bytes | Problem:
        """An object's bytes, or a span's (less where the object ends in it).

        Raises Unavailable when S3 does not answer or refuses our credentials.
        """
        name, _, key = uri.removeprefix("s3://").partition("/")
        if span and span.stop <= span.start:
            return b""
        if _named_oddly(key):
            return _fetch_oddly(name, key, etag, span, self._access)
        trouble = ""
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE_S * attempt)
            try:
                store = _bucket(name, self._access.endpoint, self._access.region, self._surroundings)
                return self._ask(store, key, etag, span, take)
            except _Passes as passing:
                trouble = str(passing)
            except _Whole:
                return _fetch_oddly(name, key, etag, span, self._access)
        raise Unavailable(
            f"S3 does not answer for '{uri}' ({trouble}); check the network, the credentials and DIPNET_S3_ENDPOINT"
        )

    def _ask(
        self, store: Bucket, key: str, etag: str, span: Span | None, take: Callable[[int], None]
    ) -> bytes | Problem:
        """One request."""
        import obstore
        from obstore.exceptions import BaseError

        begin = time.perf_counter()
        try:
            found = obstore.get(store, key, options={"range": tuple(span)} if span else None)
            self.quickest_s = min(self.quickest_s, time.perf_counter() - begin)
            about, (start, stop) = found.meta, found.range
            if etag and (about["e_tag"] or "").strip('"') != etag:
                return Problem.CHANGED
            if span is None and about["size"] > self._access.most_bytes:
                return Problem.TOO_LARGE
            take(stop - start)
            data = bytes(found.bytes())
        except FileNotFoundError:  # or its bucket is not there: in a list that is one row's trouble
            return Problem.MISSING
        except BaseError as error:
            return _refused(key, str(error))
        if len(data) != stop - start:
            raise _Passes("the answer broke off")
        return data


class _Passes(Exception):
    """What may be gone when it is tried again."""


class _Whole(Exception):
    """The server answered with all of an object where a span of it was asked for."""


def _refused(key: str, said: str) -> Problem:
    """What S3's refusal means for the object. Raises Unavailable where it is about us, and _Passes where it may pass."""
    status, code = (STATUS.search(said) or ["", ""])[1], _code(said)
    if status == "416":  # the span lies behind the object's end
        return Problem.CHANGED
    if status == "404":
        return Problem.MISSING
    if status == "403" and code in OF_THE_OBJECT:
        return Problem.FORBIDDEN
    if "non-partial" in said:
        raise _Whole
    if status in ("400", "401", "403"):
        raise Unavailable(f"S3 refused '{key}' ({code or status}); check the credentials, their rights and the region")
    raise _Passes(f"status {status}" if status else said.partition("\n")[0][:300])


def _code(said: str) -> str:
    found = CODE.search(said)
    return found[1] if found else ""


def _named_oddly(key: str) -> bool:
    """Whether obstore would look for another key than this: it knows paths, and S3 knows text."""
    return any(part in ("", ".", "..") for part in key.split("/")) or not key.isprintable()


def _fetch_oddly(name: str, key: str, etag: str, span: Span | None, access: Access) -> bytes | Problem:
    """The same through boto3."""
    store = S3Store(name, "", endpoint=access.endpoint, region=access.region)
    try:
        found = store.read_part(key, span.start if span else 0, span.stop if span else access.most_bytes + 1)
    except NotFound:
        return Problem.MISSING
    if etag and found.etag != etag:
        return Problem.CHANGED
    return Problem.TOO_LARGE if span is None and found.size > access.most_bytes else found.data


@lru_cache(maxsize=16)
def _bucket(name: str, endpoint: str, region: str, surroundings: int) -> Bucket:  # noqa: ARG001
    """A bucket as obstore reaches it, with the credentials that boto3 would use. Nothing is contacted yet."""
    from obstore.store import S3Store as Bucket

    config: S3Config = {"region": region}
    if endpoint:
        config["endpoint"] = endpoint
    return Bucket(
        name,
        config=config,
        credential_provider=_credentials(),
        client_options={
            "allow_http": True,
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": timedelta(seconds=60),
            "timeout": timedelta(minutes=10),
        },
        retry_config={
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=60),
            "backoff": {"init_backoff": timedelta(seconds=0.2)},
        },
    )


def _credentials() -> S3CredentialProvider | None:
    """Where boto3 would find credentials; None: in the environment, which obstore reads itself. Raises Unavailable."""
    if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return None
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    with CLIENTS:
        try:
            return Boto3CredentialProvider(boto3.Session())
        except ValueError:
            raise Unavailable(
                "there are no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from None
