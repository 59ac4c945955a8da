"""The way to a Label Studio server: one client, every failure in one line, and attempts that never repeat blindly.

The SDK takes seconds to import and is imported where it is used.
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from pydantic import SecretStr, ValidationError

from models.errors import BadSettings, Unavailable

if TYPE_CHECKING:
    from label_studio_sdk import LabelStudio
    from label_studio_sdk.core.api_error import ApiError

T = TypeVar("T")
Condition = tuple[str, str, str, Any]  # field, operator, type, value
Task = dict[str, Any]  # as Label Studio lists it

PAGE = 500
TIMEOUT_S = 120.0
ATTEMPTS = 5  # with pauses of 1, 2, 4, 8 s: a restart of the server takes about 14 s


class Connection:
    """One Label Studio and our token for it. `transport` replaces the way there, for tests of what happens when it breaks."""

    def __init__(self, url: str, token: SecretStr, transport: httpx.BaseTransport | None = None) -> None:
        self.url, self._transport = url.rstrip("/"), transport
        self._token = token.get_secret_value().strip()
        if not self._token.isascii() or not self._token.isprintable():
            raise BadSettings("DIPNET_LABEL_STUDIO_TOKEN has characters that no token has; copy it again")

    @contextmanager
    def plainly(self) -> Iterator[LabelStudio]:
        """The client; what goes wrong with it becomes Unavailable, in one line that never holds the token."""
        from label_studio_sdk.core.api_error import ApiError
        from label_studio_sdk.core.parse_error import ParsingError

        try:
            yield self._client
        except ApiError as error:
            raise self._refused(error) from None
        except (ParsingError, ValidationError, json.JSONDecodeError):
            raise self.stranger() from None
        except httpx.HTTPError as error:
            raise Unavailable(
                f"Label Studio at {self.url} does not answer ({type(error).__name__}); "
                "start it or correct DIPNET_LABEL_STUDIO_URL"
            ) from None

    def stranger(self) -> Unavailable:
        """Something else answers at the URL."""
        return Unavailable(f"what answers at {self.url} is not a Label Studio server; correct DIPNET_LABEL_STUDIO_URL")

    def read(self, ask: Callable[[LabelStudio], T]) -> T:
        """What the server says to a question, which is asked again while answers are lost, cut or put off."""
        from label_studio_sdk.core.api_error import ApiError
        from label_studio_sdk.core.parse_error import ParsingError

        with self.plainly() as client:
            for attempt in range(ATTEMPTS):
                try:
                    return ask(client)
                except (httpx.TransportError, ApiError, ParsingError, json.JSONDecodeError) as loss:
                    if attempt == ATTEMPTS - 1 or not _may_pass(loss):
                        raise
                time.sleep(2.0**attempt)
        raise AssertionError("unreachable")

    def pages(
        self, project: str, *, include: str, conditions: Iterable[Condition] = (), size: int = PAGE
    ) -> Iterator[list[Task]]:
        """The project's tasks that meet all conditions, by id, a page at a time. `include` names nested fields, too.

        Each page asks for what follows the last id: numbered pages shift, and skip a task, when one before is deleted.
        """
        last = 0
        while True:
            query = query_of("and", *conditions, ("id", "greater", "Number", last))
            page = self._list(project, include=f"id,{include}", query=query, size=size)["tasks"]
            if page:
                yield page
                last = int(page[-1]["id"])
            if len(page) < size:
                return

    def count(self, project: str, *conditions: Condition) -> tuple[int, int]:
        """How many tasks meet all conditions, and how many annotations (without skips) they have."""
        found = self._list(project, include="id", query=query_of("and", *conditions), size=1)
        return int(found["total"]), int(found["total_annotations"])

    def _list(self, project: str, *, include: str, query: str, size: int) -> dict[str, Any]:
        """A page of the Data Manager as it came: to build the SDK's models takes half as long as the server takes."""
        from label_studio_sdk.core.api_error import ApiError
        from label_studio_sdk.core.parse_error import ParsingError

        asked: dict[str, str | int] = {
            "project": project,
            "include": include,
            "query": query,
            "page": 1,
            "page_size": size,
        }
        asked |= {"resolve_uri": "false", "fields": "all" if "annotations," in include else "task_only"}

        def ask(client: LabelStudio) -> dict[str, Any]:
            response = self._http.get(f"{self.url}/api/tasks/", params=asked, headers=self._headers(client))
            status = response.status_code
            if status != 200:
                raise ApiError(status_code=status, headers=dict(response.headers), body=_json_of(response))
            found = response.json()
            if not isinstance(found, dict) or not {"tasks", "total", "total_annotations"} <= set(found):
                raise ParsingError(status_code=status)
            return found

        return self.read(ask)

    def status_of(self, path: str) -> int:
        """The HTTP status of a page or file that the SDK does not know."""
        return self.read(lambda client: self._http.get(self.url + path, headers=self._headers(client)).status_code)

    def time(self) -> datetime:
        """What the server's clock says, to the second below; ours where it does not tell."""
        said = self.read(lambda _: self._http.get(f"{self.url}/api/version/").headers.get("date", ""))
        try:
            return parsedate_to_datetime(said).astimezone(UTC)
        except ValueError:
            return datetime.now(UTC)

    def _headers(self, client: LabelStudio) -> dict[str, str]:
        """With the token; this renews a personal access token when that is due."""
        return dict(client._client_wrapper.get_headers())

    @cached_property
    def _http(self) -> httpx.Client:
        http = httpx.Client(
            timeout=TIMEOUT_S,
            transport=self._transport,
            # A session cookie that Label Studio hands out would outrank the token, and then ask for a CSRF token.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )
        weakref.finalize(self, http.close)
        return http

    @cached_property
    def _client(self) -> LabelStudio:
        """The SDK's client. It repeats nothing by itself, follows no redirect and keeps no session."""
        from label_studio_sdk import LabelStudio

        # The slash keeps the path of a server behind a prefix when the SDK renews a personal access token.
        options: dict[str, Any] = {"base_url": f"{self.url}/", "api_key": self._token, "httpx_client": self._http}
        return LabelStudio(**options, max_retries=0)  # type: ignore[no-untyped-call]

    def _refused(self, error: ApiError) -> Unavailable:
        status, body = error.status_code or 0, error.body
        known = isinstance(body, dict) and {"detail", "status_code", "version"} <= set(body)
        detail = one_line(body.get("validation_errors") or body["detail"]) if known else ""
        said = f"HTTP {status}{': ' if detail else ''}{detail}".replace(self._token or "\n", "…")
        if status in (401, 403):
            return Unavailable(
                f"Label Studio at {self.url} refused the token; set DIPNET_LABEL_STUDIO_TOKEN to one from its page "
                f"Account & Settings ({said})"
            )
        if 300 <= status < 400:
            target = (error.headers or {}).get("location", "another address")
            return Unavailable(f"{self.url} redirects to {target}; set DIPNET_LABEL_STUDIO_URL to where it ends")
        if known or status == 429 or status >= 500:
            return Unavailable(f"Label Studio at {self.url} could not do what was asked ({said}); look at its log")
        return self.stranger()


def attempts() -> Iterator[AbstractContextManager[None]]:
    """Context managers, one an attempt, that swallow the loss of an answer; a pause follows a loss."""
    from label_studio_sdk.core.api_error import ApiError
    from label_studio_sdk.core.parse_error import ParsingError

    losses: list[Exception] = []

    @contextmanager
    def may_be_lost() -> Iterator[None]:
        try:
            yield
        except (httpx.TransportError, ApiError, ParsingError, json.JSONDecodeError) as error:
            if not _may_pass(error):
                raise
            losses.append(error)

    for attempt in range(ATTEMPTS):
        known = len(losses)
        yield may_be_lost()
        if len(losses) > known and attempt < ATTEMPTS - 1:
            time.sleep(2.0**attempt)


def _json_of(response: httpx.Response) -> Any:
    try:
        return response.json()
    except json.JSONDecodeError:
        return response.text


def _may_pass(error: Exception) -> bool:
    """Whether it may go well next time: a loss on the way, a cut answer, a server that is busy or restarts."""
    status = getattr(error, "status_code", None)
    return status is None or status >= 500 or status in (408, 429) or 200 <= status < 300


def query_of(conjunction: str, *conditions: Condition) -> str:
    """A filter of the Data Manager, ordered by id. A misspelt name is no error there: it finds nothing."""
    items = [
        {"filter": f"filter:tasks:{field}", "operator": operator, "type": kind, "value": value}
        for field, operator, kind, value in conditions
    ]
    return json.dumps({"filters": {"conjunction": conjunction, "items": items}, "ordering": ["tasks:id"]})


def one_line(said: object) -> str:
    """What a server said, without line breaks and not endless."""
    if isinstance(said, dict):  # validation errors: a list of complaints for every field
        said = "; ".join(str(complaint) for complaints in said.values() for complaint in complaints)
    return " ".join(str(said).split())[:300]
