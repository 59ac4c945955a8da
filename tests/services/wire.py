"""HTTP/1.1 on sockets, as much of it as a proxy needs that carries one request a connection."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse, IncompleteRead, parse_headers, responses
from typing import BinaryIO

BLOCK = 256 * 1024  # bytes of a body that are held at a time
LINE = 65_536
BETWEEN_TWO = {"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "expect"}


class Request:
    """What a client asks, its body still on the wire. Raises ConnectionError or HTTPException when it breaks off."""

    def __init__(self, client: socket.socket, stream: BinaryIO) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client, self._stream = client, stream
        line = stream.readline(LINE).decode("latin-1").split()
        if len(line) != 3:
            raise ConnectionAbortedError("the client asked nothing")
        self.method, self.target, self._version = line
        self._headers = parse_headers(stream)
        self._chunked = "chunked" in self._headers.get("Transfer-Encoding", "").lower()

    def body(self) -> Iterator[bytes]:
        """The body in blocks, without the framing of chunks."""
        if self._headers.get("Expect", "").lower() == "100-continue":
            self.client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._chunked:
            yield from _exactly(self._stream, int(self._headers.get("Content-Length", 0)))
            return
        while size := _chunk_size(self._stream):
            yield from _exactly(self._stream, size)
            self._stream.readline(LINE)
        while self._stream.readline(LINE).strip():  # trailers, which are not carried
            pass

    def send(self, connection: HTTPConnection, body: Iterable[bytes]) -> bool:
        """Ask the server the same; False when it stopped listening before the end, as one may that refuses."""
        connection.putrequest(self.method, self.target, skip_host=True, skip_accept_encoding=True)
        for name, value in self._headers.items():
            if name.lower() not in BETWEEN_TWO:
                connection.putheader(name, value)
        if self._chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        connection.putheader("Connection", "close")
        connection.endheaders()
        listening = True
        for block in _framed(body) if self._chunked else body:
            # What the server does not want is read all the same: a client that still sends does not see the answer.
            if listening:
                try:
                    connection.send(block)
                except (BrokenPipeError, ConnectionResetError):
                    listening = False
        return listening

    def pass_on(self, response: HTTPResponse) -> None:
        """Give the client the server's answer as it comes."""
        # Told its length, or nothing, a client of HTTP/1.0 reads to the end of the connection.
        chunked = response.chunked and self.method != "HEAD" and self._version != "HTTP/1.0"
        begun = head_of(response, chunked=chunked)
        for block in _framed(blocks(response)) if chunked else blocks(response):
            self.client.sendall(begun + block)
            begun = b""
        if begun:
            self.client.sendall(begun)

    def answer(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """Give the client an answer of our own."""
        length = ("Content-Length", str(len(body)))
        self.client.sendall(
            _head(status, responses[status], [*headers, length]) + (body if self.method != "HEAD" else b"")
        )

    def hang_up(self) -> None:
        """Close the connection; twice is once."""
        self._stream.close()
        self.client.close()


def blocks(response: HTTPResponse) -> Iterator[bytes]:
    """The body of an answer as it comes. Raises IncompleteRead when it breaks off."""
    # read1 hands on chunks as they come; without chunks it loses count of the length in Python before 3.11.8.
    while block := response.read1(BLOCK) if response.chunked else response.read(BLOCK):
        yield block
    if response.length:
        raise IncompleteRead(b"", response.length)


def head_of(response: HTTPResponse, length: int | None = None, *, chunked: bool = False) -> bytes:
    """The head of the server's answer for a connection that ends with it; with `length`, that is its Content-Length."""
    replaced = BETWEEN_TWO if length is None else BETWEEN_TWO | {"content-length"}
    headers = [(name, value) for name, value in response.headers.items() if name.lower() not in replaced]
    if length is not None:
        headers.append(("Content-Length", str(length)))
    if chunked:
        headers.append(("Transfer-Encoding", "chunked"))
    return _head(response.status, response.reason, headers)


def reset(end: socket.socket) -> None:
    """Make the closing of this socket a reset (RST) instead of an orderly end (FIN)."""
    with suppress(OSError):  # it was closed before
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def bound(port: int) -> socket.socket:
    """A socket that holds a port of loopback (0: any) and does not listen yet."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
    except OSError:
        made.close()
        raise
    return made


def _head(status: int, reason: str, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers), "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _framed(body: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks as chunks, with the chunk that ends them."""
    for block in body:
        if block:  # an empty chunk would be the end
            yield b"%x\r\n%b\r\n" % (len(block), block)
    yield b"0\r\n\r\n"


def _chunk_size(stream: BinaryIO) -> int:
    try:
        return int(stream.readline(LINE).partition(b";")[0], 16)
    except ValueError:
        raise IncompleteRead(b"") from None


def _exactly(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        block = stream.read(min(size, BLOCK))
        if not block:
            raise IncompleteRead(b"", size)
        size -= len(block)
        yield block
