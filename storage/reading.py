"""Many images at once: read ahead of whoever takes them, in order, within bounds, each of them once.

Local files are opened ahead and the system is told which bytes will be wanted; S3 is asked through obstore by threads,
since it answers many small requests with a tenth of boto3's work.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from models.elements import Place
from models.errors import Unavailable
from storage import bulk
from storage.bulk import Access, Problem, Room, Span
from storage.objects import file_etag

AHEAD = 32  # objects, or spans of tars, that are on their way or waited for
# Threads that ask S3. A server near by is busy with a dozen; where each answer takes its time, more are on their way.
ASKING, ASKING_FAR, AHEAD_FAR = 12, 64, 96
FAR_S = 0.01  # of the quickest answer
STACK_BYTES = 1_048_576  # of such a thread; the system's eight times that would count against a process's bounds
SPAN_BYTES = 4_000_000  # neighbouring members of a tar are read together up to this
GAP_BYTES = 64_000  # between two members of a span at most: headers, and small members that nobody asked for
IN_FLIGHT_BYTES = 32_000_000  # held of S3's answers that nobody has taken yet; one answer may always be held
FARTHEST = 2**62  # no file is longer
GONE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.ENXIO,
    errno.EISDIR,
    errno.ENODEV,
}
REFUSED = {errno.EACCES, errno.EPERM}

__all__ = ["Access", "Problem", "read_ahead"]


class Part(NamedTuple):
    """An image within what is read: where, and how many rows in a row it answers."""

    start: int
    length: int | None  # None: to the end
    rows: int


@dataclass
class Ask:
    """An object, or a span of it, that one request reads."""

    uri: str
    etag: str  # '': unknown
    parts: list[Part]
    problem: Problem | None  # known without asking

    @property
    def span(self) -> Span | None:
        """The bytes that the parts need; None for the whole object."""
        if self.parts[0].length is None:
            return None
        return Span(min(part.start for part in self.parts), max(part.start + (part.length or 0) for part in self.parts))

    def takes(self, place: Place) -> bool:
        """Whether a member lies so close behind the last one that one request should read both."""
        if self.problem or place.object_uri != self.uri or not place.member or self.parts[-1].length is None:
            return False
        first, last = self.parts[0].start, self.parts[-1].start + (self.parts[-1].length or 0)
        return last <= place.offset <= last + GAP_BYTES and place.offset + place.length - first <= SPAN_BYTES

    def answers(self, found: bytes | Problem) -> Iterator[bytes | Problem]:
        """What each row gets of the bytes that were read, the same object for rows of the same image."""
        start = self.span.start if self.span else 0
        for part in self.parts:
            if isinstance(found, Problem) or part.length is None:
                one: bytes | Problem = found
            else:
                # A member's end that is not there: the tar is another one than was listed.
                one = found[part.start - start : part.start - start + part.length]
                one = one if len(one) == part.length else Problem.CHANGED
            for _ in range(part.rows):
                yield one


def read_ahead(places: Sequence[Place], etags: Sequence[str], access: Access) -> Iterator[bytes | Problem]:
    """The bytes at each place, whole images in their order; or why there are none.

    An image in consecutive places is read once and the same bytes are given for each. Etags are as listing has them ('':
    unknown; of a tar's member, the tar's). Raises Unavailable when a server or disk does not answer, after retries; never
    for one image.
    """
    asks = _asks(places, etags, access.most_bytes)
    waiting: deque[_Known | _File | _Remote] = deque()
    remote = _Remotes(access)
    try:
        for ask in asks:
            if ask.problem:
                waiting.append(_Known(ask, ask.problem))
            else:
                waiting.append(remote.start(ask) if bulk.is_s3(ask.uri) else _open(ask, access))
            if len(waiting) >= remote.ahead:
                yield from _answers(waiting.popleft())
        while waiting:
            yield from _answers(waiting.popleft())
    finally:
        for one in waiting:
            one.close()
        remote.close()


def _answers(one: _Known | _File | _Remote) -> Iterator[bytes | Problem]:
    try:
        yield from one.ask.answers(one.finish())
    finally:
        one.close()


def _asks(places: Sequence[Place], etags: Sequence[str], most_bytes: int) -> Iterator[Ask]:
    """What to read for these places, in their order."""
    ask: Ask | None = None
    last: tuple[Place, str] | None = None
    for place, etag in zip(places, etags, strict=True):
        if ask and last == (place.image, etag):
            ask.parts[-1] = ask.parts[-1]._replace(rows=ask.parts[-1].rows + 1)
            continue
        last = (place.image, etag)
        part = Part(place.offset, place.length, 1) if place.member else Part(0, None, 1)
        problem = _without_reading(place, most_bytes)
        if ask and ask.etag == etag and not problem and ask.takes(place):
            ask.parts.append(part)
            continue
        if ask:
            yield ask
        ask = Ask(place.object_uri, etag, [part], problem)
    if ask:
        yield ask


def _without_reading(place: Place, most_bytes: int) -> Problem | None:
    """What is wrong with a place by its numbers alone."""
    if not 0 <= place.offset <= FARTHEST or place.length < 0:
        return Problem.CHANGED
    return Problem.TOO_LARGE if place.member and place.length > most_bytes else None


class _Known:
    """Nothing to read: the answer is known."""

    def __init__(self, ask: Ask, problem: Problem) -> None:
        self.ask, self._problem = ask, problem

    def finish(self) -> bytes | Problem:
        """The problem."""
        return self._problem

    def close(self) -> None:
        """Nothing is held."""


def _open(ask: Ask, access: Access) -> _Known | _File:
    """Open a file and have the system read ahead of us. What is no regular file counts as missing."""
    handle = -1
    try:
        # Not blocking: opening a pipe would wait for somebody to write.
        handle = os.open(ask.uri, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        about = os.fstat(handle)
        span = ask.span or Span(0, about.st_size)
        if (problem := _wrong_with(about, ask, access.most_bytes)) is None:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, span.start, span.stop - span.start, os.POSIX_FADV_WILLNEED)
            return _File(ask, handle, span)
    except (OSError, ValueError) as error:
        problem = _of_the_system(error, ask.uri)
    if handle >= 0:
        os.close(handle)
    return _Known(ask, problem)


def _wrong_with(about: os.stat_result, ask: Ask, most_bytes: int) -> Problem | None:
    if not stat.S_ISREG(about.st_mode):
        return Problem.MISSING
    if ask.etag not in ("", file_etag(about)):
        return Problem.CHANGED
    return Problem.TOO_LARGE if ask.span is None and about.st_size > most_bytes else None


class _File:
    """A file that is open."""

    def __init__(self, ask: Ask, handle: int, span: Span) -> None:
        self.ask, self._handle, self._span = ask, handle, span

    def finish(self) -> bytes | Problem:
        """The bytes asked for, unless the file was changed while they were read."""
        try:
            data = _read(self._handle, *self._span)
            same = self.ask.etag in ("", file_etag(os.fstat(self._handle)))
        except OSError as error:
            return _of_the_system(error, self.ask.uri)
        return data if same else Problem.CHANGED

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._handle)


def _read(handle: int, start: int, stop: int) -> bytes:
    """The bytes from `start` to `stop`, or to the end of the file when that comes first."""
    data = os.pread(handle, stop - start, start)
    if len(data) == stop - start:
        return data
    pieces = [data]
    while data and (got := sum(map(len, pieces))) < stop - start:
        data = os.pread(handle, stop - start - got, start + got)
        pieces.append(data)
    return b"".join(pieces)


def _of_the_system(error: OSError | ValueError, uri: str) -> Problem:
    """What the system's complaint says of one file. Raises Unavailable where it is about more than the file."""
    number = error.errno if isinstance(error, OSError) else errno.EINVAL  # a path with a NUL is a ValueError
    if number in GONE:
        return Problem.MISSING
    if number in REFUSED:
        return Problem.FORBIDDEN
    reason = error.strerror if isinstance(error, OSError) else str(error)
    raise Unavailable(
        f"'{uri}' cannot be read ({reason}); mend the disk or its connection, then run the command again"
    ) from None


class _Remotes:
    """Threads that ask S3, started when the first object lies there."""

    def __init__(self, access: Access) -> None:
        self._reader = bulk.Reader(access)
        self._room = Room(IN_FLIGHT_BYTES)
        self._near: ThreadPoolExecutor | None = None
        self._far: ThreadPoolExecutor | None = None
        self._asked = 0

    @property
    def ahead(self) -> int:
        """How many may be on their way."""
        return AHEAD_FAR if self._far else AHEAD

    def start(self, ask: Ask) -> _Remote:
        """Put a request on its way."""
        number, self._asked = self._asked, self._asked + 1
        share = self._room.share(number)
        usual = threading.stack_size(STACK_BYTES)  # submitting may start a thread
        try:
            future = self._pool().submit(self._reader.fetch, ask.uri, ask.etag, ask.span, share)
        finally:
            threading.stack_size(usual)
        return _Remote(ask, future, self._room, number)

    def _pool(self) -> ThreadPoolExecutor:
        if self._far is None and self._asked > AHEAD and self._reader.quickest_s > FAR_S:
            self._far = ThreadPoolExecutor(ASKING_FAR, "dipnet-read")
        self._near = self._near or ThreadPoolExecutor(ASKING, "dipnet-read")
        return self._far or self._near

    def close(self) -> None:
        """Nobody waits any longer for what is under way."""
        self._room.close()
        for pool in (self._near, self._far):
            if pool:
                pool.shutdown(wait=False, cancel_futures=True)


class _Remote:
    """A request that is under way."""

    def __init__(self, ask: Ask, future: Future[bytes | Problem], room: Room, number: int) -> None:
        self.ask = ask
        self._future, self._room, self._number = future, room, number

    def finish(self) -> bytes | Problem:
        """Wait for the answer."""
        return self._future.result()

    def close(self) -> None:
        """Make room for others."""
        self._future.cancel()
        self._room.give_back(self._number)
