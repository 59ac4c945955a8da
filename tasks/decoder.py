"""The inside of a decoding process: reads the images of some rows, hashes them, and writes their pixels where it is told.

It is started for itself, not forked, and imports little: no torch, no database, no settings. What it decodes is hostile,
so it sends plain JSON, and nobody trusts it to stay alive: before each image it notes which one, and since when.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import socket
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import groupby
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.elements import Box, Place, element_id
from models.errors import DipnetError
from storage.reading import Access, Problem, read_ahead
from tasks.compute.frame import Frame
from tasks.compute.images import Limits, Looked, Reason, Unreadable, fingerprint, look

LENGTH = struct.Struct("<I")
PIECE_BYTES = 1_048_576
BEAT_WORDS = 3  # of 8 bytes: which row of which task (0: none), since when, and the processor time by then, in ns
ROWS = 1 << 24  # of a task, at most
HELD_BYTES, HELD_IMAGES = 64_000_000, 64  # that were read and not decoded yet
MAPPED = 8  # segments of shared memory that stay in reach
SPARE_BYTES, BYTES_A_PIXEL = (
    2_000_000_000,
    24,
)  # private memory that a process may use: a bomb must not take the machine


class Configured(NamedTuple):
    """What a process is told when it starts."""

    access: Access
    pixels: int  # most of an image
    nice: int  # added to its niceness


class Task(NamedTuple):
    """Consecutive rows of a manifest, and where their pixels go. `known`: verdicts on rows that must not be decoded."""

    number: int
    start: int  # of the segment in shared memory
    size: int  # of the segment, in bytes
    frame: Frame
    places: list[Place]
    etags: list[str]
    known: dict[int, str]
    suspect: int = -1  # a row to decode before all others, for nothing: whether it ends the process

    def to_json(self) -> bytes:
        """For the way into the process."""
        return json.dumps(self._replace(frame=self.frame._asdict())).encode()  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, text: bytes) -> Task:
        """What `to_json` wrote."""
        number, start, size, frame, places, etags, known, suspect = json.loads(text)
        return cls(
            number,
            start,
            size,
            Frame(**{**frame, "fill": tuple(frame["fill"])}),
            [Place(uri, member, at, long, Box(*box) if box else None) for uri, member, at, long, box in places],
            etags,
            {int(row): reason for row, reason in known.items()},
            suspect,
        )


def send(channel: socket.socket, message: bytes) -> None:
    """One message, whole."""
    channel.sendall(LENGTH.pack(len(message)) + message)


class Inbox:
    """Messages out of a stream of bytes."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._bytes = channel, bytearray()

    def receive(self) -> list[bytes] | None:
        """The messages that are complete after one more read; None: the other side is gone."""
        try:
            piece = self._channel.recv(PIECE_BYTES)
        except OSError:
            piece = b""
        if not piece:
            return None
        self._bytes += piece
        found = []
        while len(self._bytes) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._bytes)[0]
            if len(self._bytes) < end:
                break
            found.append(bytes(self._bytes[LENGTH.size : end]))
            del self._bytes[:end]
        return found


class Handover:
    """What was read and not yet decoded, in order; whoever reads waits when it is too much."""

    def __init__(self) -> None:
        self._items: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def put(self, item: Task | bytes | Problem | DipnetError, size: int) -> None:
        """Hand one over, now or when there is room."""
        with self._changed:
            while self._items and (self._bytes + size > HELD_BYTES or len(self._items) >= HELD_IMAGES):
                self._changed.wait()
            self._items.append((item, size))
            self._bytes += size
            self._changed.notify_all()

    def take(self) -> Any:
        """The next one, now or when it is there."""
        with self._changed:
            while not self._items:
                self._changed.wait()
            item, size = self._items.popleft()
            self._bytes -= size
            self._changed.notify_all()
            return item


class Shared:
    """The memory that all processes see: one file without a name, mapped piece by piece."""

    def __init__(self, handle: int, place: int) -> None:
        self._handle = handle
        self._mapped: OrderedDict[int, mmap.mmap] = OrderedDict()
        words = memoryview(mmap.mmap(handle, beats_bytes(place + 1))).cast("Q")
        self._beat = words[place * BEAT_WORDS : (place + 1) * BEAT_WORDS]

    def pixels(self, task: Task) -> NDArray[np.uint8]:
        """Room for the pixels of each row (rows, height, width, 3)."""
        found = self._mapped.pop(task.start, None)
        if found is None or len(found) != task.size:
            found = mmap.mmap(self._handle, task.size, offset=task.start)
        self._mapped[task.start] = found
        while len(self._mapped) > MAPPED:
            self._mapped.popitem(last=False)
        shape = (len(task.places), task.frame.height, task.frame.width, 3)
        return np.frombuffer(found, np.uint8, count=int(np.prod(shape))).reshape(shape)

    def begin(self, task: Task, row: int) -> None:
        """Note that a row is being decoded from now on. The times first: whoever looks must not meet old ones."""
        self._beat[1], self._beat[2] = time.monotonic_ns(), time.process_time_ns()
        self._beat[0] = task.number * ROWS + row + 1

    def end(self) -> None:
        """Nothing is being decoded."""
        self._beat[0] = 0


class Told(NamedTuple):
    """A row, as it is sent: see tasks.decoding.Seen."""

    sample_id: str
    image_id: str
    width: int
    height: int
    taken_at: int | None
    bytes: int
    reason: str


class Sheet:
    """Where the pixels of a task go, one readable row after the other."""

    def __init__(self, room: NDArray[np.uint8]) -> None:
        self._room, self.filled = room, 0

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """One row's, (height, width, 3)."""
        self._room[self.filled] = pixels
        self.filled += 1


class Decoder:
    """Does one task after the other."""

    def __init__(self, shared: Shared, limits: Limits, arriving: Handover) -> None:
        self._shared, self._limits, self._arriving = shared, limits, arriving
        self._waited = 0.0

    def answer(self, task: Task) -> bytes:
        """What is to be told of a task: its rows, and the seconds that reading and decoding took; or an error."""
        used, self._waited = time.process_time(), 0.0
        room = self._shared.pixels(task)
        told, sheet = list[Told](), Sheet(room)
        trials = [[task.suspect]] if task.suspect >= 0 else []
        for number, rows in enumerate([*trials, *groups(task.places)]):
            data = self._take()
            if isinstance(data, DipnetError):
                return json.dumps([task.number, type(data).__name__, str(data)]).encode()
            for _ in rows[1:]:  # the same bytes
                self._take()
            told += self._tell(task, rows, data, sheet)
            if number < len(trials):  # the process is still there, which is all we wanted to know
                told, sheet = [], Sheet(room)
        return json.dumps([task.number, told, sheet.filled, self._waited, time.process_time() - used]).encode()

    def _take(self) -> bytes | Problem | DipnetError:
        started = time.monotonic()
        found: bytes | Problem | DipnetError = self._arriving.take()
        self._waited += time.monotonic() - started
        return found

    def _tell(self, task: Task, rows: Sequence[int], data: bytes | Problem, sheet: Sheet) -> list[Told]:
        """The rows of one image; what is readable goes onto the sheet."""
        if isinstance(data, Problem):
            return [Told("", "", 0, 0, None, 0, data.value) for _ in rows]
        image_id = fingerprint(data)
        ids = [element_id(image_id, task.places[row].box) for row in rows]
        sizes = [len(data), *[0] * (len(rows) - 1)]  # it was read once
        found = task.known.get(rows[0]) or self._look(task, rows, data)
        if not isinstance(found, Looked):
            return [Told(own, image_id, 0, 0, None, size, str(found)) for own, size in zip(ids, sizes, strict=True)]
        told = []
        for own, size, pixels in zip(ids, sizes, found.pixels, strict=True):
            reason = str(pixels) if isinstance(pixels, Reason) else ""
            told.append(Told(own, image_id, found.width, found.height, found.taken_at, size, reason))
            if not isinstance(pixels, Reason):
                sheet.add(pixels)
        return told

    def _look(self, task: Task, rows: Sequence[int], data: bytes) -> Looked | Reason:
        self._shared.begin(task, rows[0])
        try:
            return look(data, task.frame, [task.places[row].box for row in rows], self._limits)
        except Unreadable as problem:
            return problem.reason
        finally:
            self._shared.end()


def groups(places: Sequence[Place]) -> list[list[int]]:
    """The rows of each image; its boxes are neighbours."""
    return [list(rows) for _, rows in groupby(range(len(places)), lambda row: places[row].image)]


def beats_bytes(processes: int) -> int:
    """Bytes at the start of shared memory in which so many processes note what they do."""
    return -(-processes * BEAT_WORDS * 8 // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY


def read(tasks: SimpleQueue[Task], arriving: Handover, access: Access) -> None:
    """In a thread: read the images of one task after the other, ahead of the decoder."""
    while True:
        task = tasks.get()
        arriving.put(task, 0)
        rows = [*([task.suspect] if task.suspect >= 0 else []), *range(len(task.places))]
        last: bytes | Problem | None = None
        try:
            for data in read_ahead([task.places[row] for row in rows], [task.etags[row] for row in rows], access):
                arriving.put(data, len(data) if isinstance(data, bytes) and data is not last else 0)
                last = data
        except DipnetError as error:
            arriving.put(error, 0)


def listen(inbox: Inbox, tasks: SimpleQueue[Task]) -> None:
    """In a thread: take tasks in; when nobody is there to give any, the process ends, whatever it is doing."""
    while (messages := inbox.receive()) is not None:
        for message in messages:
            tasks.put(Task.from_json(message))
    os._exit(0)


def bound(configured: Configured) -> None:
    """Keep what goes wrong within this process: its memory, its dumps, what C libraries say of hostile files."""
    os.nice(configured.nice)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = SPARE_BYTES + BYTES_A_PIXEL * configured.pixels + 2 * configured.access.most_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    threading.excepthook = lambda _: os._exit(1)  # a process that has lost a thread would wait for ever
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    os.close(quiet)


def main(channel: int, memory: int, place: int, configured: Sequence[Any]) -> None:
    """Serve until nobody asks any more. channel and memory: handles that were passed on."""
    access, *others = configured
    told = Configured(Access(*access), *others)
    bound(told)
    shared, arriving, tasks = Shared(memory, place), Handover(), SimpleQueue[Task]()
    line = socket.socket(fileno=channel)
    threading.Thread(target=listen, args=(Inbox(line), tasks), daemon=True).start()
    threading.Thread(target=read, args=(tasks, arriving, told.access), daemon=True).start()
    decoder = Decoder(shared, Limits(told.pixels), arriving)
    while True:
        try:
            send(line, decoder.answer(arriving.take()))
        except BrokenPipeError:
            os._exit(0)
