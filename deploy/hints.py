"""From hints that something was answered to syncs: one at a time, and few."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from models.errors import DipnetError

WAIT_SECONDS = 1.0  # what one person submits in a row becomes one sync
APART_SECONDS = 2.0  # between two syncs of one project
STOP_SECONDS = 30.0
MOST_PROJECTS = 1_000  # that wait at once; beyond that the poll has to do

log = logging.getLogger(__name__)


class Hints:
    """Syncs the projects that were hinted at, in a thread. A hint that comes during a sync causes one more."""

    def __init__(
        self, sync: Callable[[int], object], *, wait: float = WAIT_SECONDS, apart: float = APART_SECONDS
    ) -> None:
        self._sync, self._wait, self._apart = sync, wait, apart
        self._changed = threading.Condition()
        self._hinted: dict[int, float] = {}  # project: when it was first hinted at since its last sync began
        self._ended: dict[int, float] = {}  # project: when its last sync ended
        self._stopping = False
        # A daemon, so that a sync that hangs cannot keep the process alive: it may be killed at any time anyway.
        self._thread = threading.Thread(target=self._run, name="dipnet-hints", daemon=True)

    def note(self, project_id: int) -> None:
        """Remember a hint, and return at once."""
        with self._changed:
            if project_id not in self._hinted and len(self._hinted) < MOST_PROJECTS:
                self._hinted[project_id] = time.monotonic()
                self._changed.notify()

    def start(self) -> None:
        """Begin to sync."""
        self._thread.start()

    def stop(self) -> None:
        """Let a running sync end, and forget what waits: the poll comes anyway."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            log.warning("a sync did not end within %d s and is left alone", STOP_SECONDS)

    def _run(self) -> None:
        while (project_id := self._next()) is not None:
            self._sync_one(project_id)
            with self._changed:
                self._ended[project_id] = time.monotonic()

    def _next(self) -> int | None:
        """Wait for the project that is due first; none when it is time to stop."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                self._ended = {project: ended for project, ended in self._ended.items() if ended + self._apart > now}
                due, project_id = min(
                    ((self._due(project), project) for project in self._hinted), default=(math.inf, 0)
                )
                if due <= now:
                    del self._hinted[project_id]
                    return project_id
                self._changed.wait(None if due == math.inf else due - now)
        return None

    def _due(self, project_id: int) -> float:
        return max(self._hinted[project_id] + self._wait, self._ended.get(project_id, -math.inf) + self._apart)

    def _sync_one(self, project_id: int) -> None:
        """One sync. What goes wrong is said in one line and not tried again: the poll comes anyway."""
        began = time.monotonic()
        try:
            self._sync(project_id)
        except DipnetError as error:
            log.warning("project %d was hinted at and not synced: %s", project_id, " ".join(str(error).split()))
        except Exception as error:  # noqa: BLE001  whatever it is must not end the thread, and may hold a secret
            log.error("project %d was hinted at and not synced: %s", project_id, type(error).__name__)
        else:
            log.info("project %d was hinted at and synced in %.1f s", project_id, time.monotonic() - began)
