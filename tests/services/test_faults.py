"""Every fault does what it says, as a client sees it and as the server behind counts it."""

import hashlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services.faults import Fault, FaultyWay

IMPORT = "/api/projects/7/import"
TOLD = {
    Fault.ERROR_429: 429,
    Fault.ERROR_500: 500,
    Fault.ERROR_502: 502,
    Fault.ERROR_429_AFTER: 429,
    Fault.ERROR_500_AFTER: 500,
    Fault.ERROR_502_AFTER: 502,
}
AFTER = {fault for fault in Fault if fault.name.endswith("_AFTER")}


class Server(ThreadingHTTPServer):
    """Answers everything, and knows what it received."""

    daemon_threads = False
    request_queue_size = 128
    arrived: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)) if "Content-Length" in self.headers else b""
        if self.headers["Transfer-Encoding"] == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        arrived = {"method": self.command, "path": self.path, "host": self.headers["Host"], "at": time.monotonic()}
        arrived |= {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        self.server.arrived.append(arrived)
        self.answer(json.dumps(arrived).encode(), body)

    do_GET = do_HEAD = do_DELETE = do_POST  # noqa: N815

    def answer(self, told: bytes, body: bytes) -> None:
        status, headers = 200, {"Content-Length": str(len(told))}
        if self.path == "/echo":
            told, headers = body, {"Content-Length": str(len(body))}
        elif self.path == "/chunked":
            told, headers = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", {"Transfer-Encoding": "chunked"}
        elif self.path == "/until-the-end":
            headers = {"Connection": "close"}
        elif self.path == "/moved":
            status, headers = 302, {"Location": "/elsewhere?a=%20b", "Content-Length": "0"}
        elif self.path == "/dies":
            told, headers = told[:5], {"Content-Length": str(len(told)), "Connection": "close"}
        elif self.command == "DELETE":
            status, headers = 204, {}
        self.send_response(status)
        self.send_header("Set-Cookie", "a=1")
        self.send_header("Set-Cookie", "b=2")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status == 200:
            self.wfile.write(told)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody wants to hear."""


@contextmanager
def serving() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.arrived = []
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def way(server: Server) -> Iterator[FaultyWay]:
    with FaultyWay(f"http://127.0.0.1:{server.server_port}") as way:
        yield way


@pytest.fixture
def client(way: FaultyWay) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=way.url, trust_env=False, timeout=10) as client:
        yield client


# Undisturbed


def test_an_undisturbed_request_arrives_as_it_was_asked(way: FaultyWay, client: httpx.Client, server: Server) -> None:
    answer = client.post(f"{IMPORT}?a=%20b&c", content=b"hello")
    assert answer.json() == server.arrived[0]
    assert server.arrived[0]["path"] == f"{IMPORT}?a=%20b&c"
    assert server.arrived[0]["host"] == way.url.removeprefix("http://")
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert answer.headers.get_list("connection") == ["close"]


def test_an_upload_and_a_download_of_50_mb_pass_whole(way: FaultyWay, client: httpx.Client, server: Server) -> None:
    body = bytes(range(256)) * 200_000
    answer = client.post("/echo", content=body)
    assert (server.arrived[0]["length"], server.arrived[0]["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert answer.content == body


def test_chunks_pass_both_ways(way: FaultyWay, client: httpx.Client, server: Server) -> None:
    answer = client.post("/chunked", content=iter([b"one", b"", b"two" * 100_000]))
    assert server.arrived[0]["sha256"] == hashlib.sha256(b"one" + b"two" * 100_000).hexdigest()
    assert (answer.text, answer.headers["transfer-encoding"]) == ("abcde", "chunked")


def test_a_client_of_http_1_0_gets_no_chunks(way: FaultyWay, server: Server) -> None:
    with socket.create_connection(("127.0.0.1", httpx.URL(way.url).port or 0)) as raw, raw.makefile("rb") as stream:
        raw.sendall(b"GET /chunked HTTP/1.0\r\n\r\n")
        head, _, body = stream.read().partition(b"\r\n\r\n")
    assert body == b"abcde"
    assert b"chunked" not in head


def test_answers_without_a_body_or_a_length_pass(client: httpx.Client, server: Server) -> None:
    assert client.delete("/x").status_code == 204
    assert int(client.head("/x").headers["content-length"]) > 0
    assert client.head("/chunked").status_code == 200
    assert client.get("/until-the-end").json() == server.arrived[-1]
    moved = client.get("/moved")
    assert (moved.status_code, moved.headers["location"]) == (302, "/elsewhere?a=%20b")


def test_forty_requests_pass_at_once(way: FaultyWay, client: httpx.Client, server: Server) -> None:
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _: client.post(IMPORT, content=b"x" * 10_000).status_code, range(40)))
    assert statuses == [200] * 40
    assert sorted(call.nth for call in way.calls) == list(range(1, 41))
    assert len(server.arrived) == 40


def test_the_way_adds_about_a_millisecond(way: FaultyWay, client: httpx.Client, server: Server) -> None:
    def median(url: str) -> float:
        took = []
        for _ in range(60):
            begun = time.perf_counter()
            client.get(url, headers={"Connection": "close"})
            took.append(time.perf_counter() - begun)
        return sorted(took)[30]

    added = median(f"{way.url}/x") - median(f"http://127.0.0.1:{server.server_port}/x")
    print(f"the way adds {added * 1000:.2f} ms a request")
    assert added < 0.01  # about 0.001; the bar leaves room for a busy machine


# Faults


def test_a_refused_connection_is_reset_and_asks_nothing(way: FaultyWay, client: httpx.Client, server: Server) -> None:
    way.break_(Fault.REFUSED, times=2)
    for _ in range(2):
        # Whether the client notices when it sends or when it reads is chance.
        with pytest.raises(httpx.TransportError):
            client.post(IMPORT, content=b"x")
    assert client.post(IMPORT).status_code == 200
    assert [(call.method, call.path, call.nth) for call in way.calls] == [
        ("", "", 1),
        ("", "", 2),
        ("POST", "/api/projects/{id}/import", 1),
    ]
    assert len(server.arrived) == 1


def test_one_kind_of_request_can_be_refused(way: FaultyWay, client: httpx.Client, server: Server) -> None:
    way.break_(Fault.REFUSED, method="POST")
    assert client.get("/x").status_code == 200
    with pytest.raises(httpx.ReadError, match="reset"):
        client.post("/x", content=b"x" * 1_000_000)
    assert [arrived["method"] for arrived in server.arrived] == ["GET"]


def test_behind_a_closed_door_nobody_listens(way: FaultyWay, client: httpx.Client, server: Server) -> None:
    url = way.url
    with way.closed():
        for _ in range(3):
            with pytest.raises(httpx.ConnectError, match="refused"):
                client.get("/x")
    assert way.url == url
    assert client.get("/x").status_code == 200
    assert len(server.arrived) == len(way.calls) == 1


@pytest.mark.parametrize(
    ("fault", "arrives"), [(Fault.DROPPED_REQUEST, 0), (Fault.DROPPED_AFTER_REQUEST, 1)], ids=["before", "after"]
)
def test_a_dropped_request_gets_no_answer(
    fault: Fault, arrives: int, way: FaultyWay, client: httpx.Client, server: Server
) -> None:
    way.break_(fault)
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        client.post(IMPORT, content=b"x" * 1_000_000)
    call = way.calls[0]
    assert (call.fault, call.forwarded, call.status) == (fault, bool(arrives), None)
    assert call.upstream_status == (200 if arrives else None)
    assert [arrived["length"] for arrived in server.arrived] == [1_000_000] * arrives


@pytest.mark.parametrize(
    ("fault", "error"),
    [(Fault.DROPPED_IN_RESPONSE, httpx.ReadError), (Fault.TRUNCATED, httpx.RemoteProtocolError)],
    ids=["reset", "closed"],
)
@pytest.mark.parametrize("path", ["/x", "/chunked", "/until-the-end"])
def test_half_an_answer_comes(
    fault: Fault, error: type[Exception], path: str, way: FaultyWay, client: httpx.Client, server: Server
) -> None:
    way.break_(fault, times=20)
    for _ in range(20):
        came = b""
        with client.stream("GET", path) as answer:
            assert answer.status_code == 200
            with pytest.raises(error):
                for block in answer.iter_raw(1):
                    came += block
        whole = int(answer.headers["content-length"])
        assert 0 < len(came) == whole // 2
    assert len(server.arrived) == 20
    assert {call.status for call in way.calls} == {200}


@pytest.mark.parametrize(
    ("fault", "error"),
    [(Fault.DROPPED_IN_RESPONSE, httpx.ReadError), (Fault.TRUNCATED, httpx.RemoteProtocolError)],
    ids=["reset", "closed"],
)
def test_an_answer_without_a_body_is_cut_in_its_head(
    fault: Fault, error: type[Exception], way: FaultyWay, client: httpx.Client, server: Server
) -> None:
    way.break_(fault)
    with pytest.raises(error):
        client.delete("/x")
    assert [arrived["method"] for arrived in server.arrived] == ["DELETE"]
    assert (way.calls[0].upstream_status, way.calls[0].status) == (204, None)


def test_an_answer_cut_short_is_valid_but_for_its_json(way: FaultyWay, client: httpx.Client, server: Server) -> None:
    way.break_(Fault.CUT_SHORT)
    answer = client.get("/x")
    assert (answer.status_code, len(answer.content)) == (200, int(answer.headers["content-length"]))
    assert json.dumps(server.arrived[0]).startswith(answer.text)
    with pytest.raises(json.JSONDecodeError):
        answer.json()


@pytest.mark.parametrize("fault", TOLD)
def test_an_error_is_told_before_or_after_the_work(
    fault: Fault, way: FaultyWay, client: httpx.Client, server: Server
) -> None:
    way.break_(fault)
    answer = client.post(IMPORT, content=b"x" * 1_000_000)
    assert answer.status_code == TOLD[fault]
    assert answer.headers.get("retry-after") == ("1" if TOLD[fault] == 429 else None)
    assert len(server.arrived) == (fault in AFTER)
    assert (way.calls[0].forwarded, way.calls[0].status) == (fault in AFTER, TOLD[fault])
    assert client.post(IMPORT).status_code == 200


def test_a_slow_answer_comes_late_and_the_work_is_done_at_once(
    way: FaultyWay, client: httpx.Client, server: Server
) -> None:
    way.break_(Fault.SLOW, seconds=0.3)
    begun = time.monotonic()
    assert client.get("/x").status_code == 200
    assert time.monotonic() - begun > 0.3
    assert server.arrived[0]["at"] - begun < 0.25


def test_a_client_may_give_up_a_slow_answer(way: FaultyWay, client: httpx.Client, server: Server) -> None:
    way.break_(Fault.SLOW, seconds=0.3)
    with pytest.raises(httpx.ReadTimeout):
        client.post(IMPORT, content=b"x", timeout=0.1)
    way.settle()
    assert len(server.arrived) == 1


def test_a_late_request_reaches_the_server_after_its_repetition(
    way: FaultyWay, client: httpx.Client, server: Server
) -> None:
    way.late_s = 0.4
    way.break_(Fault.SLOW_LATE, method="POST", seconds=0.2)
    begun = time.monotonic()
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        client.post(IMPORT, content=b"first")
    gone = time.monotonic()
    assert gone - begun > 0.2
    assert client.get(IMPORT).status_code == 200  # the look-up, which finds nothing
    assert client.post(IMPORT, content=b"second").status_code == 200
    assert len(server.arrived) == 2
    way.settle()
    assert [arrived["sha256"] for arrived in server.arrived[1:]] == [
        hashlib.sha256(body).hexdigest() for body in (b"second", b"first")
    ]
    assert server.arrived[2]["at"] - gone > 0.3
    assert (way.calls[0].forwarded, way.calls[0].upstream_status, way.calls[0].status) == (True, 200, None)


def test_a_held_request_can_be_released(way: FaultyWay, client: httpx.Client, server: Server) -> None:
    way.late_s = math.inf
    way.break_(Fault.SLOW_LATE, seconds=0)
    with pytest.raises(httpx.RemoteProtocolError):
        client.post(IMPORT, content=b"x")
    with pytest.raises(TimeoutError, match="1 requests"):
        way.settle(0.1)
    assert not server.arrived
    way.release()
    way.settle()
    assert len(server.arrived) == 1


def test_a_held_request_never_arrives_once_the_way_has_ended(server: Server) -> None:
    with FaultyWay(f"http://127.0.0.1:{server.server_port}", late_s=math.inf) as way:
        way.break_(Fault.SLOW_LATE, seconds=0)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(way.url + IMPORT, content=b"x", trust_env=False)
    assert not server.arrived
    assert (way.calls[0].forwarded, "has ended" in way.calls[0].trouble) == (False, True)


# Which requests meet them


def test_only_the_requests_meant_meet_the_fault(way: FaultyWay, client: httpx.Client, server: Server) -> None:
    broken = way.break_(Fault.ERROR_500, method="post", path_pattern=r"/api/projects/{id}/import", times=2, skip=1)
    statuses = [client.post(f"/api/projects/{n}/import?x=1").status_code for n in range(5)]
    assert statuses == [200, 500, 500, 200, 200]
    assert client.get(IMPORT).status_code == client.post(f"{IMPORT}/more").status_code == 200
    assert broken.met == 2
    assert [call.nth for call in way.seen("POST", r"/api/projects/{id}/import")] == [1, 2, 3, 4, 5]
    assert [call.target for call in way.seen(path_pattern=r"/api/projects/[34]/.*")] == [
        "/api/projects/3/import?x=1",
        "/api/projects/4/import?x=1",
    ]


def test_breaks_take_turns_in_the_order_of_their_making(way: FaultyWay, client: httpx.Client) -> None:
    way.break_(Fault.ERROR_500, path_pattern="/a")
    way.break_(Fault.ERROR_429, path_pattern="/a")
    way.break_(Fault.ERROR_502, times=None)
    assert [client.get("/a").status_code for _ in range(4)] == [500, 429, 502, 502]
    way.clear()
    assert client.get("/a").status_code == 200
    way.forget()
    assert way.calls == []
    client.get("/a")
    assert way.calls[0].nth == 1


def test_numbers_and_uuids_in_a_path_are_ids(way: FaultyWay, client: httpx.Client) -> None:
    client.get("/api/tasks/12/annotations/0d7c2b5e-38a8-4b9c-a2f6-0123456789ab/?id=3")
    client.get("/api/v2/12")
    assert [call.path for call in way.calls] == ["/api/tasks/{id}/annotations/{id}/", "/api/v2/{id}"]


# What goes wrong by itself, and the end


def test_a_server_that_is_gone_or_dies_is_no_answer(way: FaultyWay, client: httpx.Client, server: Server) -> None:
    with pytest.raises(httpx.TransportError):
        client.get("/dies")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with FaultyWay(f"http://127.0.0.1:{nobody.getsockname()[1]}") as nowhere, pytest.raises(httpx.ReadError):
            httpx.get(nowhere.url, trust_env=False)
    assert "Refused" in nowhere.calls[0].trouble
    assert "IncompleteRead" in way.calls[0].trouble


def test_half_a_request_is_not_passed_off_as_a_whole(way: FaultyWay, server: Server) -> None:
    with socket.create_connection(("127.0.0.1", httpx.URL(way.url).port or 0)) as raw:
        raw.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab")
    deadline = time.monotonic() + 5
    while not (way.calls and way.calls[0].trouble) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (way.calls[0].forwarded, way.calls[0].status) == (False, None)
    assert "IncompleteRead" in way.calls[0].trouble


def test_only_plain_http_is_carried() -> None:
    with pytest.raises(ValueError, match="not the http URL"):
        FaultyWay("https://x.example")


def test_the_path_of_the_server_is_kept(server: Server) -> None:
    with FaultyWay(f"http://127.0.0.1:{server.server_port}/studio/") as way:
        assert httpx.get(f"{way.url}/x", trust_env=False).json()["path"] == "/studio/x"


def sockets() -> int:
    return sum(1 for file in Path("/proc/self/fd").iterdir() if file.is_symlink() and str(leads(file))[:6] == "socket")


def leads(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:  # the folder's own, which is closed by now
        return ""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux shows them")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_the_end_leaves_no_thread_and_no_socket(busy: bool) -> None:
    threads, open_before = set(threading.enumerate()), sockets()
    with serving() as server, httpx.Client(trust_env=False) as client:
        with FaultyWay(f"http://127.0.0.1:{server.server_port}", late_s=math.inf) as way:
            for fault in Fault:
                way.break_(fault, seconds=0.01)
                begin(client, way.url)
            others = [silent(way.url), silent(way.url)] if busy else []
            if busy:
                way.break_(Fault.SLOW, seconds=math.inf)
                waiting = threading.Thread(target=begin, args=(client, way.url))
                waiting.start()
                others[1].sendall(b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")
                wait_for(lambda: len(way.calls) == len(Fault) + 2)
            begun = time.monotonic()
        assert time.monotonic() - begun < 1
        if busy:
            waiting.join()
        for other in others:
            other.close()
    assert set(threading.enumerate()) <= threads
    assert sockets() <= open_before


def begin(client: httpx.Client, url: str) -> None:
    try:
        client.post(url + IMPORT, content=b"x")
    except httpx.TransportError:
        return


def silent(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0))


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
