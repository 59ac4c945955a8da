"""A decoding process, as seen from outside: it is started, given tasks, watched and ended here."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.compute.images import Reason
from tasks.decoder import BEAT_WORDS, ROWS, Configured, Inbox, Task, send
from tasks.shared_memory import Arena, Segment

if TYPE_CHECKING:
    from tasks.decoding import Work

START = "import json, sys; told = json.loads(sys.argv[1]); sys.path[:] = told.pop('path'); " + (
    "from tasks.decoder import main; main(**told)"
)
ALONE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # cores are shared by processes, not by threads
ROOMY = {  # memory of one image serves for the next, instead of going back to the system in between
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "67108864",
    "MALLOC_TOP_PAD_": "16777216",
}
STRIKES = 2  # times that an image must end a process of its own before it is called a crasher
PATIENCE = 10  # times the limit by the clock, for a process that gets no processor time
END_SECONDS = 2.0


@dataclass
class Pending:
    """A work under way. `known`: verdicts on images, by their first row, that were reached by losing a process."""

    work: Work
    task: Task
    segment: Segment
    known: dict[int, str] = field(default_factory=dict)
    strikes: Counter[int] = field(default_factory=Counter)
    suspect: int = -1
    answer: list[Any] | None = None
    abandoned: bool = False

    def blame(self, row: int) -> None:
        """A process ended while it decoded an image. It is tried alone, first thing in a process, before it is guilty."""
        self.strikes[row] += row == self.suspect
        self.suspect = row
        if self.strikes[row] >= STRIKES:
            self.convict(row, Reason.CRASHED)

    def convict(self, row: int, reason: Reason) -> None:
        """The image is not decoded again."""
        self.known[row], self.suspect = reason.value, -1

    def to_send(self) -> bytes:
        """The task, with what was learned since."""
        return self.task._replace(known=self.known, suspect=self.suspect).to_json()


class Beat(NamedTuple):
    """What a process noted when it began an image."""

    number: int  # of the task
    row: int  # -1: it decodes nothing
    clock: float  # seconds
    processor: float  # seconds


class Process:
    """One of them, with its end of the line."""

    def __init__(self, place: int, arena: Arena, configured: Configured) -> None:
        self.place, self.tasks = place, deque[Pending]()
        self._beat = memoryview(arena.first.memory).cast("Q")[place * BEAT_WORDS : (place + 1) * BEAT_WORDS]
        self._beat[0] = 0
        self.line, theirs = socket.socketpair()
        told = {"channel": theirs.fileno(), "memory": arena.handle, "place": place, "configured": configured}
        house = str(Path(__file__).parents[1])
        try:
            self._popen = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-c", START, json.dumps({**told, "path": [house, *sys.path]})],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), arena.handle),
                env={**os.environ, **ALONE, **ROOMY},
                process_group=0,  # Ctrl-C is for us
            )
        except BaseException:
            self.line.close()
            raise
        finally:
            theirs.close()
        self._inbox = Inbox(self.line)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def give(self, pending: Pending) -> None:
        """One more task. When the process is gone already, that is noticed where its answers are awaited."""
        self.tasks.append(pending)
        with contextlib.suppress(OSError):
            send(self.line, pending.to_send())

    def answers(self) -> list[list[Any]] | None:
        """What it has to tell, after waiting for something; None: it is gone."""
        messages = self._inbox.receive()
        return None if messages is None else [json.loads(message) for message in messages]

    def doing(self) -> Beat:
        """What it is decoding."""
        word, clock, processor = self._beat
        return Beat(word // ROWS, word % ROWS - 1, clock / 1e9, processor / 1e9)

    def overdue(self, seconds: float) -> Beat | None:
        """The image that it has been decoding for longer. Processor time counts: others may use the machine too."""
        beat = self.doing()
        lasted = time.monotonic() - beat.clock
        if beat.row < 0 or lasted < seconds:
            return None
        used = _processor_seconds(self.pid)
        if used is not None and used - beat.processor < seconds and lasted < PATIENCE * seconds:
            return None
        return beat if self.doing() == beat else None

    def end(self, *, at_once: bool = True) -> int:
        """End it, and return its exit code: -n for signal n."""
        self.line.close()
        if at_once:
            self._popen.kill()
        try:
            return self._popen.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait()


def _processor_seconds(pid: int) -> float | None:
    """That a process has used; None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
