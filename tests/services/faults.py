"""A way to a server that breaks on demand: a real HTTP proxy on loopback, for tests and benchmarks of what happens then.

Every request has a connection of its own: each answer says `Connection: close`. `Host` stays what the client said, so
the server builds links that lead along the way too. Upgrades (WebSocket) are not carried.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPConnection, HTTPException, HTTPResponse
from types import TracebackType
from urllib.parse import urlsplit

from tests.services import wire
from tests.services.wire import Request

LOOKS_UP_EVERY_S = 0.05  # how soon the door sees that it is to be shut
IDS = re.compile(r"(?<=/)(\d+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})(?=/|$)", re.IGNORECASE)


class Fault(StrEnum):
    """What can befall a request. _AFTER: the server has done its work, and its answer is thrown away."""

    REFUSED = "refused"  # reset before a byte was read; when the break names a method or path, after the request
    DROPPED_REQUEST = "dropped request"  # read whole, never forwarded; closed cleanly without an answer
    DROPPED_AFTER_REQUEST = "dropped after request"  # forwarded, the answer awaited; closed cleanly without one
    DROPPED_IN_RESPONSE = "dropped in response"  # forwarded; head and half of the body come, then a reset
    TRUNCATED = "truncated"  # the same with a clean close: Content-Length promises more than comes
    CUT_SHORT = "cut short"  # forwarded; half of the body comes, and Content-Length says so: valid HTTP, broken JSON
    ERROR_429 = "429"  # with Retry-After: 1
    ERROR_429_AFTER = "429 after"
    ERROR_500 = "500"
    ERROR_500_AFTER = "500 after"
    ERROR_502 = "502"
    ERROR_502_AFTER = "502 after"
    SLOW = "slow"  # forwarded; the whole answer comes `seconds` after the server gave it
    SLOW_LATE = "slow, late"  # closed without an answer `seconds` after it was read; forwarded `late_s` after that


NEVER_FORWARDED = {Fault.REFUSED, Fault.DROPPED_REQUEST, Fault.ERROR_429, Fault.ERROR_500, Fault.ERROR_502}
STATUS = {
    Fault.ERROR_429: 429,
    Fault.ERROR_429_AFTER: 429,
    Fault.ERROR_500: 500,
    Fault.ERROR_500_AFTER: 500,
    Fault.ERROR_502: 502,
    Fault.ERROR_502_AFTER: 502,
}


@dataclass
class Call:
    """A request that came along the way, and what became of it."""

    method: str  # empty for a connection that was refused before it could ask
    path: str  # numbers and UUIDs in it are {id}
    target: str  # path and query as they were asked for
    nth: int  # the how-manieth of this method and path, from 1
    at: float  # time.monotonic() when its head had come
    fault: Fault | None = None
    forwarded: bool = False  # the server has been sent all of it
    upstream_status: int | None = None  # what the server answered
    status: int | None = None  # what the client was told; None when no whole head was sent
    trouble: str = ""  # what went wrong that nobody ordered: a server or client that went away


@dataclass
class Break:
    """Where the way is broken, and how often that was met."""

    fault: Fault
    method: str | None
    path_pattern: str | None
    times: int | None
    skip: int
    seconds: float
    passed: int = 0
    met: int = 0

    @property
    def before_the_head(self) -> bool:
        """It concerns connections, whatever they would have asked."""
        return self.fault is Fault.REFUSED and self.method is None and self.path_pattern is None

    def takes(self, call: Call) -> bool:
        """Whether the call meets this break; counts it."""
        if not matches(call, self.method, self.path_pattern) or self.met == self.times:
            return False
        if self.passed < self.skip:
            self.passed += 1
            return False
        self.met += 1
        return True


def matches(call: Call, method: str | None, path_pattern: str | None) -> bool:
    """Whether method and whole path (as asked for without the query, or with {id} in it) are these; None is any."""
    paths = (call.path, call.target.partition("?")[0])
    return (method is None or call.method == method.upper()) and (
        path_pattern is None or any(re.fullmatch(path_pattern, path) for path in paths)
    )


class FaultyWay:
    """A way to the server at `upstream_url` (http) while a `with` block lasts; its beginning is `url`, on a port of its own.

    `late_s` is how long after the client was sent away a SLOW_LATE request reaches the server; `release` is sooner.
    """

    def __init__(self, upstream_url: str, *, late_s: float = 1.0) -> None:
        upstream = urlsplit(upstream_url)
        if upstream.scheme != "http" or not upstream.hostname:
            raise ValueError(f"'{upstream_url}' is not the http URL of a server")
        self._upstream, self._prefix = (upstream.hostname, upstream.port or 80), upstream.path.rstrip("/")
        self.late_s = late_s
        self.calls: list[Call] = []
        self._breaks: list[Break] = []
        self._seen: Counter[tuple[str, str]] = Counter()
        self._changed = threading.Condition()  # guards all state
        self._under_way, self._releases, self._ended = 0, 0, False
        self._sockets: set[socket.socket] = set()
        self._travellers: list[threading.Thread] = []

    def __enter__(self) -> FaultyWay:
        self._door = wire.bound(0)
        port = self._door.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}{self._prefix}"
        self._open_door()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shut_door()
        self._door.close()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            for end in self._sockets:
                with suppress(OSError):  # it ended by itself
                    end.shutdown(socket.SHUT_RDWR)
        for traveller in self._travellers:
            traveller.join()

    def break_(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        path_pattern: str | None = None,
        times: int | None = 1,
        skip: int = 0,
        seconds: float = 1.0,
    ) -> Break:
        """After `skip` matching requests the next `times` (None: all) meet the fault. `Break.met` says how many did.

        A request is shown to the breaks in the order of their making, until one takes it.
        """
        made = Break(fault, method, path_pattern, times, skip, seconds)
        with self._changed:
            self._breaks.append(made)
        return made

    def clear(self) -> None:
        """Mend the way; what is held already stays held."""
        with self._changed:
            self._breaks.clear()

    def forget(self) -> None:
        """Empty `calls` and count from 1 again."""
        with self._changed:
            self.calls.clear()
            self._seen.clear()

    def seen(self, method: str | None = None, path_pattern: str | None = None) -> list[Call]:
        """The calls with this method and path so far, as `break_` would match them."""
        with self._changed:
            return [call for call in self.calls if matches(call, method, path_pattern)]

    def release(self) -> None:
        """Let every held SLOW_LATE request reach the server now."""
        with self._changed:
            self._releases += 1
            self._changed.notify_all()

    def settle(self, within_s: float = 10.0) -> None:
        """Wait until no request is under way or held. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._under_way, within_s):
                raise TimeoutError(f"{self._under_way} requests are still under way after {within_s} s")

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Nobody listens while the block lasts: connections are truly refused. What is under way goes on."""
        self._shut_door()
        try:
            yield
        finally:
            self._open_door()

    def _open_door(self) -> None:
        self._door.listen(128)
        self._door.settimeout(LOOKS_UP_EVERY_S)
        self._shutting = threading.Event()
        self._doorkeeper = threading.Thread(target=self._let_in, args=(self._door, self._shutting), daemon=True)
        self._doorkeeper.start()

    def _shut_door(self) -> None:
        self._shutting.set()
        self._doorkeeper.join()
        port = self._door.getsockname()[1]
        self._door.close()
        # A bound socket that does not listen keeps the port: no other process gets it, no client connects to itself.
        self._door = wire.bound(port)

    def _let_in(self, door: socket.socket, shutting: threading.Event) -> None:
        while not shutting.is_set():
            try:
                client, _ = door.accept()
            except (TimeoutError, ConnectionError):
                continue
            if self._refuses():
                wire.reset(client)
                client.close()
                continue
            traveller = threading.Thread(target=self._accompany, args=(client,), daemon=True)
            self._travellers = [other for other in self._travellers if other.is_alive()] + [traveller]
            with self._changed:
                self._under_way += 1
                self._sockets.add(client)
            traveller.start()

    def _refuses(self) -> bool:
        """Whether a break refuses this connection before it can ask."""
        with self._changed:
            call = Call("", "", "", 0, time.monotonic())
            if not any(each.takes(call) for each in self._breaks if each.before_the_head):
                return False
            call.fault = Fault.REFUSED
            self._write_down(call)
            return True

    def _meet(self, request: Request) -> tuple[Call, float]:
        """The call in the book, and the seconds of the break that takes it."""
        path = IDS.sub("{id}", request.target.partition("?")[0])
        call = Call(request.method, path, request.target, 0, time.monotonic())
        with self._changed:
            met = next((each for each in self._breaks if not each.before_the_head and each.takes(call)), None)
            call.fault = met.fault if met else None
            self._write_down(call)
        return call, met.seconds if met else 0.0

    def _write_down(self, call: Call) -> None:
        self._seen[call.method, call.path] += 1
        call.nth = self._seen[call.method, call.path]
        self.calls.append(call)

    def _accompany(self, client: socket.socket) -> None:
        """Carry the one request of a connection; what cannot be carried to its end is reset."""
        call = None
        with closing(client), client.makefile("rb") as stream:
            try:
                request = Request(client, stream)
                call, seconds = self._meet(request)
                self._carry(request, call, seconds)
            except (OSError, HTTPException) as problem:
                if call:
                    call.trouble = f"{type(problem).__name__}: {problem}"
                wire.reset(client)
        with self._changed:
            self._sockets.discard(client)
            self._under_way -= 1
            self._changed.notify_all()

    def _carry(self, request: Request, call: Call, seconds: float) -> None:
        if call.fault is Fault.SLOW_LATE:
            self._carry_late(request, call, seconds)
        elif call.fault in NEVER_FORWARDED:
            for _ in request.body():  # a client that still sends would see a reset instead
                pass
            _turn_away(request, call)
        else:
            with self._asked(request, call, request.body()) as response:
                if call.fault is Fault.SLOW:
                    self._pause(seconds)
                if call.fault in (None, Fault.SLOW):
                    call.status = response.status
                    request.pass_on(response)
                else:
                    _spoil(request, call, response)

    def _carry_late(self, request: Request, call: Call, seconds: float) -> None:
        body = b"".join(request.body())
        self._pause(seconds)
        with self._changed:
            releases = self._releases
        request.hang_up()
        self._pause(self.late_s, until=lambda: self._releases > releases)
        with self._asked(request, call, [body]) as response:
            for _ in wire.blocks(response):
                pass

    def _pause(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Wait; raises ConnectionError when the way ends meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or until(), min(seconds, threading.TIMEOUT_MAX))
            if self._ended:
                raise ConnectionAbortedError("the way has ended")

    @contextmanager
    def _asked(self, request: Request, call: Call, body: Iterable[bytes]) -> Iterator[HTTPResponse]:
        """The server's answer to the request, its body still to be read."""
        connection = HTTPConnection(*self._upstream)
        connection.connect()
        upstream = connection.sock
        try:
            with self._changed:
                if self._ended:
                    raise ConnectionAbortedError("the way has ended")
                self._sockets.add(upstream)
            call.forwarded = request.send(connection, body)
            with connection.getresponse() as response:
                call.upstream_status = response.status
                yield response
        finally:
            connection.close()
            with self._changed:
                self._sockets.discard(upstream)


def _turn_away(request: Request, call: Call) -> None:
    """Tell the client the fault's status, as Label Studio or a proxy before it would; else it hears nothing, or a reset."""
    call.status = STATUS.get(call.fault) if call.fault else None
    if call.status == 502:
        request.answer(502, [("Content-Type", "text/html")], b"<h1>Bad Gateway</h1>")
    elif call.status:
        headers = [("Content-Type", "application/json")] + [("Retry-After", "1")] * (call.status == 429)
        body = json.dumps({"status_code": call.status, "detail": "broken on purpose"}).encode()
        request.answer(call.status, headers, body)
    elif call.fault is Fault.REFUSED:
        wire.reset(request.client)


def _spoil(request: Request, call: Call, response: HTTPResponse) -> None:
    """What is left of the server's answer when the fault is done with it. Without a body, half of the head is left."""
    body = b"".join(wire.blocks(response))
    if call.fault not in (Fault.DROPPED_IN_RESPONSE, Fault.TRUNCATED, Fault.CUT_SHORT):
        _turn_away(request, call)
        return
    half = body[: len(body) // 2]
    head = wire.head_of(response, len(half) if call.fault is Fault.CUT_SHORT else len(body))
    if body or call.fault is Fault.CUT_SHORT:
        call.status = response.status
        request.client.sendall(head + half)
    else:
        request.client.sendall(head[: len(head) // 2])
    if call.fault is Fault.DROPPED_IN_RESPONSE:
        wire.reset(request.client)
