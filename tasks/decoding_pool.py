"""Several decoding processes: works go out as they come, answers come back in order, and no image ends the run.

An image that takes too long has its process ended, one that ends its process is tried alone until that is certain; both
get a reason, and the rest of their work is done again.
"""

from __future__ import annotations

import os
import selectors
from collections import deque
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

from models import errors
from models.errors import Unavailable
from tasks.compute.frame import Frame
from tasks.compute.images import Reason
from tasks.decoder import Configured, Task, beats_bytes
from tasks.decoding_process import Pending, Process
from tasks.shared_memory import Arena

if TYPE_CHECKING:
    from tasks.decoding import Work

DEEP = 2  # works that a process has at hand, so that it reads the next while it decodes one
AHEAD = 3  # works a process that are under way or wait for those before them
LOST = 5  # processes that end one after the other without having done anything
LOOK_SECONDS = 0.5


class Pool:
    """The processes of one `map` at a time. They start when there is something to do, and stay."""

    def __init__(self, configured: Configured, *, workers: int, image_seconds: float) -> None:
        self.workers = workers
        self._configured, self._image_seconds = configured, image_seconds
        self._owner = os.getpid()
        self._arena = Arena(beats_bytes(workers))
        self._processes: dict[int, Process] = {}  # by place
        self._selector = selectors.DefaultSelector()
        self._queue: deque[Pending] = deque()  # to be given to a process
        self._numbers = 0
        self._lost = 0
        self.closed = False

    def map(self, works: Iterable[Work], frame: Frame) -> Generator[Pending]:
        """Works with their answers, in order; more are asked for as those before are taken. Raises what reading raises.

        The segment of each is the caller's to release.
        """
        order: deque[Pending] = deque()
        coming, more = iter(works), True
        try:
            while True:
                self._turn(0.0)
                while more and len(order) < AHEAD * self.workers:
                    work = next(coming, None)
                    if more := work is not None:
                        order.append(self._pending(work, frame))
                        self._queue.append(order[-1])
                        self._give()
                if not order:
                    return
                while order[0].answer is None:
                    self._turn(min(LOOK_SECONDS, self._image_seconds / 2))
                _raise_problem(order[0])
                yield order.popleft()
        except GeneratorExit:
            raise
        except BaseException:
            self.close()  # whatever it was, nothing is known of what is under way
            raise
        finally:
            self._abandon(order)

    def close(self) -> None:
        """End the processes and let go of the memory."""
        if self.closed or os.getpid() != self._owner:  # in a fork they are somebody else's
            return
        self.closed = True
        for process in self._processes.values():
            process.line.close()  # all of them end at once, and then they are waited for
        for process in self._processes.values():
            process.end(at_once=any(pending.answer is None for pending in process.tasks))
        self._processes.clear()
        self._selector.close()
        self._arena.close()

    def _pending(self, work: Work, frame: Frame) -> Pending:
        self._numbers += 1
        bytes_a_row = frame.height * frame.width * 3
        segment = self._arena.segment(len(work.places) * bytes_a_row)
        task = Task(self._numbers, segment.start, segment.size, frame, list(work.places), list(work.etags), {})
        return Pending(work, task, segment)

    def _give(self) -> None:
        """Hand out what is queued, as far as processes have room for it; processes are started when all are busy."""
        while self._queue:
            least = min(self._processes.values(), key=lambda process: len(process.tasks), default=None)
            alone = self._queue[0].suspect >= 0
            if (least is None or least.tasks or alone) and len(self._processes) < self.workers:
                least = self._start()
            elif least is None or len(least.tasks) >= DEEP:
                return
            least.give(self._queue.popleft())

    def _start(self) -> Process:
        place = next(place for place in range(self.workers) if place not in self._processes)
        process = Process(place, self._arena, self._configured)
        self._processes[place] = process
        self._selector.register(process.line, selectors.EVENT_READ, process)
        return process

    def _turn(self, seconds: float) -> None:
        """Wait that long for answers, and act on them; end whoever is stuck."""
        for key, _ in self._selector.select(seconds):
            process: Process = key.data
            answers = process.answers()
            if answers is None:
                self._bury(process)
                continue
            for answer in answers:
                self._lost = 0
                pending = process.tasks.popleft()
                pending.answer = answer
                if pending.abandoned:
                    pending.segment.release()
        for process in list(self._processes.values()):
            beat = process.overdue(self._image_seconds)
            if beat and process.tasks and process.tasks[0].task.number == beat.number:
                process.tasks[0].convict(beat.row, Reason.TOO_SLOW)
                self._take_back(process)
        self._give()

    def _bury(self, process: Process) -> None:
        """A process ended by itself: whose fault was it?"""
        beat = process.doing()
        if process.tasks and beat.row >= 0 and process.tasks[0].task.number == beat.number:
            process.tasks[0].blame(beat.row)
            self._take_back(process)
            return
        code = self._take_back(process)
        self._lost += 1
        if self._lost >= LOST * self.workers:
            raise Unavailable(
                f"decoding processes end before they have done anything (exit code {code}); "
                "see what they print above, and whether memory ran out"
            )

    def _take_back(self, process: Process) -> int:
        """End a process; what it had not done is first in the queue again."""
        self._selector.unregister(process.line)
        code = process.end()
        del self._processes[process.place]
        for pending in reversed(process.tasks):
            if pending.abandoned:
                pending.segment.release()
            else:
                self._queue.appendleft(pending)
        return code

    def _abandon(self, order: Iterable[Pending]) -> None:
        """Nobody wants these any more: what is not begun is forgotten, the rest runs out."""
        self._queue.clear()
        under_way = {id(pending) for process in self._processes.values() for pending in process.tasks}
        for pending in order:
            pending.abandoned = True
            if id(pending) not in under_way:
                pending.segment.release()


def _raise_problem(pending: Pending) -> None:
    """Raise what reading raised in the process."""
    if pending.answer and isinstance(pending.answer[1], str):
        _, kind, text = pending.answer
        raise getattr(errors, kind, Unavailable)(text)
